# SPDX-License-Identifier: Apache-2.0
"""Steps in words, for those who read a failure."""

from __future__ import annotations

from collections.abc import Callable

from .judge import CALLS, SVE_HINT, low32
from .plan import Failure, Step
from .shrink import replay_core
from .sides import Sides

__all__ = ["describe", "replay_aloud"]

PARAMETERS = {
    "event_register": ("event", "entry", "argument", "flags", "affinity"),
    "event_enable": ("event",),
    "event_disable": ("event",),
    "event_context": ("register",),
    "event_complete": ("status",),
    "event_complete_and_resume": ("address",),
    "event_unregister": ("event",),
    "event_status": ("event",),
    "event_get_info": ("event", "info"),
    "event_routing_set": ("event", "mode", "affinity"),
    "interrupt_bind": ("interrupt",),
    "interrupt_release": ("event",),
    "event_signal": ("event", "affinity"),
    "features": ("feature",),
}
RESULTS = {-1: "NOT_SUPPORTED", -2: "INVALID_PARAMETERS", -3: "DENIED", -5: "PENDING", -10: "OUT_OF_RESOURCE"}


def describe(step: Step) -> str:
    """A step of the core in words; a machine's as it stands."""
    match step:
        case ["call", int(pe), int(x0), *rest] if low32(x0) & ~SVE_HINT in CALLS:
            name = CALLS[low32(x0) & ~SVE_HINT]
            arguments = zip(PARAMETERS.get(name, ()), rest, strict=False)
            noise = "" if x0 in CALLS else f" as {x0:#x}"
            return (
                f"PE {pe} calls {name.upper()}({', '.join(f'{what}={value:#x}' for what, value in arguments)}){noise}"
            )
        case ["call", int(pe), int(x0), *rest]:
            return f"PE {pe} calls {x0:#x}({', '.join(f'{value:#x}' for value in rest[:3])})"
        case ["set", int(pe), *_]:
            return f"PE {pe} computes: other registers"
        case ["inject", int(event), int(pe)]:
            return f"the host injects event {event:#x} into PE {pe}"
        case ["cancel", int(event), int(pe)]:
            return f"the host cancels event {event:#x} of PE {pe}"
        case ["interrupt", int(interrupt), int(pe)]:
            return f"interrupt {interrupt} fires, on PE {pe}"
        case ["look", int(pe)]:
            return f"PE {pe} stops and looks"
        case ["power", int(pe), str(what)]:
            return f"the machine turns PE {pe} on" if what == "on" else f"the machine resets PE {pe}"
        case ["reset"]:
            return "the machine is reset"
    return " ".join(f"{value:#x}" if type(value) is int else str(value) for value in step)


def replay_aloud(failure: Failure, say: Callable[[str], None]) -> Failure | None:
    """Replay on the core, and say of each step what it was and what came of it."""
    depths = [0] * failure.world.vcpus
    place = 0

    def watch(step: Step, sides: Sides) -> None:
        nonlocal place
        place += 1
        said = [describe(step)]
        if step[0] == "call":
            words = sides.seats[step[1]].model.words
            if len(sides.seats[step[1]].model.frames) == depths[step[1]]:
                value = words[0] - (words[0] >> 63 << 64)
                said.append("SUCCESS" if value == 0 else RESULTS.get(value, hex(words[0])))
        for seat in sides.seats:
            depth = len(seat.model.frames)
            if depth > depths[seat.model.index]:
                said.append(f"PE {seat.model.index} enters event {seat.model.frames[-1].handler.event:#x}")
            elif depth < depths[seat.model.index]:
                said.append("a handler ends")
            depths[seat.model.index] = depth
        say(f"{place:5} " + " -> ".join(said))

    found = replay_core(failure, watch)
    if found is not None:
        say(f"{len(found.steps):5} {describe(found.steps[-1])}")
    return found
