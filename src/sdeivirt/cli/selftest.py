# SPDX-License-Identifier: Apache-2.0
"""`sdeivirt selftest`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any, Literal

from ..control.batch import Transcript, run_to_end, sections
from ..control.terminal import Terminal
from ..errors import TimeLimitError
from ..guests import guest_path
from ..machine import ExitReason, Machine, MachineConfig, open_machine
from ..sdei import EventDefinition
from ..sdei.events import EVENT_0
from ..smccc.ids import Conduit
from . import BROKEN_PIPE
from .options import Json, MachineOptions, Number, Seconds, disable_services, policy_named

__all__ = ["selftest"]


def selftest(
    suite: Literal["sdei", "hypercalls"] = "sdei",
    /,
    *,
    options: MachineOptions = MachineOptions(),  # noqa: B008 (frozen)
    event: Number = 0,
    timeout: Seconds = 60.0,
    json_: Json = False,
) -> int:
    """Run a selftest in a guest and print what it says.

    Parameters
    ----------
    suite
        sdei has every vCPU register, enable, signal, handle and complete an
        event; hypercalls switches each service on and off.
    event
        The event for sdei to use. One that the platform lacks is defined as
        private, normal and signalable.
    timeout
        Seconds that a guest may take.
    """
    definitions = () if event == EVENT_0.number else (EventDefinition(event, signalable=True),)
    config = MachineConfig(
        name=f"selftest-{suite}",
        vcpus=options.vcpu_count,
        policy=policy_named(options.policy),
        conduit=Conduit(options.conduit),
        seed=options.seed,
        events=definitions,
        engine=options.engine(),
    )
    terminal = Terminal()
    runner = _Runner(options.kind, config, timeout, None if json_ else terminal.write)
    report = {"machine": options.kind, "vcpus": options.vcpu_count}
    if suite == "sdei":
        report |= runner.sdei(event)
    else:
        report |= runner.hypercalls(quiet=json_)
    if json_:
        print(json.dumps(report, indent=2))
    if terminal.broken:
        return BROKEN_PIPE
    if runner.timed_out:
        raise TimeLimitError(f"the guest took longer than {timeout:g} s", "allow more with --timeout SECONDS")
    return 0 if report["ok"] else 1


class _Runner:
    """Runs guests, and tells of what went wrong with them on standard error."""

    def __init__(
        self, machine: str, config: MachineConfig, timeout: float, echo: Callable[[bytes], None] | None
    ) -> None:
        self._machine = machine
        self._config = config
        self._timeout = timeout
        self._echo = echo
        self.timed_out = False

    def _open(self, bootargs: str) -> Machine:
        return open_machine(self._machine, replace(self._config, bootargs=bootargs))

    def _run(self, machine: Machine, guest: str) -> Transcript:
        transcript = run_to_end(machine, guest_path(guest), self._timeout, self._echo)
        for fault in transcript.faults:
            print(fault.render(), file=sys.stderr)
        if transcript.reason is ExitReason.ALL_OFF:
            print("every vCPU has turned itself off", file=sys.stderr)
        self.timed_out |= transcript.timed_out
        return transcript

    def sdei(self, event: int) -> dict[str, Any]:
        """The guest of the KVM series' `sdei` selftest."""
        with self._open(f"event={event:#x}") as machine:
            transcript = self._run(machine, "selftest")
        return {"event": event, **_report(transcript), "sections": sections(transcript.output)}

    def hypercalls(self, quiet: bool) -> dict[str, Any]:
        """The guest of its `hypercalls` selftest: with all services, and without each of them."""
        with self._open("") as machine:
            bitmaps = machine.firmware.router.bitmaps.values()
            services = [name for bitmap in bitmaps for _bit, name in sorted(bitmap.names.items())]
        runs = []
        for missing in [None, *services]:
            enabled = [name for name in services if name != missing]
            if not quiet:
                print(f"\n=== {f'without {missing}' if missing else 'all services'}", flush=True)
            with self._open(f"expect={','.join(enabled) or 'none'}") as machine:
                disable_services(machine, [missing] if missing else [])
                transcript = self._run(machine, "hypercalls")
            runs.append({"disabled": missing, "services": enabled, **_report(transcript)})
        if not quiet:
            print("\n    Services                      Result")
            for run in runs:
                what = f"without {run['disabled']}" if run["disabled"] else "all"
                print(f"    {what:<30}{run['result'] or 'no result'}")
            sys.stdout.flush()
        return {"ok": all(run["ok"] for run in runs), "runs": runs}


def _report(transcript: Transcript) -> dict[str, Any]:
    return {
        "ok": transcript.ok,
        "result": transcript.result,
        "reason": transcript.reason.value,
        "output": transcript.output,
        "faults": [asdict(fault) for fault in transcript.faults],
    }
