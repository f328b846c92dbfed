# SPDX-License-Identifier: Apache-2.0
"""Failures as files: JSON with the world and the steps, one a line, so that they can be read and cut by hand.

    {
     "format": "sdeivirt fuzz", "version": 1,
     "machine": "core", "policy": "kvm", "vcpus": 4, "slots": [2, 2],
     "events": ["0x5:private,interrupt=20", ...],       as on the command line
     "seed": ..., "at": ..., "kind": ..., "message": ...,
     "steps": [
      ["call", 1, "0xc4000021", "0x5", ...],            numbers may be strings: hexadecimal
      ...
     ]
    }

What the steps are is in :mod:`.plan`.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from ..errors import EnvironmentUnavailableError, SdeivirtError, UsageError
from ..files import read_regular
from ..sdei.events import EventDefinition, Priority, check_events, parse_event
from ..sdei.policy import POLICIES
from .plan import Failure, Step, World

__all__ = ["load", "save", "text_of"]

FORMAT, VERSION = "sdeivirt fuzz", 1
LIMIT = 256 << 20  # bytes of a file
MAX_VCPUS = 64
M64 = 2**64 - 1
HINT = "give a file that `sdeivirt fuzz` has written"

# The arguments of the core's steps: a "pe", a "word" of 64 bits, or one of some words.
CORE_STEPS: dict[str, tuple[str, ...]] = {
    "call": ("pe", *["word"] * 6),
    "set": ("pe", *["word"] * 16),
    "inject": ("word", "pe"),
    "cancel": ("word", "pe"),
    "interrupt": ("word", "pe"),
    "look": ("pe",),
    "power": ("pe", "on reset"),
    "reset": (),
}


def text_of(failure: Failure) -> str:
    """The failure as it stands in a file."""
    world = failure.world
    head = {
        "format": FORMAT,
        "version": VERSION,
        "machine": world.machine,
        "policy": world.policy,
        "vcpus": world.vcpus,
        "slots": list(world.slots),
        "events": [_event_text(event) for event in world.events],
        "seed": failure.seed,
        "at": failure.at,
        "kind": failure.kind,
        "message": failure.message,
    }
    lines = [f" {json.dumps(key)}: {json.dumps(value)}," for key, value in head.items()]
    steps = ",\n".join("  " + json.dumps([_written(value) for value in step]) for step in failure.steps)
    return "\n".join(["{", *lines, ' "steps": [', steps, " ]", "}", ""])


def save(failure: Failure, path: Path) -> None:
    """Write a failure into a new file, private (0600), whole or not at all. Raises EnvironmentUnavailableError.

    What exists already is left alone, whatever it is: a report, a link, a device.
    """
    made = False
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w") as file:
            made = True
            file.write(text_of(failure))
    except OSError as error:
        if made:
            with contextlib.suppress(OSError):
                path.unlink()
        raise EnvironmentUnavailableError(
            f"cannot write the failure to {path}: {error.strerror}", "choose another place with --output"
        ) from error


def load(path: Path) -> Failure:
    """Read a failure. Raises UsageError, which says what is wrong with the file."""
    too_big = "a failure has some steps; this is something else"
    try:
        document = json.loads(read_regular(path, LIMIT, UsageError, HINT, too_big))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is no replay file: {error}", HINT) from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise UsageError(f"{path} is no replay file of sdeivirt", HINT)
    version = document.get("version")
    if version != VERSION:
        newer = isinstance(version, int) and version > VERSION
        hint = "use the sdeivirt that wrote it, or a later one" if newer else HINT
        raise UsageError(f"{path} has version {version!r} of the format, this sdeivirt reads {VERSION}", hint)
    try:
        return _failure(document)
    except _Damage as error:
        raise UsageError(f"{path} is damaged: {error}", HINT) from error
    except SdeivirtError as error:  # of an event definition
        raise UsageError(f"{path} is damaged: {error.message}", HINT) from error


class _Damage(Exception):
    """Says what is wrong."""


def _failure(document: dict[str, Any]) -> Failure:
    world = World(
        policy=_one(document, "policy", str),
        vcpus=_one(document, "vcpus", int),
        events=tuple(parse_event(text) for text in _list(document, "events", str)),
        slots=_slots(document),
        machine=_one(document, "machine", str),
    )
    check_events(world.events)
    if world.policy not in POLICIES:
        raise _Damage(f"there is no policy {world.policy!r}")
    if not 1 <= world.vcpus <= MAX_VCPUS:
        raise _Damage(f"there cannot be {world.vcpus} vCPUs")
    steps = [_step(step, place, world) for place, step in enumerate(_list(document, "steps", list), 1)]
    return Failure(
        world=world,
        seed=_one(document, "seed", int),
        kind=_one(document, "kind", str),
        message=_one(document, "message", str),
        steps=steps,
        at=_one(document, "at", int),
    )


def _one(document: dict[str, Any], key: str, kind: type) -> Any:
    value = document.get(key)
    if type(value) is not kind:
        raise _Damage(f"{key} is {value!r}" if key in document else f"it has no {key}")
    return value


def _list(document: dict[str, Any], key: str, kind: type) -> list[Any]:
    values: list[Any] = _one(document, key, list)
    for value in values:
        if type(value) is not kind:
            raise _Damage(f"among the {key} is {value!r}")
    return values


def _slots(document: dict[str, Any]) -> tuple[int, int]:
    slots = _list(document, "slots", int)
    if len(slots) != 2 or not all(0 <= value <= 512 for value in slots):
        raise _Damage(f"slots are {slots!r}")
    return slots[0], slots[1]


def _step(step: list[Any], place: int, world: World) -> Step:
    """A step with its numbers read; on the core, one that can be taken."""
    if not step or not isinstance(step[0], str):
        raise _Damage(f"step {place} is {step!r}")
    values: Step = [step[0], *(_number(value) for value in step[1:])]
    if not all(isinstance(value, int | str) for value in values):
        raise _Damage(f"step {place} is {step!r}")
    if world.machine == "core" and not _can_be_taken(values, world.vcpus):
        raise _Damage(f"step {place} is {step!r}")
    return values


def _can_be_taken(step: Step, vcpus: int) -> bool:
    """Whether the core can take the step."""
    kinds = CORE_STEPS.get(step[0])
    if kinds is None or len(kinds) != len(step) - 1:
        return False
    for kind, value in zip(kinds, step[1:], strict=True):
        if kind in ("pe", "word"):
            if type(value) is not int or not 0 <= value <= (vcpus - 1 if kind == "pe" else M64):
                return False
        elif value not in kind.split():
            return False
    return True


def _number(value: Any) -> Any:
    """What a string such as "0x1f" stands for; anything else as it is."""
    if isinstance(value, str) and value.startswith("0x") and len(value) <= 18:
        try:
            return int(value, 16)
        except ValueError:
            return value
    return value


def _written(value: Any) -> Any:
    return hex(value) if type(value) is int and value > 9 else value


def _event_text(event: EventDefinition) -> str:
    """As `parse_event` reads it."""
    words = ["shared" if event.shared else "private"]
    if event.priority is Priority.CRITICAL:
        words.append("critical")
    if event.signalable:
        words.append("signalable")
    if event.interrupt is not None:
        words.append(f"interrupt={event.interrupt}")
    return f"{event.number:#x}:{','.join(words)}"
