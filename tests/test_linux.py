# SPDX-License-Identifier: Apache-2.0
"""Unmodified Debian kernels on machine qemu: SDEI is found, events arrive whatever the CPUs do, every count agrees.

The tests of mark `linux` are the short ones; `linux_full` are the long ones and the other combinations.
"""

from __future__ import annotations

import random
import time

import pytest

from sdeivirt.errors import NotRegisteredError
from sdeivirt.machine import ExitReason
from sdeivirt.sdei import EventDefinition, Priority
from sdeivirt.smccc.ids import Conduit

from .linux_support import CLIENT_EVENT, KERNELS, Linux, linux_marks

pytestmark = linux_marks

# Programs that watch their registers, one with and one without system calls, and fork and exec, on every CPU.
LOAD = (
    "for c in $(seq 0 {last}); do m=$(printf %x $((1<<c))); taskset $m regcheck 8 & taskset $m regcheck 8 syscall &"
    " taskset $m forkbench for 8 >/dev/null & done; wait"
)
SHORT = [
    pytest.param("bookworm", 2, Conduit.HVC, marks=pytest.mark.linux),
    pytest.param("newest", 2, Conduit.SMC, marks=pytest.mark.linux),
]
OTHERS = [
    pytest.param(kernel, vcpus, conduit, marks=pytest.mark.linux_full)
    for kernel in KERNELS
    for vcpus in (1, 2, 4)
    for conduit in Conduit
    if (kernel, vcpus, conduit) not in {("bookworm", 2, Conduit.HVC), ("newest", 2, Conduit.SMC)}
]


def inject_and_compare(linux: Linux, events: tuple[int, ...], count: int, chance: random.Random) -> None:
    """Inject one at a time, over all CPUs; then what was injected, completed, and counted by the guest is the same."""
    machine = linux.machine
    vcpus = machine.config.vcpus
    before = {event: linux.completed(event) for event in events}
    injected = {event: [0] * vcpus for event in events}
    for _ in range(count):
        event, vcpu = chance.choice(events), chance.randrange(vcpus)
        injected[event][vcpu] += 1
        # One at a time for each: a second signal of a pending event is one event with it.
        linux.wait_until(lambda e=event, v=vcpu: not _pending(linux, e, v), "an event is delivered")  # type: ignore[misc]
        machine.inject(event, vcpu)

    def all_done() -> bool:
        return all(
            linux.completed(event)[i] == before[event][i] + injected[event][i] for event in events for i in range(vcpus)
        )

    linux.wait_until(all_done, "all events are completed")
    assert sum(handler.coalesced for event in machine.status().events for handler in event.handlers) == 0
    counts = linux.counts()
    for event in events:
        for i in range(vcpus):
            assert counts[event, i]["total"] == before[event][i] + injected[event][i], (event, i, counts)


def _pending(linux: Linux, event: int, vcpu: int) -> bool:
    sdei = linux.machine.firmware.sdei
    return sdei.pe(vcpu).handler_of(sdei.event(event)).pending


