# SPDX-License-Identifier: Apache-2.0
"""The handler state machine, DEN0054C 6.1, walked cell by cell through real calls.

`CELLS` below is the specification's table, written down a second time. A test brings a handler into
a state by calls alone, makes one more call, and looks at the result and at EVENT_STATUS. Around
each step the rig compares everything with the oracle too.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from sdeivirt.fuzz.oracle import DENIED, INVALID, PENDING, SUCCESS
from sdeivirt.sdei.events import EventDefinition, Priority
from sdeivirt.sdei.states import CELLS as REAL_CELLS
from sdeivirt.sdei.states import TABLE, Op, State, to_markdown

from .fake_view import Rig

# R running, E enabled, G registered; the values are EVENT_STATUS's.
STATES = {"---": 0b000, "--G": 0b001, "-EG": 0b011, "REG": 0b111, "R-G": 0b101, "R--": 0b100}

# For each call and state: the result, and the next state where it is another one.
# "done" is a COMPLETE that succeeds: nothing is returned, x0 is the interrupted one again.
# "value" is a context register of the interrupted code.
CELLS = """
                              ---         --G         -EG         REG          R-G          R--
    event_register            ok --G      denied      denied      denied       denied       denied
    event_enable              denied      ok -EG      ok          ok           ok REG       denied
    event_disable             denied      ok          ok --G      ok R-G       ok           denied
    event_unregister          denied      ok ---      ok ---      pending R--  pending R--  pending
    event_routing_set         denied      ok          denied      denied       denied       denied
    interrupt_release         ok          denied      denied      denied       denied       denied
    event_context             denied      denied      denied      value        value        value
    event_complete            denied      denied      denied      done -EG     done --G     done ---
    event_complete_and_resume denied      denied      denied      done -EG     done --G     done ---
    event_signal              invalid     ok          ok REG      ok           ok           invalid
    event_status              status      status      status      status       status       status
    event_get_info            ok          ok          ok          ok           ok           ok
    reset                     ok          ok ---      ok ---      denied R--   denied R--   denied
    other_reset               ok          ok          ok          ok           ok           ok
    pe_mask                   changed     changed     changed     changed      changed      changed
    pe_unmask                 ok          ok          ok          ok           ok           ok
    dispatch                  no          no          yes REG     no           no           no
