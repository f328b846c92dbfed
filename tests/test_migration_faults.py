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

from sdeivirt.control.client import VmClient
from sdeivirt.errors import MovedError, SdeivirtError, StateError, UnknownVmError
from sdeivirt.migration.status import MigrationStatus

from .control_support import VmProcess, wait_until
from .frame_proxy import BACK, FORTH, Act, Direction, Fault, FrameProxy, Part
from .mover_support import Injector, Mover, check_counts, is_quiet

pytestmark = [pytest.mark.machine, pytest.mark.process]

STALL = 3000  # ms; less would be a fault by itself where the host is busy
GONE = (MovedError, StateError, UnknownVmError)

# In the order in which they come; SECT 0 is the first section.
STEPS: tuple[tuple[Direction, str], ...] = (
    *((FORTH, "HELO"), (BACK, "HELO"), (FORTH, "CONF"), (BACK, "REDY"), (FORTH, "PAGE"), (FORTH, "ZERO")),
    *((FORTH, "PASS"), (FORTH, "DESC"), (FORTH, "SECT"), (FORTH, "END"), (BACK, "LOAD"), (FORTH, "CMIT")),
    *((BACK, "RUNS"), (FORTH, "LETG"), (BACK, "DONE")),
)
ORDER = {step: number for number, step in enumerate(STEPS)}
END, LOAD, CMIT = ORDER[FORTH, "END"], ORDER[BACK, "LOAD"], ORDER[FORTH, "CMIT"]
REDY, RUNS = ORDER[BACK, "REDY"], ORDER[BACK, "RUNS"]
PARTED = (Act.CUT, Act.HALF_CLOSE, Act.STALL, Act.KILL_SOURCE, Act.KILL_DESTINATION)
KILLS = (Act.KILL_SOURCE, Act.KILL_DESTINATION)

HERE, THERE, NOWHERE = "here", "there", "nowhere"


def outcomes(fault: Fault) -> set[str]:
    """Where the guest may be found afterwards. Never on both sides; nowhere only if the side that had it was killed."""
    at = ORDER[fault.direction, fault.kind]
    through = fault.part is Part.AFTER
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


class Scene:
    """A guest under load, a place for it to go to, and the network between."""

    def __init__(self, runtime: Path, fault: Fault | None, seed: int = 1) -> None:
        self.mover = Mover(runtime, "unicorn", "case=load signals=1 rate=16", vcpus=2, memory="16M")
        self.there = VmProcess(runtime, "--incoming", f"unix:{runtime}/there.sock", name="there")
        self.mover.vms.append(self.there)
        self.here = self.mover.vm
        self.mover.until("MOVER runs")
        self.there.wait_err("waiting for a guest")
        self.before = self.mover.beat()
        self.proxy = FrameProxy(f"unix:{runtime}/there.sock", f"unix:{runtime}/proxy.sock", fault, self.kill)

    def kill(self, side: str) -> None:
        vm = self.here if side == "source" else self.there
        vm.signal(signal.SIGKILL)
        vm.process.wait()

    def migrate(self) -> MigrationStatus | None:
        """How it went, as the source says; None if the source was killed before it could."""
        try:
            with VmClient("vm") as client:
                client.execute("migrate", **{"uri": self.proxy.uri, "stall-limit": STALL})
                status = client.wait_migration()
                while status.active:
                    status = client.wait_migration()
                return status
        except UnknownVmError:
            return None

    def running(self, vm: VmProcess) -> bool:
        """Whether a side runs the guest."""
        try:
            with VmClient(vm.path.name, 5.0) as client:
                return bool(client.execute("query-status")["running"])
        except SdeivirtError:
            return False

    def where(self, patient: bool) -> str:
        """Which side has it, when all is settled. Both is a failure at any time.

        `patient`: the destination does not mind, and waits for another guest.
        """

        def settled() -> bool:
            here, there = self.running(self.here), self.running(self.there)
            assert not (here and there), "the guest runs on both sides"
            ended = [vm for vm in (self.here, self.there) if vm.process.poll() is not None]
            if patient and (here or self.here in ended):
                return True
            return bool(ended) and (here or there or len(ended) == 2)

        wait_until(settled, f"{self.here.err} {self.there.err} {self.proxy.text()}")
        if self.running(self.here):
            return HERE
        return THERE if self.running(self.there) else NOWHERE

    def __enter__(self) -> Scene:
        return self

    def __exit__(self, *error: object) -> None:
        print(self.proxy.text())
        self.proxy.close()
        self.mover.__exit__(*error)  # type: ignore[arg-type]


