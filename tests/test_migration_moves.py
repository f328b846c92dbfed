# SPDX-License-Identifier: Apache-2.0
"""A guest that moves between real processes: nothing is lost, nothing comes twice, every state survives."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from sdeivirt.control.client import VmClient
from sdeivirt.errors import MovedError, StateError, UnknownVmError
from sdeivirt.guests import guest_path
from sdeivirt.machine import ExitReason, MachineConfig, open_machine

from .control_support import LIMIT, VmProcess
from .machine_support import KINDS, NEEDS_QEMU, Console
from .mover_support import SCENES, Injector, Mover, Row, check_counts, check_scene, parse_scenes

pytestmark = [pytest.mark.machine, pytest.mark.process]

# What an injection into a VM raises whose guest has just left: it was not carried out.
GONE = (MovedError, StateError, UnknownVmError)


class Hops:
    """Moves a guest from one process to the next, each of which has been started beforehand."""

    def __init__(self, mover: Mover, runtime: Path) -> None:
        self._mover = mover
        self._runtime = runtime
        self._names = (f"vm{n}" for n in itertools.count(1))
        self._next = self._place()

    def _place(self) -> VmProcess:
        name = next(self._names)
        vm = VmProcess(self._runtime, "--incoming", f"unix:{self._runtime}/{name}.sock", name=name)
        self._mover.vms.append(vm)
        return vm

    def move(self, **options: object) -> dict[str, object]:
        """To the next; how the migration went."""
        mover, vm = self._mover, self._next
        self._next = self._place()
        vm.wait_err("waiting for a guest")
        with VmClient(mover.name) as client:
            client.execute("migrate", uri=f"unix:{self._runtime}/{vm.path.name}.sock", **options)
            status = client.wait_migration()
            while status.active:
                status = client.wait_migration()
        assert status.status == "completed", status
        mover.moved_to(vm)
        return {"downtime": status.downtime, "passes": status.passes}


@pytest.mark.parametrize("kind", KINDS)
def test_a_move_under_load(kind: str, runtime: Path) -> None:
    """Memory, registers, handlers and injections: three moves in a row."""
    moves(kind, runtime, 3, 150)


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("unicorn", marks=pytest.mark.campaign),
        pytest.param("qemu", marks=[NEEDS_QEMU, pytest.mark.qemu, pytest.mark.nightly]),
    ],
)
def test_fifty_moves_there_and_back(kind: str, runtime: Path) -> None:
    moves(kind, runtime, 50, 40)


def moves(kind: str, runtime: Path, count: int, injections: int) -> None:
    with Mover(runtime, kind, "case=load signals=1 rate=64") as mover:
        mover.until("MOVER runs")
        hops = Hops(mover, runtime)
        with Injector(lambda: mover.name, seed=count, moved=GONE) as injector:
            before = mover.beat()
            for hop in range(1, count + 1):
                injector.reaches(hop * injections)
                print(hop, hops.move())
                after = mover.beat()
                after.goes_on_from(before)
                before = after
            injector.reaches((count + 1) * injections)
        status, beat = mover.settle()
        check_counts(status, beat, injector.injected)
        mover.quit()


@pytest.fixture(scope="module")
def scenes() -> dict[str, list[Row]]:
    with open_machine("unicorn", MachineConfig(bootargs="case=list")) as machine:
        console = Console(machine)
        machine.load(guest_path("mover"))
        machine.start()
        assert machine.wait(LIMIT).reason is ExitReason.POWER_OFF
        return parse_scenes(console.text)


# On qemu some of them, and all at night: states move in the same sections there.
CELLS = [
    *(pytest.param(number, "unicorn", id=f"{number}-unicorn") for number in range(1, SCENES + 1)),
    *(
        pytest.param(
            number,
            "qemu",
            id=f"{number}-qemu",
            marks=[NEEDS_QEMU, pytest.mark.qemu, *([] if number in (2, 5) else [pytest.mark.nightly])],
        )
        for number in range(1, SCENES + 1)
    ),
]


@pytest.mark.parametrize(("number", "kind"), CELLS)
def test_every_cell_of_the_state_table_moves(
    kind: str, number: int, runtime: Path, scenes: dict[str, list[Row]]
) -> None:
    """Handlers in every state, nested, pending on PEs that are masked or off: as they were, and they end well."""
    name = f"cells.{number}"
    with Mover(runtime, kind, f"case={name}") as mover:
        mover.until("MOVER holds")
        with mover.client() as client:
            before = client.status()
        Hops(mover, runtime).move()
        with mover.client() as client:
            after = client.status()
        check_scene(scenes[name], after)
        assert (after.vcpus, after.events) == (before.vcpus, before.events)
        mover.type_in("g")
        mover.ended()