"""
# Where TF-A is stricter: EVENT_SIGNAL wants an enabled handler.
CELLS_TF_A = {("event_signal", "--G"): "invalid", ("event_signal", "R-G"): "invalid"}

PRIVATE, CRITICAL, SHARED, SHARED_CRITICAL = 5, 6, 0x20, 0x21
PPI, SPI = 21, 41
INTERRUPTED_X0 = 0x1234
EVENTS = [
    EventDefinition(PRIVATE),
    EventDefinition(CRITICAL, priority=Priority.CRITICAL),
    EventDefinition(SHARED, shared=True),
    EventDefinition(SHARED_CRITICAL, shared=True, priority=Priority.CRITICAL),
]
KINDS = {
    "event 0": 0,
    "private": PRIVATE,
    "critical": CRITICAL,
    "shared": SHARED,
    "shared critical": SHARED_CRITICAL,
    "dynamic private": PPI,
    "dynamic shared": SPI,
}
DYNAMIC = ("dynamic private", "dynamic shared")
SHARED_KINDS = ("shared", "shared critical", "dynamic shared")


def cells() -> list[tuple[str, str, str]]:
    """(call, state, what follows) of the table above."""
    found = []
    for line in CELLS.strip().splitlines()[1:]:
        call, *words = line.split()
        texts: list[str] = []
        for word in words:
            if word in STATES:
                texts[-1] += f" {word}"
            else:
                texts.append(word)
        found += [(call, state, text) for state, text in zip(STATES, texts, strict=True)]
    return found


class Subject:
    """One event of one kind, brought into a state on PE 0."""

    def __init__(self, kind: str, policy: str, state: str) -> None:
        self.kind = kind
        self.shared = kind in SHARED_KINDS
        self.rig = Rig(2, EVENTS, policy, unmasked=True)
        self.event = KINDS[kind]
        if kind in DYNAMIC:
            self.event = self.rig.call(0, "interrupt_bind", KINDS[kind])
            assert self.event > 0
        self.reach(state)
        assert self.status() == STATES[state]

    def call(self, name: str, *arguments: int, pe: int = 0) -> int:
        return self.rig.call(pe, name, *arguments)

    def status(self, pe: int = 0) -> int:
        return self.call("event_status", self.event, pe=pe)

    def reach(self, state: str) -> None:
        """By the shortest way: register, enable, enter, disable, unregister."""
        if state == "---":
            return
        assert self.call("event_register", self.event, 0x4010_0000, 0x77, 0, 0) == SUCCESS
        if state == "--G":
            return
        assert self.call("event_enable", self.event) == SUCCESS
        if state == "-EG":
            return
        self.rig.set_registers(0, x0=INTERRUPTED_X0)
        self.raise_event()
        assert self.rig.look(0) == self.event
        if state == "R-G":
            assert self.call("event_disable", self.event) == SUCCESS
        elif state == "R--":
            assert self.call("event_unregister", self.event) == PENDING

    def raise_event(self) -> str:
        return self.rig.inject(self.event, None if self.shared else 0)

    def do(self, call: str, pe: int = 0) -> int:
        """Make the table's call about the event, from a PE."""
        arguments = {
            "event_register": (self.event, 0x4020_0000, 0, 0, 0),
            "event_routing_set": (self.event, 1, 0),
            "event_context": (0,),
            "event_complete": (0,),
            "event_complete_and_resume": (0x4008_0280,),
            "event_signal": (self.event, 0),
            "event_get_info": (self.event, 0),
        }
        if call.endswith("reset"):
            call = "shared_reset" if self.shared == (call == "reset") else "private_reset"
            return self.call(call, pe=pe)
        if call in ("pe_mask", "pe_unmask"):
            return self.call(call, pe=pe)
        return self.call(call, *arguments.get(call, (self.event,)), pe=pe)

    def applies(self, call: str) -> bool:
        """Whether the call's row is about this kind of event; otherwise it is INVALID in every state."""
        if call == "event_routing_set":
            return self.shared
        if call == "interrupt_release":
            return self.kind in DYNAMIC
        return call != "event_signal" or self.event == 0

    def results(self, call: str) -> dict[str, int]:
        """x0 for the words of the table."""
        return {
            "ok": int(self.shared) if call == "event_get_info" else SUCCESS,
            "denied": DENIED,
            "invalid": INVALID,
            "pending": PENDING,
            "value": INTERRUPTED_X0,
            "done": INTERRUPTED_X0,
            "changed": 1,
        }

    def released_by(self, call: str, outcome: str, state: str) -> bool:
        """Whether a dynamic event's binding is gone: by RELEASE, or by a SHARED_RESET when nothing is registered."""
        shared_reset = call == ("reset" if self.shared else "other_reset")
        return (
            self.kind in DYNAMIC
            and outcome == "ok"
            and (call == "interrupt_release" or (shared_reset and state == "---"))
        )


@pytest.fixture(params=["kvm", "tf-a"])
def policy(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("call", "state", "text"), cells(), ids=lambda value: str(value).replace(" ", ">"))
def test_cell(kind: str, policy: str, call: str, state: str, text: str) -> None:
    subject = Subject(kind, policy, state)
    if policy == "tf-a":
        text = CELLS_TF_A.get((call, state), text)
    if not subject.applies(call):
        text = "invalid"
    if kind == "dynamic private" and call == "other_reset" and state != "---":
        text = "denied"  # SHARED_RESET cannot release the binding of a private event that is registered
    outcome, _, next_state = text.partition(" ")

    if call == "dispatch":
        subject.raise_event()
        entered = subject.rig.look(0)
        assert (entered == subject.event) == (outcome == "yes")
    else:
        # A signal that is delivered at once leaves the event number in x0, which for event 0 is SUCCESS too.
        results = subject.results(call)
        results["status"] = STATES[state]
        assert subject.do(call) == results[outcome]

    if subject.released_by(call, outcome, next_state or state):
        assert subject.status() == (INVALID if policy == "kvm" else 0)
    else:
        assert subject.status() == STATES[next_state or state]


