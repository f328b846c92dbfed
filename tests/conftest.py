# SPDX-License-Identifier: Apache-2.0
"""Settings for all tests, and what many of them begin with; nothing here needs an engine by itself."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from .control_support import VmProcess
from .place_support import GUEST

settings.register_profile("sdeivirt", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("sdeivirt")

# A shell's background job ignores SIGINT, and hands that down: tests of Ctrl-C would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where VMs have their directories, for this process's clients as well."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def here(runtime: Path) -> Iterator[VmProcess]:
    """A VM of that name whose guest listens on both of its CPUs."""
    with VmProcess(runtime, *GUEST, name="here") as vm:
        vm.wait_out("listening", 2)
        yield vm
