# SPDX-License-Identifier: Apache-2.0
"""Whatever goes wrong at whatever step of a migration: one side runs the guest, unharmed, and the other does not.

Two real processes with a bad network between them, which carries out one fault at one
frame. Which steps there are, a migration without a fault has told.
"""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from .control_support import LIMIT
from .frame_proxy import BACK, FORTH, Act, Direction, Fault, Part
from .machine_support import KINDS, NEEDS_QEMU
from .migration_scene import HERE, NOWHERE, STALL, THERE, Scene, Watch

pytestmark = [pytest.mark.machine, pytest.mark.process]

# In the order in which they come; SECT 0 is the first section.
STEPS: tuple[tuple[Direction, str], ...] = (
    *((FORTH, "HELO"), (BACK, "HELO"), (FORTH, "CONF"), (BACK, "REDY"), (FORTH, "PAGE"), (FORTH, "ZERO")),
    *((FORTH, "PASS"), (FORTH, "ERLY"), (FORTH, "DESC"), (FORTH, "SECT"), (FORTH, "END"), (BACK, "LOAD")),
    *((FORTH, "CMIT"), (BACK, "RUNS"), (FORTH, "LETG"), (BACK, "DONE")),
)
ORDER = {step: number for number, step in enumerate(STEPS)}
END, LOAD, CMIT = ORDER[FORTH, "END"], ORDER[BACK, "LOAD"], ORDER[FORTH, "CMIT"]
CONF, RUNS = ORDER[FORTH, "CONF"], ORDER[BACK, "RUNS"]
PARTED = (Act.CUT, Act.HALF_CLOSE, Act.STALL, Act.KILL_SOURCE, Act.KILL_DESTINATION)
SILENT = (Act.STALL, Act.HALF_CLOSE, Act.DROP)  # what only time can tell
KILLS = (Act.KILL_SOURCE, Act.KILL_DESTINATION)
ENDED = 128 + signal.SIGTERM


def outcomes(fault: Fault) -> set[str]:
    """Where the guest may be found afterwards. Never on both sides; nowhere only if the side that had it was ended."""
    at = ORDER[fault.direction, fault.kind]
    through = fault.part is Part.AFTER
    if fault.act is Act.END_SOURCE:  # which cancels, unless it is too late for that
        return {NOWHERE, THERE} if at < CMIT else {THERE}
    if fault.act is Act.END_DESTINATION:  # all that follows DESC comes at once, and may be there before it ends
        return {HERE} if at < ORDER[FORTH, "DESC"] else {HERE, NOWHERE} if at < RUNS else {NOWHERE}
    if fault.act is Act.KILL_SOURCE:
        if at < END or (at == END and not through):
            return {NOWHERE}
        return {THERE}
    if fault.act is Act.KILL_DESTINATION:
        if at < RUNS or (at == RUNS and not through):
            return {HERE}
        return {HERE, NOWHERE} if at == RUNS else {NOWHERE}
    if (at == END and through and fault.act is Act.HALF_CLOSE) or (at in (END, LOAD) and fault.act is Act.DUPLICATE):
        return {HERE, THERE}  # all that is needed gets through, and what is wrong comes too late
    if at < LOAD:
        return {HERE}
    if at == LOAD:
        # The source has heard it, and has said CMIT before it noticed or not.
        return {HERE, THERE} if fault.act in PARTED and through else {HERE}
    return {THERE}


def is_patient(fault: Fault) -> bool:
    """Whether the destination waits for the next who comes: as long as it does not know what machine to build."""
    if fault.act in (Act.KILL_DESTINATION, Act.END_DESTINATION):
        return False
    at = ORDER[fault.direction, fault.kind]
    return at < CONF or (at == CONF and fault.part is not Part.AFTER and fault.act is not Act.DUPLICATE)


def go_through(kind: str, runtime: Path, fault: Fault) -> None:
    """A migration with a fault, and all that has to hold then and afterwards."""
    patient = is_patient(fault)
    stall = STALL if fault.act in SILENT else LIMIT
    with Scene(runtime, fault, kind) as scene:
        mover = scene.mover
        injector = scene.injector(random.randrange(1 << 32))
        if fault.act in (*KILLS, Act.END_SOURCE):
            # Of an injection that is under way when its VM goes, nobody could tell whether it was carried out.
            with injector:
                injector.reaches(20)
            with Watch("vm", "there"):
                status = scene.migrate(stall)
                found = scene.where(patient)
        else:
            with Watch("vm", "there"), injector:
                injector.reaches(20)
                status = scene.migrate(stall)
                scene.proxy.wait_fault()
                scene.proxy.close()  # a destination that is still waiting for a word gets to know
                found = scene.where(patient)
                if found == NOWHERE:
                    injector.give_up()
                else:
                    if found == THERE:
                        mover.moved_to(scene.there)
                    injector.reaches(injector.count + 20)
        assert found in outcomes(fault), (found, status)
        if found == HERE:
            assert status is not None
            assert status.status == "failed"
            assert status.error
        look_at_the_processes(scene, fault, found, patient)
        if found == THERE and fault.act in (*KILLS, Act.END_SOURCE):
            mover.moved_to_after_kill(scene.there)
        if found != NOWHERE:
            scene.finish(injector)


