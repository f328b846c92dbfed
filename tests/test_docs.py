# SPDX-License-Identifier: Apache-2.0
"""What the documentation shows works, and what is generated is fresh."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from .machine_support import NEEDS_QEMU

ROOT = Path(__file__).parents[1]


@pytest.mark.machine
@pytest.mark.qemu
@NEEDS_QEMU
def test_the_blocks_of_the_library_page_run() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "library.md").read_text("utf-8"), re.DOTALL)
    assert len(blocks) >= 4
    names: dict[str, Any] = {"__name__": "library"}
    for block in blocks:
        exec(compile(block, "docs/library.md", "exec"), names)


@pytest.mark.parametrize("page", sorted([ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("guests/*.md")]))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text("utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"