@pytest.mark.parametrize("kind", SHARED_KINDS)
@pytest.mark.parametrize(("call", "state", "text"), cells(), ids=lambda value: str(value).replace(" ", ">"))
def test_cell_of_a_shared_event_from_another_pe(kind: str, policy: str, call: str, state: str, text: str) -> None:
    """A shared event has one state: another PE sees and changes it, but COMPLETE and CONTEXT are not its own."""
    subject = Subject(kind, policy, state)
    if not subject.applies(call):
        text = "invalid"
    if call in ("event_context", "event_complete", "event_complete_and_resume"):
        text = "denied"
    outcome, _, next_state = text.partition(" ")
    if call == "dispatch":
        subject.raise_event()
        assert (subject.rig.look(1) == subject.event) == (outcome == "yes")
    else:
        results = subject.results(call)
        results["status"] = STATES[state]
        assert subject.do(call, pe=1) == results[outcome]
    if not subject.released_by(call, outcome, next_state or state):
        assert subject.status(pe=1) == subject.status(pe=0) == STATES[next_state or state]


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("kind", ["event 0", "private", "critical", "dynamic private"])
def test_a_private_event_has_a_state_on_each_pe(kind: str, policy: str, state: str) -> None:
    subject = Subject(kind, policy, state)
    assert subject.status(pe=1) == 0
    assert subject.call("event_register", subject.event, 0x4020_0000, 0, 0, 0, pe=1) == SUCCESS
    assert subject.call("private_reset", pe=1) == SUCCESS
    assert subject.status(pe=0) == STATES[state]


def test_unbound_numbers(policy: str) -> None:
    """A dynamic number that nothing is bound to: unknown under kvm; under tf-a known, unregistered, unusable."""
    subject = Subject("event 0", policy, "---")
    for subject.event, shared in ((0x4000_1000, 0), (0x4000_2000, 1)):
        unregistered = INVALID if policy == "kvm" else DENIED
        for call in ("event_register", "event_enable", "event_disable", "event_unregister"):
            assert subject.do(call) == unregistered
        for call in ("event_routing_set", "interrupt_release", "event_signal"):
            assert subject.do(call) == INVALID
        assert subject.do("event_status") == (INVALID if policy == "kvm" else 0)
        assert subject.do("event_get_info") == (INVALID if policy == "kvm" else shared)


# -- the literal table in the package


def test_the_table_is_complete_and_closed() -> None:
    assert {state for state, _ in TABLE} == set(STATES.values()) == {int(state) for state in State}
    assert set(TABLE) == {(state, op) for state in STATES.values() for op in Op}
    assert {cell.state for cell in TABLE.values()} <= set(STATES.values())


def test_every_state_is_reached_and_left() -> None:
    reached, ahead = set(), [0]
    while ahead:
        state = ahead.pop()
        if state not in reached:
            reached.add(state)
            ahead += [TABLE[state, op].state for op in Op if TABLE[state, op].status != DENIED]
    assert reached == set(STATES.values())


def test_a_refused_call_changes_nothing() -> None:
    assert all(cell.state == state for (state, _), cell in TABLE.items() if cell.status == DENIED)


def test_the_table_says_what_ours_says() -> None:
    names = {
        "event_register": Op.REGISTER,
        "event_enable": Op.ENABLE,
        "event_disable": Op.DISABLE,
        "event_unregister": Op.UNREGISTER,
        "event_routing_set": Op.ROUTING_SET,
        "interrupt_release": Op.RELEASE,
        "event_context": Op.CONTEXT,
        "event_complete": Op.COMPLETE,
        "dispatch": Op.DISPATCH,
    }
    codes = {"ok": 0, "value": 0, "done": 0, "yes": 0, "no": DENIED, "denied": DENIED, "pending": PENDING}
    for call, state, text in cells():
        if call in names:
            outcome, _, next_state = text.partition(" ")
            cell = TABLE[STATES[state], names[call]]
            assert (cell.status, cell.state) == (codes[outcome], STATES[next_state or state]), (call, state)


def test_the_indexed_form_is_the_same_table() -> None:
    for (state, op), cell in TABLE.items():
        assert REAL_CELLS[op][state] == cell


def test_the_documentation_has_the_table() -> None:
    text = (Path(__file__).parents[1] / "docs" / "states.md").read_text("utf-8")
    assert to_markdown() in text
