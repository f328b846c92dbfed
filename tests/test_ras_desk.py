# SPDX-License-Identifier: Apache-2.0
"""Reports of errors on their way into a real guest: acknowledged, late, refused, queued, lost, and why."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeoutError

import pytest

from sdeivirt.errors import (
    BusyError,
    EnvironmentUnavailableError,
    EventRunningError,
    NotRegisteredError,
    StateError,
    TimeLimitError,
    UnknownVcpuError,
    UsageError,
)
from sdeivirt.machine import ExitReason, MachineConfig, open_machine
from sdeivirt.machine.qemu.options import QemuOptions
from sdeivirt.ras.line import MAX_QUEUE
from sdeivirt.ras.outcome import REASONS, Outcome
from sdeivirt.ras.sources import STANDARD_EVENTS, STANDARD_SOURCES, ErrorSource
from sdeivirt.sdei import EventDefinition

from .control_support import LIMIT
from .machine_support import NEEDS_QEMU
from .ras_support import ADDRESS, CORRECTED, FATAL, PRIVATE_EVENT, Ghes, block

pytestmark = [pytest.mark.machine, pytest.mark.qemu, NEEDS_QEMU]

SHORT = 0.2  # seconds: for a report of which it is known that it will not be acknowledged
NORMAL, CRITICAL = 0, 1
VERSION_1 = tuple(ErrorSource(source.number, source.event, ghes=1) for source in STANDARD_SOURCES)


@pytest.fixture
def ghes() -> Iterator[Ghes]:
    with Ghes() as one:
        yield one


def acknowledged(outcome: Outcome, source: int = 0, vcpu: int | None = 0) -> None:
    assert (outcome.source, outcome.event) == (source, STANDARD_SOURCES[source].event)
    assert (outcome.outcome, outcome.vcpu) == ("acknowledged", vcpu)


def is_late(later: Future[Outcome], reason: str) -> None:
    with pytest.raises(TimeLimitError) as caught:
        later.result(LIMIT)
    assert REASONS[reason] in caught.value.message
    assert caught.value.exit_code == 124


# -- read


@pytest.mark.parametrize("sources", [STANDARD_SOURCES, VERSION_1], ids=["version 2", "version 1"])
def test_the_guest_reads_what_was_reported_and_acknowledges_it(sources: tuple[ErrorSource, ...]) -> None:
    with Ghes(error_sources=sources) as ghes:
        for i in range(20):
            outcome = ghes.machine.inject_error(block(ADDRESS + i * 0x1000), i % 2)
            acknowledged(outcome, i % 2)
            assert outcome.seconds is not None
            assert 0 < outcome.seconds < LIMIT
        expected = [f"address {ADDRESS + i * 0x1000:#x}, CPU#0, number {i // 2 + 1}" for i in range(20)]
        assert [line.split("bytes, ")[1] for line in ghes.taken(20)] == expected
        for number in (NORMAL, CRITICAL):
            source = ghes.source(number)
            assert (source.reported, source.acknowledged, source.lost, source.queued) == (10, 10, 0, 0)
            assert (source.state, source.block_status) == ("", 0)
        ghes.ends_well()


def test_a_critical_source_is_not_held_up_by_a_normal_one(ghes: Ghes) -> None:
    ghes.key("h")
    first = ghes.machine.inject_error_later(CORRECTED, NORMAL)
    ghes.console.shows("holding: CPU#0")
    ghes.comes_to("delivered")
    second = ghes.machine.inject_error_later(CORRECTED, CRITICAL)
    ghes.comes_to("delivered", CRITICAL)  # inside of the first
    assert not first.done()
    assert not second.done()
    ghes.press("g")
    acknowledged(first.result(LIMIT), NORMAL)
    acknowledged(second.result(LIMIT), CRITICAL)
    assert [line[:6] for line in ghes.taken(2)] == ["GHES 1", "GHES 0"]


def test_a_private_event_goes_to_the_vcpu_that_is_named() -> None:
    with Ghes(vcpus=2, events=(PRIVATE_EVENT,), error_sources=(ErrorSource(3, PRIVATE_EVENT.number),)) as ghes:
        for vcpu in (1, 0, 1):
            outcome = ghes.machine.inject_error(CORRECTED, 3, vcpu)
            assert (outcome.outcome, outcome.vcpu) == ("acknowledged", vcpu)
        assert ghes.machine.inject_error(CORRECTED, 3).vcpu == 0
        assert [line.split(", ")[3] for line in ghes.taken(4)] == ["CPU#1", "CPU#0", "CPU#1", "CPU#0"]
        with pytest.raises(UnknownVcpuError):
            ghes.machine.inject_error(CORRECTED, 3, 2)


def test_many_sources_at_once_from_many_threads() -> None:
    sources = tuple(ErrorSource(2 * i, 0x300 + i, ghes=1 + i % 2) for i in range(8))
    events = tuple(EventDefinition(0x300 + i, shared=i % 3 != 0) for i in range(8))
    wrong: list[BaseException] = []
    with Ghes(vcpus=2, events=events, error_sources=sources) as ghes:

        def report(source: ErrorSource) -> None:
            try:
                for _ in range(25):
                    outcome = ghes.machine.inject_error(CORRECTED, source.number, limit=LIMIT)
                    assert (outcome.source, outcome.outcome) == (source.number, "acknowledged")
            except BaseException as error:
                wrong.append(error)

        threads = [threading.Thread(target=report, args=(source,)) for source in sources for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMIT)
        assert not wrong
        assert {each.acknowledged for each in ghes.machine.status().error_sources} == {50}


# -- not read


@pytest.mark.parametrize(
    ("key", "state", "back"),
    [("l", "unread", "a"), ("m", "masked", "u"), ("d", "disabled", "e"), ("h", "delivered", "")],
)
def test_what_is_not_acknowledged_is_not_overwritten_and_is_told_why(
    ghes: Ghes, key: str, state: str, back: str
) -> None:
    ghes.key(key)
    is_late(ghes.machine.inject_error_later(CORRECTED, limit=SHORT), state)
    assert ghes.source().state == state
    with pytest.raises(BusyError, match=REASONS[state]):
        ghes.machine.inject_error(block(ADDRESS + 0x1000), when_busy="fail")
    is_late(ghes.machine.inject_error_later(block(ADDRESS + 0x1000), limit=SHORT), state)
    assert not ghes.taken()
    source = ghes.source()
    assert (source.reported, source.acknowledged, source.queued) == (1, 0, 0)
    if back:
        ghes.key(back)
    else:
        ghes.press("g")
    if state == "unread":
        # The guest is told of it once more as soon as there is another report.
        acknowledged(ghes.machine.inject_error(block(ADDRESS + 0x1000)))
        assert [line.split(", ")[2] for line in ghes.taken(2)] == [f"address {ADDRESS + i:#x}" for i in (0, 0x1000)]
    else:
        ghes.comes_to("")
        assert ghes.source().acknowledged == 1


def test_a_late_acknowledgement_counts(ghes: Ghes) -> None:
    ghes.key("l")
    later = ghes.machine.inject_error_later(CORRECTED, limit=LIMIT)
    ghes.comes_to("unread")
    ghes.key("A")
    acknowledged(later.result(LIMIT))
    assert ghes.source().acknowledged == 1


def test_acknowledged_is_enough_where_the_handler_does_not_end(ghes: Ghes) -> None:
    ghes.key("k")
    outcome = ghes.machine.inject_error(CORRECTED, limit=SHORT)
    acknowledged(outcome)
    assert outcome.seconds is None
    second = ghes.machine.inject_error_later(block(ADDRESS + 0x1000), limit=LIMIT)
    ghes.comes_to("delivered")  # the handler of the first still runs
    assert not second.done()
    ghes.press("g")
    acknowledged(second.result(LIMIT))
    assert len(ghes.taken(2)) == 2


def test_an_event_that_is_taken_back_is_injected_again(ghes: Ghes) -> None:
    ghes.key("m")
    later = ghes.machine.inject_error_later(CORRECTED, limit=LIMIT)
    ghes.comes_to("masked")
    assert ghes.machine.cancel(STANDARD_SOURCES[0].event)
    ghes.comes_to("masked")
    ghes.key("u")
    acknowledged(later.result(LIMIT))


def test_a_guest_that_registers_anew_gets_what_it_has_not_read(ghes: Ghes) -> None:
    ghes.key("d")
    later = ghes.machine.inject_error_later(CORRECTED, limit=LIMIT)
    ghes.comes_to("disabled")
    ghes.key("x")
    ghes.comes_to("unregistered")
    with pytest.raises(NotRegisteredError):
        ghes.machine.inject_error(CORRECTED)
    ghes.key("y")
    acknowledged(later.result(LIMIT))


def test_a_vcpu_that_goes_off_and_comes_back_gets_what_it_has_not_read() -> None:
    with Ghes(vcpus=2, events=(PRIVATE_EVENT,), error_sources=(ErrorSource(0, PRIVATE_EVENT.number),)) as ghes:
        ghes.key("l")
        later = ghes.machine.inject_error_later(CORRECTED, 0, 1, limit=LIMIT)
        ghes.comes_to("unread")
        ghes.key("0")
        ghes.comes_to("offline")
        with pytest.raises(NotRegisteredError, match="vCPU 1 is off"):
            ghes.machine.inject_error(CORRECTED, 0, 1)
        ghes.key("a")
        ghes.key("1")
        outcome = later.result(LIMIT)
        assert (outcome.outcome, outcome.vcpu) == ("acknowledged", 1)


@pytest.mark.parametrize(("hold", "free", "waits"), [("m", "u", "masked"), ("d", "e", "disabled")])
def test_an_event_that_is_lost_after_the_time_is_over_is_injected_again(
    ghes: Ghes, hold: str, free: str, waits: str
) -> None:
    ghes.key(hold)
    is_late(ghes.machine.inject_error_later(CORRECTED, limit=SHORT), waits)
    assert ghes.machine.cancel(STANDARD_SOURCES[0].event)
    ghes.comes_to(waits)
    if hold == "d":
        ghes.key("x")
        ghes.key("y")
    else:
        ghes.key(free)
    ghes.when(lambda: ghes.source().acknowledged == 1)


def test_a_shared_event_whose_pe_is_turned_off_in_the_handler_is_injected_again() -> None:
    with Ghes(vcpus=2, bootargs="route=1") as ghes:
        ghes.key("o")
        later = ghes.machine.inject_error_later(CORRECTED, limit=LIMIT)
        ghes.comes_to("offline")  # pending once more
        ghes.key("a")
        ghes.key("1")
        acknowledged(later.result(LIMIT), vcpu=1)
        assert len(ghes.taken(1)) == 1


# -- ways


def test_the_time_limit_of_a_report_begins_when_it_is_made(ghes: Ghes) -> None:
    ghes.key("m")
    ghes.machine.inject_error(CORRECTED, when_busy="queue")  # it has no limit, and all others are behind it
    late = [ghes.machine.inject_error_later(block(ADDRESS + 0x1000 * i), limit=SHORT) for i in (1, 2)]
    for each in late:
        is_late(each, "masked")
    ghes.key("u")
    ghes.when(lambda: ghes.source().acknowledged == 1)
    acknowledged(ghes.machine.inject_error(block(ADDRESS + 0x3000)))
    assert [line.split(", ")[2] for line in ghes.taken(2)] == [f"address {ADDRESS + i:#x}" for i in (0, 0x3000)]


def test_queued_reports_outlast_their_vcpu(caplog: pytest.LogCaptureFixture) -> None:
    with Ghes(vcpus=2, events=(PRIVATE_EVENT,), error_sources=(ErrorSource(0, PRIVATE_EVENT.number),)) as ghes:
        ghes.key("l")
        for i in range(4):
            ghes.machine.inject_error(block(ADDRESS + 0x1000 * i), 0, 1, when_busy="queue")
        ghes.comes_to("unread")
        ghes.key("0")
        ghes.key("A")
        ghes.comes_to("offline")
        assert ghes.source().queued == 3
        ghes.key("a")
        acknowledged_by_0 = ghes.machine.inject_error(block(ADDRESS + 0x8000), 0, 0)  # the other vCPU need not wait
        assert (acknowledged_by_0.outcome, acknowledged_by_0.vcpu) == ("acknowledged", 0)
        ghes.key("1")
        ghes.when(lambda: ghes.source().acknowledged == 5)
        places = [line.split(", ")[2] for line in ghes.taken(5)]
        assert places == [f"address {ADDRESS + i * 0x1000:#x}" for i in (0, 8, 1, 2, 3)]
        assert ghes.source().lost == 0
        assert not caplog.records


def test_queued_reports_go_one_after_the_other(ghes: Ghes) -> None:
    ghes.key("h")
    for i in range(5):
        outcome = ghes.machine.inject_error(block(ADDRESS + i * 0x1000), when_busy="queue")
        assert outcome == Outcome(0, STANDARD_SOURCES[0].event, "queued")
    ghes.comes_to("delivered")
    assert (ghes.source().queued, ghes.source().reported) == (4, 1)
    ghes.press("g")
    ghes.when(lambda: ghes.source().acknowledged == 5)
    assert [line.split(", ")[2] for line in ghes.taken(5)] == [f"address {ADDRESS + i * 0x1000:#x}" for i in range(5)]


def test_only_so_many_can_be_queued(ghes: Ghes) -> None:
    ghes.key("h")
    for _ in range(MAX_QUEUE):
        ghes.machine.inject_error(CORRECTED, when_busy="queue")
    with pytest.raises(StateError, match="wait already"):
        ghes.machine.inject_error(CORRECTED, when_busy="queue")
    ghes.machine.stop()
    ghes.machine.wait(LIMIT)


def test_where_no_thread_can_be_started_the_next_report_tries_again(
    ghes: Ghes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", cannot)
        with pytest.raises(EnvironmentUnavailableError, match="new thread"):
            ghes.machine.inject_error(CORRECTED)
    acknowledged(ghes.machine.inject_error(CORRECTED))
    assert ghes.source().reported == 1


def test_what_was_called_off_takes_no_room(ghes: Ghes) -> None:
    ghes.key("h")
    first = ghes.machine.inject_error_later(CORRECTED, limit=LIMIT)
    ghes.comes_to("delivered")
    assert all(ghes.machine.inject_error_later(CORRECTED, limit=LIMIT).cancel() for _ in range(MAX_QUEUE))
    assert ghes.source().queued == 0
    last = ghes.machine.inject_error_later(CORRECTED, limit=LIMIT)
    ghes.press("g")
    acknowledged(first.result(LIMIT))
    acknowledged(last.result(LIMIT))


def test_a_report_that_still_waits_can_be_called_off(ghes: Ghes) -> None:
    ghes.key("h")
    first = ghes.machine.inject_error_later(CORRECTED, limit=LIMIT)
    ghes.comes_to("delivered")
    assert not first.cancel()  # the guest has been told
    second = ghes.machine.inject_error_later(block(ADDRESS + 0x1000), limit=LIMIT)
    assert second.cancel()
    third = ghes.machine.inject_error_later(block(ADDRESS + 0x2000), limit=LIMIT)
    ghes.press("g")
    acknowledged(first.result(LIMIT))
    acknowledged(third.result(LIMIT))
    with pytest.raises(CancelledError):
        second.result(0)
    assert [line.split(", ")[2] for line in ghes.taken(2)] == [f"address {ADDRESS + i:#x}" for i in (0, 0x2000)]


def test_a_paused_guest_gets_it_when_it_goes_on(ghes: Ghes) -> None:
    ghes.machine.pause()
    is_late(ghes.machine.inject_error_later(CORRECTED, limit=SHORT), "paused")
    assert ghes.source().reported == 0
    assert ghes.source().state == ""
    later = ghes.machine.inject_error_later(CORRECTED, limit=LIMIT)
    assert (ghes.source().state, ghes.source().queued) == ("paused", 1)
    with pytest.raises(FutureTimeoutError):
        later.result(SHORT)
    ghes.machine.resume()
    acknowledged(later.result(LIMIT))


def test_reporters_that_change_their_minds_while_others_meddle() -> None:
    """Whatever is called off, taken back, paused or late: what was reported is acknowledged in the end."""
    wrong: list[BaseException] = []
    done = threading.Event()
    with Ghes(vcpus=2) as ghes:

        def report(seed: int) -> None:
            chance = random.Random(seed)
            try:
                for _ in range(40):
                    later = ghes.machine.inject_error_later(
                        CORRECTED, chance.randrange(2), limit=chance.choice([0.001, 0.01, LIMIT])
                    )
                    if chance.random() < 0.4:
                        later.cancel()
                    with contextlib.suppress(CancelledError, TimeLimitError):
                        assert later.result(LIMIT).outcome == "acknowledged"
            except BaseException as error:
                wrong.append(error)

        def meddle() -> None:
            chance = random.Random(1)
            while not done.wait(0.002):
                with contextlib.suppress(EventRunningError):
                    chance.choice([ghes.machine.cancel, ghes.machine.inject])(chance.choice(STANDARD_SOURCES).event)
                if chance.random() < 0.1:
                    ghes.machine.pause()
                    ghes.machine.resume()

        meddler = threading.Thread(target=meddle)
        reporters = [threading.Thread(target=report, args=(seed,)) for seed in range(4)]
        for thread in (meddler, *reporters):
            thread.start()
        for thread in reporters:
            thread.join()
        done.set()
        meddler.join()
        assert not wrong
        for number in (NORMAL, CRITICAL):
            assert ghes.machine.inject_error(CORRECTED, number).outcome == "acknowledged"
            source = ghes.source(number)
            assert source.reported == source.acknowledged > 1
            assert (source.lost, source.queued, source.state) == (0, 0, "")


# -- ends


def test_a_fatal_error_panics_the_guest_and_ends_the_run(ghes: Ghes) -> None:
    outcome = ghes.machine.inject_error(FATAL)
    assert (outcome.outcome, outcome.vcpu, outcome.seconds) == ("panicked", 0, None)
    assert ghes.machine.wait(LIMIT).reason is ExitReason.PANIC
    assert [source.state for source in ghes.machine.status().error_sources] == ["panicked", "panicked"]
    with pytest.raises(StateError):
        ghes.machine.inject_error(CORRECTED)


def test_others_are_told_that_the_guest_has_panicked_before_it_read_theirs() -> None:
    with Ghes(bootargs="route=0") as ghes:
        ghes.key("h")
        fatal = ghes.machine.inject_error_later(FATAL, CRITICAL)
        ghes.comes_to("delivered", CRITICAL)
        other = ghes.machine.inject_error_later(CORRECTED, NORMAL)
        ghes.comes_to("busy", NORMAL)
        ghes.press("g")
        assert fatal.result(LIMIT).outcome == "panicked"
        with pytest.raises(StateError, match="panicked"):
            other.result(LIMIT)


@pytest.mark.parametrize("restart", [False, True])
def test_a_panic_that_resets_at_once_is_still_one(restart: bool) -> None:
    with Ghes(bootargs="panic=reset", restart=restart) as ghes:
        assert ghes.machine.inject_error(FATAL).outcome == "panicked"
        if restart:
            ghes.ready(2)
            source = ghes.source()
            assert (source.state, source.reported, source.acknowledged, source.lost) == ("", 1, 1, 0)
            acknowledged(ghes.machine.inject_error(CORRECTED))
        else:
            assert ghes.machine.wait(LIMIT).reason is ExitReason.PANIC


def test_a_guest_that_reboots_is_waited_for_where_that_is_asked() -> None:
    with Ghes(bootargs="panic=reset", restart=True) as ghes:
        fatal = ghes.machine.inject_error_later(FATAL)
        later = ghes.machine.errors.submit(CORRECTED, limit=LIMIT, wait_ready=True)
        hasty = ghes.machine.inject_error_later(block(ADDRESS + 0x1000), limit=LIMIT)
        assert fatal.result(LIMIT).outcome == "panicked"
        with pytest.raises(StateError):
            hasty.result(LIMIT)
        acknowledged(later.result(LIMIT))


def test_a_reset_makes_an_end_of_what_was_not_read() -> None:
    with Ghes(restart=True) as ghes:
        ghes.key("h")
        inside = ghes.machine.inject_error_later(CORRECTED, limit=LIMIT)
        ghes.comes_to("delivered")
        waiting = ghes.machine.inject_error_later(CORRECTED, limit=LIMIT)
        ghes.press("r")
        with pytest.raises(StateError, match="reset before it had acknowledged"):
            inside.result(LIMIT)
        with pytest.raises(StateError, match="reset before the error was reported"):
            waiting.result(LIMIT)
        ghes.ready(2)
        source = ghes.source()
        assert (source.state, source.block_status) == ("", 0)
        assert (source.reported, source.acknowledged, source.lost, source.queued) == (1, 0, 1, 0)
        acknowledged(ghes.machine.inject_error(CORRECTED))
        source = ghes.source()
        assert (source.reported, source.acknowledged, source.lost) == (2, 1, 1)


def test_what_was_read_before_a_reset_was_acknowledged() -> None:
    with Ghes(restart=True) as ghes:
        ghes.key("k")
        inside = ghes.machine.inject_error_later(CORRECTED, limit=LIMIT)
        ghes.console.shows("holding: CPU#0")
        ghes.press("r")
        acknowledged(inside.result(LIMIT))
        ghes.ready(2)
        assert (ghes.source().acknowledged, ghes.source().lost) == (1, 0)


def test_what_was_queued_and_is_not_reported_any_more_is_counted_and_told(caplog: pytest.LogCaptureFixture) -> None:
    with Ghes() as ghes:
        ghes.key("h")
        for _ in range(4):
            ghes.machine.inject_error(CORRECTED, when_busy="queue")
        ghes.comes_to("delivered")
        ghes.machine.stop()
        ghes.machine.errors.finish()
        assert (ghes.source().queued, ghes.source().lost) == (0, 3)
        (told,) = (record.getMessage() for record in caplog.records)
        assert told.startswith("4 errors that were queued for source 0: the VM has ended before the guest had read")


def test_the_end_of_the_machine_is_the_end_of_all_reports(ghes: Ghes) -> None:
    ghes.key("h")
    pending = [ghes.machine.inject_error_later(CORRECTED, limit=LIMIT) for _ in range(3)]
    ghes.comes_to("delivered")
    ghes.machine.stop()
    for later in pending:
        with pytest.raises(StateError, match="the VM has ended"):
            later.result(LIMIT)
    assert ghes.machine.status().state == "stopped"


def test_a_qemu_that_is_killed_takes_its_reports_along(ghes: Ghes) -> None:
    ghes.key("h")
    later = ghes.machine.inject_error_later(CORRECTED, limit=LIMIT)
    ghes.comes_to("delivered")
    os.kill(int(ghes.machine.details()["pid"]), signal.SIGKILL)
    with pytest.raises(StateError, match="the VM has ended"):
        later.result(LIMIT)
    with pytest.raises(EnvironmentUnavailableError):
        ghes.machine.wait(LIMIT)


# -- what cannot be reported


def test_what_is_no_report_is_refused(ghes: Ghes) -> None:
    for wrong in (b"", bytes(19), bytes(4096), CORRECTED + bytes(4097 - len(CORRECTED))):
        with pytest.raises(UsageError):
            ghes.machine.inject_error(wrong)
    with pytest.raises(UsageError, match="no error source 7"):
        ghes.machine.inject_error(CORRECTED, 7)
    with pytest.raises(UsageError, match="no way 'later'"):
        ghes.machine.inject_error(CORRECTED, when_busy="later")
    with pytest.raises(UsageError, match="shared"):
        ghes.machine.inject_error(CORRECTED, vcpu=0)
    for limit in (0.0, -1.0, float("nan")):
        with pytest.raises(UsageError):
            ghes.machine.inject_error(CORRECTED, limit=limit)
    assert ghes.source().reported == 0


def test_before_the_guest_is_there_nothing_can_be_reported() -> None:
    config = MachineConfig(events=STANDARD_EVENTS, error_sources=STANDARD_SOURCES, engine=QemuOptions(firmware="acpi"))
    with open_machine("qemu", config) as machine:
        later = machine.inject_error_later(CORRECTED)
        with pytest.raises(StateError, match="created"):
            later.result(0)
        assert [(each.state, each.block_status) for each in machine.status().error_sources] == [("", None)] * 2


def test_a_machine_without_sources_says_so() -> None:
    with open_machine("unicorn", MachineConfig()) as machine, pytest.raises(UsageError, match="no sources of errors"):
        machine.inject_error(CORRECTED)
