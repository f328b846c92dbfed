# SPDX-License-Identifier: Apache-2.0
"""Hatchling build hook: a wheel, and an editable install, come with the test guests as ELF files."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


def _guest_build(root: Path) -> ModuleType:
    """guests/build.py, which is a script next to its sources and not part of the package."""
    path = root / "guests" / "build.py"
    spec = importlib.util.spec_from_file_location("sdeivirt_guest_build", path)
    if spec is None or spec.loader is None:
        raise RuntimeError(f"cannot load {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


class CustomBuildHook(BuildHookInterface[Any]):
    """Builds the guests before the files are collected; the sdist has their sources instead."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel":
            return
        root = Path(self.root)
        guests = _guest_build(root)
        try:
            images = guests.build(root, root / guests.DEFAULT_OUT)
        except guests.BuildError as error:
            self.app.abort(str(error))
            raise  # abort() has left already
        # They are build products that git ignores, and hatchling with it, unless told otherwise.
        build_data["artifacts"].extend(f"/{image.relative_to(root).as_posix()}" for image in images)
