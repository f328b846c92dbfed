# SPDX-License-Identifier: Apache-2.0
"""Any state that a service can get into goes through registers, and the copy behaves as the original."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import rule, run_state_machine_as_test

from sdeivirt.errors import RegisterError
from sdeivirt.firmware import Firmware
from sdeivirt.registers import Registers
from sdeivirt.registers.sections import from_sections, to_sections
from sdeivirt.sdei import EventDefinition, Sdei

from .fake_view import NoPower
from .register_support import ROUTES, Service, check_invariants, copied, lived, lives, steps
from .test_sdei_stateful import AFFINITIES, EVENTS, PES, Walk

POLICIES = ["kvm", "tf-a"]


@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=40, deadline=None)
@given(life=lives)
def test_every_state_is_one_that_can_be(policy: str, life: list[Any]) -> None:
    """The checker itself, on states that the service got into by itself; and its kicks are enough."""
    service = Service(policy)
    kicks = 0
    for step in life:
        service.take(step)
        kicks |= service.fw.take_kicks()
        if step[0] == "look":
            kicks &= ~(1 << step[1])
    for pe in range(len(service.cpus)):
        if kicks >> pe & 1 and service.up(pe):
            service.look(pe)
    check_invariants(service.sdei, kicks | service.fw.take_kicks())


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("route", ROUTES)
@settings(max_examples=40, deadline=None)
@given(life=lives, then=st.lists(steps, min_size=10, max_size=30), seed=st.integers(0, 1 << 32))
def test_a_copy_is_the_same_and_stays_so(policy: str, route: str, life: list[Any], then: list[Any], seed: int) -> None:
    service = lived(policy, life)
    copy = copied(service, policy, route, random.Random(seed))
    kicks = copy.fw.take_kicks()
    check_invariants(copy.sdei, kicks)
    assert copy.after() == service.after()
    for step in then:
        assert service.take(step) == copy.take(step), step
        assert service.after() == copy.after(), step


@pytest.mark.parametrize("route", ["dump", "json", "sections"])
@settings(max_examples=30, deadline=None)
@given(life=lives, other=lives, seed=st.integers(0, 1 << 32))
def test_what_was_there_before_is_gone(route: str, life: list[Any], other: list[Any], seed: int) -> None:
    """A state is taken over whole, also by a service that has lived."""
    service, target = lived("kvm", life), lived("kvm", other)
    ROUTES[route](service.sdei, target.sdei, random.Random(seed))
    assert Registers(target.sdei).dump() == Registers(service.sdei).dump()
    check_invariants(target.sdei, target.fw.take_kicks())


@settings(max_examples=150, deadline=None)
@given(life=lives, data=st.data())
def test_what_was_set_is_read(life: list[Any], data: st.DataObject) -> None:
    """Any values of any registers: they are refused and nothing changes, or are what the registers read."""
    service = lived("kvm", life)
    registers = Registers(service.sdei)
    before = registers.dump()
    infos = registers.list()
    chosen = data.draw(st.lists(st.sampled_from(infos), min_size=1, max_size=4, unique=True))
    wanted = {}
    for info in chosen:
        value = registers.get(info.id, info.vcpu)
        kind = data.draw(st.sampled_from(["flip", "small", "any"]))
        if kind == "flip":
            value ^= 1 << data.draw(st.integers(0, info.size - 1))
        elif kind == "small":
            value = data.draw(st.integers(0, 15))
        else:
            value = data.draw(st.integers(0, (1 << info.size) - 1))
        wanted[info] = value
    try:
        with registers.transaction() as transaction:
            for info, value in wanted.items():
                transaction.set(info.id, value, info.vcpu)
    except RegisterError:
        assert registers.dump() == before
        assert service.fw.take_kicks() == 0
    else:
        for info, value in wanted.items():
            if info.name != "SDEI_LAYOUT":  # an older one is read, and written anew
                assert registers.get(info.id, info.vcpu) == value, info
        check_invariants(service.sdei, service.fw.take_kicks())


class MovingWalk(Walk):
    """The walk against the oracle, which is moved now and then: the oracle notices nothing, nor do the PEs."""

    @rule(route=st.sampled_from([*ROUTES]), seed=st.integers(0, 1 << 32), really=st.integers(0, 2))
    def move(self, route: str, seed: int, really: int) -> None:
        if really:
            return
        rig = self.rig
        old = rig.fw
        new = Firmware(AFFINITIES, NoPower(), events=EVENTS, policy=old.sdei.policy, features=old.pes[0].features)
        new.freeze()
        ROUTES[route](old.sdei, new.sdei, random.Random(seed))
        new.sdei.observe(rig.log)
        rig.fw = new
        rig.kicked.clear()  # those that the old one had asked for went with it
        rig.check()
        assert len(PES) == len(new.pes)


class TfaMovingWalk(MovingWalk):
    policy = "tf-a"


WALKS = {"kvm": MovingWalk, "tf-a": TfaMovingWalk}


@pytest.mark.parametrize("policy", WALKS)
def test_walk(policy: str) -> None:
    run_state_machine_as_test(WALKS[policy], settings=settings(max_examples=12, stateful_step_count=80, deadline=None))


@pytest.mark.campaign
@pytest.mark.parametrize("policy", WALKS)
def test_long_walk(policy: str) -> None:
    run_state_machine_as_test(
        WALKS[policy], settings=settings(max_examples=100, stateful_step_count=200, deadline=None)
    )


def test_512_vcpus_and_a_thousand_events() -> None:
    """Only what exists is listed and written down."""
    events = [EventDefinition(0x4001_0000 + n, shared=n % 2 == 0) for n in range(1000)]
    source, target = Sdei(512, events), Sdei(512, events)
    registers = Registers(source)
    assert max(len(registers.list(vcpu)) for vcpu in (0, 511)) < 20
    assert all(len(vcpu) == 1 for vcpu in registers.dump().vcpus)  # its affinity
    with registers.transaction() as transaction:
        for vcpu in range(512):
            transaction.set(registers.find("SDEI_POWER"), 1, vcpu)
            transaction.set(registers.find("SDEI_HANDLER.0x40010003"), 0x4010_0000, vcpu)
            transaction.set(registers.find("SDEI_STATE.0x40010003"), 3, vcpu)
    assert all(len(vcpu) == 4 for vcpu in registers.dump().vcpus)
    from_sections(target, to_sections(source))
    assert Registers(target).dump() == registers.dump()
    assert target.event(0x4001_0003).registrations == 512