def look_at_the_processes(scene: Scene, fault: Fault, found: str, patient: bool) -> None:
    """Which of the two have ended, how, and what they said."""
    here, there = scene.here, scene.there
    if patient and fault.act is not Act.END_SOURCE:  # which may get further yet
        assert there.process.poll() is None
    if found == HERE and not patient:
        scene.stays({Act.KILL_DESTINATION: -signal.SIGKILL, Act.END_DESTINATION: ENDED}.get(fault.act, 1))
    elif found == THERE and fault.act not in KILLS:
        assert here.wait() == 0
        assert "its guest has moved to" in here.err
    elif found == NOWHERE and fault.act is Act.END_SOURCE:
        assert here.wait() == ENDED
        if not patient:
            assert there.wait() == 1
            assert "error: the guest did not come: " in there.err
    elif found == NOWHERE and fault.act is Act.END_DESTINATION:
        assert there.wait() == ENDED
        assert here.wait() == 0
        assert "its guest has moved to" in here.err


def every_fault() -> Iterator[Fault]:
    for direction, kind in STEPS:
        for act in Act:
            for part in Part if act in PARTED else (Part.BEFORE,):
                yield Fault(act, direction, kind, 0, part, bit=77)


def steps_on(kind: str) -> set[tuple[Direction, str]]:
    """Of RAM that QEMU has never touched nothing is said; and nothing comes early of a machine that stands at once."""
    return set(STEPS) - {(FORTH, "ZERO" if kind == "qemu" else "ERLY")}


FAULTS = [each for each in every_fault() if (each.direction, each.kind) in steps_on("unicorn")]
QEMU_FAULTS = [each for each in every_fault() if (each.direction, each.kind) in steps_on("qemu")]
# A sample for every day: on the fast machine each act, on the other one the steps of the hand-over.
SAMPLE = [
    Fault(Act.CUT, BACK, "HELO"),
    Fault(Act.CUT, FORTH, "PAGE", part=Part.PAYLOAD),
    Fault(Act.FLIP_PAYLOAD, FORTH, "PAGE", bit=12345),
    Fault(Act.FLIP_HEADER, FORTH, "SECT", 3, bit=9),
    Fault(Act.DROP, FORTH, "SECT", 1),
    Fault(Act.DUPLICATE, FORTH, "ZERO"),
    Fault(Act.STALL, FORTH, "SECT", part=Part.HEADER),
    Fault(Act.HALF_CLOSE, FORTH, "END", part=Part.AFTER),
    Fault(Act.KILL_SOURCE, FORTH, "PASS", part=Part.AFTER),
    Fault(Act.KILL_DESTINATION, FORTH, "SECT", 2, part=Part.PAYLOAD),
    Fault(Act.END_SOURCE, FORTH, "PAGE"),
    Fault(Act.END_SOURCE, FORTH, "CMIT"),
    Fault(Act.END_DESTINATION, FORTH, "SECT", 1),
    Fault(Act.CUT, BACK, "LOAD", part=Part.AFTER),
    Fault(Act.CUT, FORTH, "CMIT", part=Part.AFTER),
    Fault(Act.KILL_DESTINATION, FORTH, "CMIT"),
    Fault(Act.DROP, BACK, "RUNS"),
    Fault(Act.DROP, BACK, "DONE"),
]
QEMU_SAMPLE = [
    Fault(Act.KILL_DESTINATION, FORTH, "ERLY", 2),
    Fault(Act.CUT, FORTH, "ERLY", part=Part.PAYLOAD),
    Fault(Act.KILL_DESTINATION, BACK, "REDY", 1),
    Fault(Act.CUT, BACK, "REDY", 1),
    Fault(Act.KILL_DESTINATION, FORTH, "END"),
    Fault(Act.KILL_SOURCE, FORTH, "END", part=Part.AFTER),
    Fault(Act.CUT, BACK, "LOAD"),
    Fault(Act.KILL_SOURCE, BACK, "LOAD", part=Part.AFTER),
    Fault(Act.CUT, FORTH, "CMIT"),
    Fault(Act.KILL_DESTINATION, FORTH, "CMIT", part=Part.AFTER),
    Fault(Act.END_DESTINATION, FORTH, "CMIT"),
    Fault(Act.CUT, BACK, "RUNS"),
    Fault(Act.KILL_DESTINATION, BACK, "RUNS"),
    Fault(Act.KILL_SOURCE, FORTH, "LETG"),
    Fault(Act.CUT, BACK, "DONE"),
]


def on_machines(unicorn: list[Fault], qemu: list[Fault]) -> list[object]:
    """Parameters: kind of machine, fault."""
    return [
        *(pytest.param("unicorn", fault, id=f"unicorn: {fault}") for fault in unicorn),
        *(pytest.param("qemu", fault, id=f"qemu: {fault}", marks=[NEEDS_QEMU, pytest.mark.qemu]) for fault in qemu),
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_the_steps_are_those_of_a_migration(kind: str, runtime: Path) -> None:
    with Scene(runtime, kind=kind) as scene:
        injector = scene.injector(random.randrange(1 << 32))
        with Watch("vm", "there"), injector:
            injector.reaches(20)
            status = scene.migrate()
            assert status is not None
            assert status.status == "completed"
            scene.mover.moved_to(scene.there)
            injector.reaches(injector.count + 20)
        assert {(seen.direction, seen.kind.strip()) for seen in scene.proxy.seen} == steps_on(kind)
        scene.finish(injector)


@pytest.mark.parametrize(("kind", "fault"), on_machines(SAMPLE, QEMU_SAMPLE))
def test_one_side_has_the_guest(kind: str, fault: Fault, runtime: Path) -> None:
    go_through(kind, runtime, fault)


@pytest.mark.nightly
@pytest.mark.parametrize(("kind", "fault"), on_machines(FAULTS, QEMU_FAULTS))
def test_every_fault_at_every_step(kind: str, fault: Fault, runtime: Path) -> None:
    go_through(kind, runtime, fault)