@pytest.mark.parametrize(("kernel", "vcpus", "conduit"), SHORT + OTHERS)
def test_events_arrive_in_every_state_and_no_register_is_lost(kernel: str, vcpus: int, conduit: Conduit) -> None:
    """Event 0 and a user-defined one, into CPUs that run programs, system calls, fork and exec beside it."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    with Linux(kernel, vcpus=vcpus, conduit=conduit) as linux:
        linux.booted()
        assert "sdei: SDEIv1.1 (0x4b564d) detected in firmware." in linux.sh("dmesg")
        linux.start_sh(LOAD.format(last=vcpus - 1))
        inject = random.Random(seed)
        machine = linux.machine
        # While the shell is busy only the host's side can be looked at.
        injected = {event: [0] * vcpus for event in (0, CLIENT_EVENT)}
        until = time.monotonic() + 6
        while time.monotonic() < until:
            event, vcpu = inject.choice((0, CLIENT_EVENT)), inject.randrange(vcpus)
            linux.wait_until(lambda e=event, v=vcpu: not _pending(linux, e, v), "an event is delivered")  # type: ignore[misc]
            machine.inject(event, vcpu)
            injected[event][vcpu] += 1
        code, output = linux.end_sh()
        assert code == 0
        assert output.count("regcheck: OK") == 2 * vcpus, output
        assert "MISMATCH" not in output
        linux.wait_until(lambda: all(linux.completed(e) == injected[e] for e in injected), "all events are completed")
        counts = linux.counts()
        assert {(e, i): counts[e, i]["total"] for e in injected for i in range(vcpus)} == {
            (e, i): injected[e][i] for e in injected for i in range(vcpus)
        }
        states = [sum(count[state] for count in counts.values()) for state in ("user", "kernel", "masked")]
        assert all(states), counts
        assert sum(states) == sum(map(sum, injected.values()))
        print(f"injected {injected}, user/kernel/masked {states}, {machine.details()}")


@pytest.mark.parametrize(
    ("kernel", "vcpus"),
    [pytest.param(k, v, marks=pytest.mark.linux_full) for k in KERNELS for v in (1, 2, 4)],
)
def test_ten_thousand_injections_are_counted_exactly(kernel: str, vcpus: int) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    with Linux(kernel, vcpus=vcpus) as linux:
        linux.booted()
        linux.sh("regcheck 30 >/tmp/one & regcheck 30 syscall >/tmp/two & true")
        inject_and_compare(linux, (0, CLIENT_EVENT), 10_000, random.Random(seed))
        linux.sh("wait; while pidof regcheck >/dev/null; do sleep 1; done; cat /tmp/one /tmp/two", 90)
        assert linux.sh("grep -c OK /tmp/one /tmp/two").split() == ["/tmp/one:1", "/tmp/two:1"]


@pytest.mark.linux
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_cpu_that_spins_with_interrupts_off_takes_an_event(kernel: str) -> None:
    with Linux(kernel) as linux:
        linux.booted()
        linux.start_sh("echo '1 30000' > /proc/sdei_client/spin")
        # The spin is over at the first event, so the guest answers only if one arrives.
        linux.wait_until(lambda: linux.machine.status().vcpus[1].power == "on", "CPU 1 is on")
        time.sleep(0.5)  # the client waits 50 ms before it masks; too early would be a missed case, not a failure
        linux.machine.inject(0, 1)
        assert linux.end_sh(20)[0] == 0
        assert linux.counts()[0, 1] == {"total": 1, "user": 0, "kernel": 0, "masked": 1}
        log = linux.sh("dmesg | tail -n 3")
        assert "CPU 1 spun with interrupts off, 1 events arrived meanwhile" in log
        # The guest signals as well: to the other CPU, and to itself.
        linux.sh("taskset 1 sh -c 'echo 1 > /proc/sdei_client/signal; echo 0 > /proc/sdei_client/signal'")
        linux.wait_until(lambda: linux.completed(0) == [1, 2], "both signals have been taken")
        assert linux.counts()[0, 0]["total"] == 1


@pytest.mark.linux
def test_the_client_in_the_layout_of_the_thread() -> None:
    with Linux(append="client.quiet=0") as linux:
        linux.booted()
        linux.machine.inject(CLIENT_EVENT, 1)
        linux.wait_until(lambda: linux.completed(CLIENT_EVENT)[1] == 1, "the event has been handled")
        report = linux.sh("dmesg | sed -n '/SDEI Event/,$p'")
        assert "=========== SDEI Event (CPU#1) ===========" in report
        assert "Event: 0000000040000010  Parameter: 00000000dabfdabf" in report
        for word in ("PC:", "PSTATE:", "SP:", "Regs:", "Context:"):
            assert word in report


@pytest.mark.parametrize(
    ("kernel", "cycles"),
    [
        pytest.param("bookworm", 8, marks=pytest.mark.linux),
        pytest.param("newest", 8, marks=pytest.mark.linux_full),
        pytest.param("bookworm", 100, marks=pytest.mark.linux_full),
        pytest.param("newest", 100, marks=pytest.mark.linux_full),
    ],
)
def test_cpus_go_off_line_and_on_line_while_events_are_injected(kernel: str, cycles: int) -> None:
    """Linux unregisters and masks on the way down, registers and unmasks on the way up: the service follows."""
    with Linux(kernel, vcpus=2) as linux:
        linux.booted()
        machine = linux.machine
        linux.start_sh(
            f"i=0; while [ $i -lt {cycles} ]; do i=$((i+1)); cd /sys/devices/system/cpu/cpu1;"
            " echo 0 > online || exit 1; echo 1 > online || exit 2; done"
        )
        offs = injections = 0
        deadline = time.monotonic() + 15 + 3 * cycles
        while linux.shell.busy:
            assert time.monotonic() < deadline, linux.text[-2000:]
            for vcpu in (0, 1):
                try:
                    machine.inject(0, vcpu)
                    injections += 1
                except NotRegisteredError:  # while it is off line
                    offs += 1
                # One event at a time: a storm of them leaves the guest no time for anything else.
                linux.wait_until(lambda v=vcpu: not _pending(linux, 0, v), "an event is delivered")  # type: ignore[misc]
        assert linux.end_sh()[0] == 0
        print(f"{injections} injections, {offs} refused")
        assert offs
        linux.wait_until(lambda: all(h.pending is False for h in machine.status().events[0].handlers), "all taken")
        assert linux.sh("cat /sys/devices/system/cpu/online").strip() == "0-1"
        status = machine.status()
        assert [pe.masked for pe in status.vcpus] == [False, False]
        assert all(handler.registered and handler.enabled for handler in status.events[0].handlers)
        for handler in status.events[0].handlers:
            assert handler.injected == handler.delivered + handler.coalesced + handler.dropped
        before = linux.completed(0)
        machine.inject(0, 1)
        linux.wait_until(lambda: linux.completed(0)[1] == before[1] + 1, "CPU 1 takes events again")


@pytest.mark.linux
def test_a_cpu_that_is_off_takes_nothing_and_the_rest_goes_on() -> None:
    shared = EventDefinition(0x4000_0020, shared=True, priority=Priority.CRITICAL)
    with Linux(events=(EventDefinition(CLIENT_EVENT), shared), client=f"0,{shared.number:#x}") as linux:
        linux.booted()
        linux.sh("echo 0 > /sys/devices/system/cpu/cpu1/online")
        status = linux.machine.status()
        assert [pe.power for pe in status.vcpus] == ["on", "off"]
        assert status.vcpus[1].masked
        for _ in range(5):
            done = _shared_done(linux, shared.number)
            linux.machine.inject(shared.number)
            linux.wait_until(lambda n=done: _shared_done(linux, shared.number) == n + 1, "CPU 0 takes it")  # type: ignore[misc]
        linux.sh("echo 1 > /sys/devices/system/cpu/cpu1/online")
        assert linux.sh("cat /sys/devices/system/cpu/online").strip() == "0-1"


def _shared_done(linux: Linux, event: int) -> int:
    (found,) = (one for one in linux.machine.status().events if one.number == event)
    return found.handlers[0].completed


@pytest.mark.parametrize(
    ("kernel", "run", "reason"),
    [
        pytest.param("bookworm", "poweroff", ExitReason.POWER_OFF, marks=pytest.mark.linux),
        pytest.param("bookworm", "reboot", ExitReason.RESET, marks=pytest.mark.linux),
        pytest.param("bookworm", "panic", ExitReason.PANIC, marks=pytest.mark.linux),
        pytest.param("newest", "panic panic=-1", ExitReason.PANIC, marks=pytest.mark.linux),
        pytest.param("newest", "reboot", ExitReason.RESET, marks=pytest.mark.linux_full),
        pytest.param("newest", "panic", ExitReason.PANIC, marks=pytest.mark.linux_full),
    ],
)
def test_how_runs_end(kernel: str, run: str, reason: ExitReason) -> None:
    with Linux(kernel, run=run) as linux:
        assert linux.ends(90).reason is reason


@pytest.mark.linux
def test_a_panic_that_is_only_quoted_ends_nothing() -> None:
    """People who work on panics print old logs, times and all."""
    with Linux() as linux:
        linux.booted()
        for words in ("Kernel panic - not syncing: told you", "---[ end Kernel panic - not syncing: told you ]---"):
            linux.sh(f"echo; echo '[    1.234567] {words}'")
        linux.machine.inject(0, 1)
        linux.wait_until(lambda: linux.completed(0)[1] == 1, "the guest goes on")
        linux.start_sh("poweroff -f")
        assert linux.ends().reason is ExitReason.POWER_OFF


@pytest.mark.linux
def test_a_panic_with_a_reboot_restarts_where_that_is_wanted() -> None:
    with Linux(append="panic=1", restart=True) as linux:
        linux.booted()
        linux.start_sh("echo c > /proc/sysrq-trigger")
        linux.booted(count=2)
        linux.machine.inject(0, 1)
        linux.wait_until(lambda: linux.completed(0)[1] == 1, "the second kernel takes events")


@pytest.mark.linux
def test_a_reboot_starts_over_with_a_clean_service() -> None:
    with Linux(run="serve", restart=True) as linux:
        linux.booted()
        linux.machine.inject(0, 1)
        linux.wait_until(lambda: linux.completed(0)[1] == 1, "the first kernel takes events")
        linux.start_sh("reboot -f")
        linux.booted(count=2)
        linux.machine.inject(0, 1)
        linux.wait_until(lambda: linux.completed(0)[1] == 2, "the second kernel takes events")
        assert linux.counts()[0, 1]["total"] == 1


@pytest.mark.linux_full
@pytest.mark.parametrize("cpu", ["neoverse-n1", "max,pauth-impdef=on"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_other_cpus(kernel: str, cpu: str) -> None:
    with Linux(kernel, options={"cpu": cpu}, vcpus=4) as linux:
        linux.booted()
        inject_and_compare(linux, (0, CLIENT_EVENT), 500, random.Random(1))


@pytest.mark.linux_full
def test_two_vms_at_once() -> None:
    with Linux("bookworm") as one, Linux("newest") as two:
        one.booted()
        two.booted()
        for i in range(200):
            one.machine.inject(0, i % 2)
            two.machine.inject(CLIENT_EVENT, i % 2)
            one.wait_until(lambda n=i + 1: sum(one.completed(0)) == n, "the first takes its own")  # type: ignore[misc]
            two.wait_until(lambda n=i + 1: sum(two.completed(CLIENT_EVENT)) == n, "the second takes its own")  # type: ignore[misc]
        assert one.counts()[0, 0]["total"] == two.counts()[CLIENT_EVENT, 0]["total"] == 100
        assert one.counts()[CLIENT_EVENT, 0]["total"] == two.counts()[0, 0]["total"] == 0


@pytest.mark.linux_full
def test_polling_serves_as_well() -> None:
    with Linux("bookworm", options={"poll": True}) as linux:
        linux.booted()
        inject_and_compare(linux, (0, CLIENT_EVENT), 2000, random.Random(2))
