# SPDX-License-Identifier: Apache-2.0
"""`sdeivirt inject`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ..control.client import VmClient
from .options import Json, Number, VmName

__all__ = ["inject"]

_WAITS = {
    "disabled": "pending, the guest has the event disabled",
    "running": "pending, its handler is running",
    "paused": "pending, the VM is paused",
    "masked": "pending, the PE is masked",
    "offline": "pending, the PE is off",
    "busy": "pending, another handler runs there",
}


def _describe(injection: Mapping[str, Any]) -> str:
    """For people, from the members of :class:`Injection`."""
    where = "" if injection["vcpu"] is None else f" into vCPU {injection['vcpu']}"
    text = f"event {injection['event']:#x} injected{where}"
    if waits := injection["waits"]:
        text += f": {_WAITS.get(waits, f'pending, {waits}')}"
    return text + (" (it was pending already)" if injection["coalesced"] else "")


def inject(
    vm: VmName,
    event: Number,
    /,
    *,
    vcpu: Number | None = None,
    affinity: Number | None = None,
    cancel: bool = False,
    json_: Json = False,
) -> int:
    """Inject an SDEI event into a running VM.

    A private event goes to vCPU 0 unless you name another; a shared one goes
    where the guest has routed it. With --cancel, exit code 1 says that the
    event was not pending.

    Parameters
    ----------
    vm
        The VM's name.
    event
        The event's number.
    vcpu
        The vCPU, by index.
    affinity
        The vCPU, by affinity (MPIDR).
    cancel
        Take a pending event back instead.
    """
    with VmClient(vm) as client:
        if cancel:
            cancelled = client.cancel(event, vcpu, affinity)
            if json_:
                print(json.dumps({"event": event, "cancelled": cancelled}))
            else:
                print(f"event {event:#x} " + ("cancelled" if cancelled else "was not pending"))
            return 0 if cancelled else 1
        # Not client.inject(): its record would load the whole SDEI service first.
        injection = client.execute("inject-event", event=event, vcpu=vcpu, affinity=affinity)
    print(json.dumps(injection) if json_ else _describe(injection))
    return 0