def go_through(runtime: Path, fault: Fault, seed: int) -> None:
    with Scene(runtime, fault) as scene:
        mover = scene.mover
        # Before it knows what machine to build, a destination waits for the next who comes.
        patient = ORDER[fault.direction, fault.kind] < REDY and fault.act is not Act.KILL_DESTINATION
        injector = Injector(lambda: mover.name, seed=seed, vcpus=2, moved=GONE)
        if fault.act in KILLS:
            status = scene.migrate()
            found = scene.where(patient)
        else:
            with injector:
                injector.reaches(20)
                status = scene.migrate()
                scene.proxy.wait_fault()
                scene.proxy.close()  # a destination that is still waiting for a word gets to know
                found = scene.where(patient)
                if found == THERE:
                    mover.moved_to(scene.there)
                injector.reaches(injector.count + 20)
        assert found in outcomes(fault), (found, status)
        if patient:
            assert scene.there.process.poll() is None
        if found == HERE and not patient:
            assert scene.there.wait() in (1, -signal.SIGKILL)
            assert status is not None
            assert status.status == "failed"
            assert status.error
            if fault.act is not Act.KILL_DESTINATION:
                assert "error: the guest did not come" in scene.there.err
                assert not scene.there.path.exists()
                assert not (runtime / "there.sock").exists()
        elif found == THERE:
            if fault.act in KILLS:
                mover.moved_to_after_kill(scene.there)
            else:
                assert scene.here.wait() == 0
                assert "its guest has moved to" in scene.here.err
        elif found == NOWHERE:
            assert fault.act in KILLS
            return
        after = mover.beat()
        after.goes_on_from(scene.before)
        if fault.act not in KILLS:
            mover.type_in("s")
            with mover.client() as client:
                wait_until(lambda: is_quiet(client.status()), "events are still pending")
                beat = mover.beat()
                check_counts(client.status(), beat, injector.injected)
        mover.quit()


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where VMs have their directories, for this process's clients as well."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path


def every_fault() -> Iterator[Fault]:
    for direction, kind in STEPS:
        for act in Act:
            for part in Part if act in PARTED else (Part.BEFORE,):
                yield Fault(act, direction, kind, 0, part, bit=77)


FAULTS = list(every_fault())
# A sample for every day: each act, and the steps where most can go wrong.
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
    Fault(Act.CUT, BACK, "LOAD", part=Part.AFTER),
    Fault(Act.KILL_SOURCE, BACK, "LOAD"),
    Fault(Act.CUT, FORTH, "CMIT"),
    Fault(Act.CUT, FORTH, "CMIT", part=Part.AFTER),
    Fault(Act.STALL, FORTH, "CMIT"),
    Fault(Act.KILL_DESTINATION, FORTH, "CMIT"),
    Fault(Act.KILL_SOURCE, FORTH, "CMIT", part=Part.AFTER),
    Fault(Act.CUT, BACK, "RUNS"),
    Fault(Act.DROP, BACK, "RUNS"),
    Fault(Act.CUT, FORTH, "LETG"),
    Fault(Act.DROP, BACK, "DONE"),
]


def test_the_steps_are_those_of_a_migration(runtime: Path) -> None:
    with Scene(runtime, None) as scene:
        status = scene.migrate()
        assert status is not None
        assert status.status == "completed"
        assert {(seen.direction, seen.kind.strip()) for seen in scene.proxy.seen} == set(STEPS)
        scene.mover.moved_to(scene.there)
        scene.mover.beat().goes_on_from(scene.before)
        scene.mover.quit()


@pytest.mark.parametrize("fault", SAMPLE, ids=str)
def test_one_side_has_the_guest(fault: Fault, runtime: Path) -> None:
    go_through(runtime, fault, seed=random.randrange(1 << 32))


@pytest.mark.nightly
@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_every_fault_at_every_step(fault: Fault, runtime: Path) -> None:
    go_through(runtime, fault, seed=random.randrange(1 << 32))
