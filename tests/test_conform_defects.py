# SPDX-License-Identifier: Apache-2.0
"""The conformance suite's guest against firmware that has a defect: the test of the rule that is broken fails.

Also what the guest does where no host answers it.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sdeivirt.conformance import Verdict, run_suite
from sdeivirt.conformance.runner import suite_config
from sdeivirt.conformance.tap import TapParser
from sdeivirt.cpu import RegisterView
from sdeivirt.guests import program_path
from sdeivirt.machine import ExitReason, MachineConfig, open_machine
from sdeivirt.sdei.bindings import Bindings
from sdeivirt.sdei.calls import Calls
from sdeivirt.sdei.delivery import Delivery
from sdeivirt.sdei.model import Pe
from sdeivirt.smccc.ids import Conduit

from .machine_support import DEADLINE, NEEDS_QEMU, engine

pytestmark = pytest.mark.machine

INVALID, OUT_OF_RESOURCE = -2, -10
Patch = pytest.MonkeyPatch


def _refuses_event_0(patch: Patch) -> None:
    """EVENT_SIGNAL is refused whatever the target's state is."""
    patch.setattr(Calls, "event_signal", lambda *_: INVALID)


def _loses_at_unmask(patch: Patch) -> None:
    """What waits for a masked PE is dropped by PE_UNMASK."""
    original = Calls.pe_unmask

    def pe_unmask(self: Calls, pe: Pe, view: RegisterView) -> object:
        for handler in list(pe.handlers.values()):
            if handler.pending:
                self._delivery.drop(handler)
        return original(self, pe, view)

    patch.setattr(Calls, "pe_unmask", pe_unmask)


def _takes_the_wrong_vbar(patch: Patch) -> None:
    """A relative address counts from VBAR_EL1 of the PE that registers."""
    original = Calls.event_register

    def event_register(self: Calls, pe: Pe, view: RegisterView) -> object:
        result = original(self, pe, view)
        event = self._known.get(view.x[1])
        if result == 0 and event is not None and pe.handler_of(event).relative:
            view.fetch_rest()
            handler = pe.handler_of(event)
            handler.entry, handler.relative = handler.entry + view.vbar_el1(), False
        return result

    patch.setattr(Calls, "event_register", event_register)


def _binds_once(patch: Patch) -> None:
    """A slot that was released cannot be used again."""
    bind, release = Bindings.bind, Bindings.release
    released: set[int] = set()

    def releasing(self: Bindings, event: object) -> int:
        released.add(id(self))
        return release(self, event)  # type: ignore[arg-type]

    patch.setattr(Bindings, "release", releasing)
    patch.setattr(Bindings, "bind", lambda self, intid: OUT_OF_RESOURCE if id(self) in released else bind(self, intid))


def _keeps_registrations(patch: Patch) -> None:
    """A handler that ends while it is unregister-pending still counts as registered."""
    original = Delivery.leave

    def leave(self: Delivery, pe: Pe, failed: bool = False) -> bytes:
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(Delivery, "released", lambda *_: None)
            return original(self, pe, failed)

    patch.setattr(Delivery, "leave", leave)


def _forgets_a_register(patch: Patch) -> None:
    """EVENT_CONTEXT(17) gives x16."""
    original = Calls.event_context

    def event_context(self: Calls, pe: Pe, view: RegisterView) -> object:
        view.x[1] -= view.x[1] == 17
        return original(self, pe, view)

    patch.setattr(Calls, "event_context", event_context)


@pytest.mark.parametrize(
    ("defect", "test", "why"),
    [
        (_refuses_event_0, "state.private.enabled.dispatch", "EVENT_SIGNAL of event 0 is refused"),
        (_loses_at_unmask, "mask.private", "the handler was entered 1 times instead of 2"),
        (_loses_at_unmask, "signal.masked", "was entered 0 times instead of 1"),
        (_binds_once, "bind.after-release.ppi", "no interrupt can be bound after the release"),
        (_binds_once, "bind.slots.spi", "binding after a slot was released returned OUT_OF_RESOURCE"),
        (_keeps_registrations, "state.bound-ppi.unregister-pending.complete", "cannot go on, cleaning up after state."),
        (_forgets_a_register, "context.values", "EVENT_CONTEXT(17) is "),
        (_takes_the_wrong_vbar, "entry.relative-shared", ""),  # where the PE ends up is chance
    ],
)
def test_a_defect_is_a_failure(
    defect: Callable[[Patch], None], test: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = run_suite("unicorn", MachineConfig(vcpus=4), conduits=[Conduit.HVC], only=[test])
    assert [record.verdict for record in sound.records()] == [Verdict.PASS]
    defect(monkeypatch)
    (record,) = run_suite("unicorn", MachineConfig(vcpus=4), conduits=[Conduit.HVC], only=[test], limit=10).records()
    assert (record.id, record.verdict) == (test, Verdict.FAIL)
    assert why in record.message


# The guest knows the interrupts of 16 bound events. It forgot the one that it had bound last whenever these were 16.
@pytest.mark.qemu
@NEEDS_QEMU
def test_bound_interrupts_are_raised_without_a_host() -> None:
    parser = TapParser()

    def read(data: bytes) -> None:
        parser.feed(data)

    config = suite_config(MachineConfig(vcpus=2, bootargs="only=state.bound-ppi.", engine=engine("qemu")))
    with open_machine("qemu", config) as machine:
        machine.console = read
        machine.load(program_path("conform"))
        machine.start()
        assert machine.wait(4 * DEADLINE).reason is ExitReason.POWER_OFF
    stream = parser.stream
    assert stream is not None
    assert stream.done
    assert len(stream.records) == 60
    assert {record.id: record.message for record in stream.records.values() if record.verdict is not Verdict.PASS} == {}
