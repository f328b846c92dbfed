# SPDX-License-Identifier: Apache-2.0
"""`sdeivirt doctor`."""

from __future__ import annotations

import importlib
import json
import os
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata

from ..errors import SdeivirtError
from .options import Json

__all__ = ["doctor"]

_PYTHON = (3, 11)
_PROBE_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class _Finding:
    """What a check found. `state` is ok, missing (something does not work) or limited (it works, but...)."""

    check: str
    state: str
    detail: str
    advice: str = ""


def _python() -> _Finding:
    version = platform.python_version()
    if tuple(map(int, platform.python_version_tuple()[:2])) < _PYTHON:
        return _Finding("python", "missing", f"{version} is too old", "use Python 3.11 or newer")
    return _Finding("python", "ok", version)


def _unicorn() -> _Finding:
    try:
        importlib.import_module("unicorn")
    except Exception as error:  # a broken shared library shows up as anything
        return _Finding("unicorn", "missing", f"{error}", "run `pip install unicorn`")
    return _Finding("unicorn", "ok", metadata.version("unicorn"))


def _stub() -> _Finding:
    try:
        from ..machine.unicorn import stub
    except Exception as error:
        return _Finding("native stop", "missing", f"{error}", "run `pip install unicorn`")
    available, detail = stub.available()
    if available:
        return _Finding("native stop", "ok", detail)
    return _Finding(
        "native stop", "limited", detail, "nothing to do: vCPUs run in slices instead, and take injections later"
    )


def _guests() -> _Finding:
    from ..guests import GUESTS, guest_path

    try:
        for name in GUESTS:
            guest_path(name)
    except SdeivirtError as error:
        return _Finding("guests", "missing", error.message, error.hint)
    return _Finding("guests", "ok", ", ".join(GUESTS))


def _boots(kind: str, worst: str) -> _Finding:
    """Boot a guest: only then is it known that hypercalls arrive. `worst` is how bad it is if they do not."""
    from ..control.batch import run_to_end
    from ..guests import guest_path
    from ..machine import MachineConfig, open_machine

    check = f"machine {kind}"
    try:
        with open_machine(kind, MachineConfig(name="doctor", vcpus=1)) as machine:
            transcript = run_to_end(machine, guest_path("selftest"), _PROBE_SECONDS)
            engine = machine.details()
    except SdeivirtError as error:
        return _Finding(check, worst, error.message, error.hint)
    except Exception as error:
        return _Finding(check, worst, f"{error}", "report this with the output of `pip list`")
    if not transcript.ok:
        detail = f"the selftest ended with {transcript.reason.value} and {transcript.result or 'no result'}"
        return _Finding(check, worst, detail, f"run `sdeivirt selftest --machine {kind}` to see more")
    what = f"QEMU {engine['qemu']}: " if "qemu" in engine else ""
    return _Finding(check, "ok", f"{what}a guest booted, its hypercalls were served")


def _unicorn_boots() -> _Finding:
    return _boots("unicorn", "missing")


def _qemu_boots() -> _Finding:
    return _boots("qemu", "limited")  # the other machine needs none of it


def _uefi() -> _Finding:
    from ..machine.qemu import find_firmware

    try:
        return _Finding("UEFI firmware", "ok", str(find_firmware()))
    except SdeivirtError as error:
        return _Finding("UEFI firmware", "limited", error.message, error.hint)


def _runtime() -> _Finding:
    from ..control.runtime import runtime_root

    try:
        root = runtime_root(create=True)
    except SdeivirtError as error:
        return _Finding("runtime directory", "missing", error.message, error.hint)
    if not os.access(root, os.W_OK | os.X_OK):
        return _Finding("runtime directory", "missing", f"{root} is not writable", f"run `chmod 700 {root}`")
    return _Finding("runtime directory", "ok", str(root))


def _others() -> _Finding:
    return _Finding("machine kvm", "limited", "not in this version", "nothing to do: the other machines need no more")


_CHECKS: tuple[Callable[[], _Finding], ...] = (
    _python,
    _unicorn,
    _stub,
    _guests,
    _unicorn_boots,
    _qemu_boots,
    _uefi,
    _runtime,
    _others,
)
_MARKS = {"ok": "[green]ok[/]", "limited": "[yellow]limited[/]", "missing": "[bold red]MISSING[/]"}


def doctor(*, json_: Json = False) -> int:
    """Check that everything needed is there, and say what to do about what is not.

    Exit code 3 if something necessary is missing.
    """
    findings = [check() for check in _CHECKS]
    if json_:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        _show(findings)
    return 3 if any(finding.state == "missing" for finding in findings) else 0


def _show(findings: list[_Finding]) -> None:
    from rich.markup import escape
    from rich.table import Table

    from .output import show

    table = Table.grid(padding=(0, 2))
    for finding in findings:
        advice = f"\n[dim]{escape(finding.advice)}[/]" if finding.advice else ""
        table.add_row(_MARKS[finding.state], finding.check, escape(finding.detail) + advice)
    show(table)
