# SPDX-License-Identifier: Apache-2.0
"""Reports of errors while the guest's memory comes and goes, and while the guest itself does."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import contextmanager
from pathlib import Path

import pytest

from sdeivirt.errors import BusyError, MovedError, StateError
from sdeivirt.machine import ExitReason, open_machine
from sdeivirt.machine.base import PAGE_SIZE, RAM_BASE, Machine
from sdeivirt.machine.qemu.options import QemuOptions
from sdeivirt.migration.channel import Listener, parse_uri
from sdeivirt.migration.destination import Incoming
from sdeivirt.migration.source import Outgoing, SourceOptions
from sdeivirt.migration.status import Progress
from sdeivirt.ras.window import Window

from .control_support import LIMIT, wait_until
from .machine_support import NEEDS_QEMU, Console
from .pages_support import Store
from .ras_support import ADDRESS, CORRECTED, Ghes, block

pytestmark = [pytest.mark.machine, pytest.mark.qemu, NEEDS_QEMU]


def pages_of(ghes: Ghes) -> list[int]:
    """The pages of the window of source 0: pointer and acknowledgement, block."""
    window = Window(ghes.machine.config.error_sources[0], ghes.source().address)
    return [(address - RAM_BASE) // PAGE_SIZE for address in (window.acknowledge, window.block)]


@pytest.mark.parametrize("which", [0, 1])
def test_a_window_that_is_not_here_is_asked_for(which: int) -> None:
    with Ghes() as ghes, Store(ghes.machine) as store:
        page = pages_of(ghes)[which]
        store.held = {page}
        assert store.take([page]) == 1
        later = ghes.machine.inject_error_later(CORRECTED, limit=LIMIT)
        store.waits_for(1)
        assert store.wanted == {page}
        with pytest.raises(FutureTimeoutError):
            later.result(0.1)
        assert ghes.source().reported == 0
        store.release()
        assert later.result(LIMIT).outcome == "acknowledged"
        ghes.key("l")  # and the next one is as good
        ghes.key("a")
        assert ghes.machine.inject_error(CORRECTED).outcome == "acknowledged"


def test_an_acknowledgement_that_has_gone_is_waited_for() -> None:
    with Ghes() as ghes, Store(ghes.machine) as store:
        ghes.key("l")
        later = ghes.machine.inject_error_later(CORRECTED, limit=LIMIT)
        ghes.comes_to("unread")
        pages = pages_of(ghes)
        store.held = set(pages)
        # Whoever looks at one just then keeps it.
        wait_until(lambda: store.take(pages) >= 0 and ghes.machine.absent_count == 2)
        ghes.comes_to("absent")
        ghes.press("A")
        store.release()
        assert later.result(LIMIT).outcome == "acknowledged"


@contextmanager
def moved(ghes: Ghes, directory: Path, options: SourceOptions) -> Iterator[tuple[Machine, Console]]:
    """The guest on another machine, where it runs."""
    uri = parse_uri(f"unix:{directory}/there")
    incoming = Incoming(Listener(uri))
    outgoing = Outgoing(ghes.machine, uri, options, Progress())
    leaving = threading.Thread(target=outgoing.run)
    leaving.start()
    try:
        configuration = incoming.configuration()
        with open_machine(configuration.machine, configuration.config("there", None, QemuOptions())) as there:
            console = Console(there)
            incoming.start(there, Progress())
            leaving.join(LIMIT)
            assert outgoing.status.status == "completed", outgoing.status
            wait_until(lambda: there.state == "running")
            yield there, console
    finally:
        leaving.join(LIMIT)
        incoming.close()


@pytest.mark.parametrize("postcopy", [None, 0], ids=["pre-copy", "post-copy"])
def test_a_report_that_was_not_read_moves_along(tmp_path: Path, postcopy: int | None) -> None:
    with Ghes() as ghes:
        ghes.key("m")
        held = ghes.machine.inject_error_later(CORRECTED, limit=LIMIT)
        ghes.comes_to("masked")
        waiting = ghes.machine.inject_error_later(block(ADDRESS + 0x1000), limit=LIMIT)
        with moved(ghes, tmp_path, SourceOptions(postcopy=postcopy)) as (there, console):
            for later, what in ((held, "is in its block"), (waiting, "was not reported")):
                with pytest.raises(MovedError, match=what):
                    later.result(LIMIT)
            assert ghes.machine.wait(LIMIT).reason is ExitReason.MOVED
            with pytest.raises(StateError):
                ghes.machine.inject_error(CORRECTED)
            # It is not overwritten there, although nothing else is known of it.
            with pytest.raises(BusyError, match="masked"):
                there.inject_error(block(ADDRESS + 0x2000), when_busy="fail")
            second = there.inject_error_later(block(ADDRESS + 0x2000), limit=LIMIT)
            there.type_in(b"u")
            assert second.result(LIMIT).outcome == "acknowledged"
            wait_until(lambda: console.text.count("GHES 0") == 2 and console.text.endswith("\n"), console.text)
            # The handler may print in the midst of a line of what it has interrupted.
            addresses = re.findall(r"GHES 0[^\n]*?, (address 0x[0-9a-f]+)", console.text)
            assert addresses == [f"address {ADDRESS + i:#x}" for i in (0, 0x2000)]
            (source, _) = there.status().error_sources
            assert (source.state, source.reported, source.acknowledged) == ("", 1, 1)


def test_a_report_that_moved_along_is_announced_until_it_is_read(tmp_path: Path) -> None:
    with Ghes() as ghes:
        ghes.key("m")
        held = ghes.machine.inject_error_later(CORRECTED, limit=LIMIT)
        ghes.comes_to("masked")
        with moved(ghes, tmp_path, SourceOptions()) as (there, console):
            with pytest.raises(MovedError):
                held.result(LIMIT)
            assert there.cancel(there.config.error_sources[0].event)
            there.type_in(b"u")
            wait_until(lambda: "GHES 0" in console.text and console.text.endswith("\n"), console.text)
            wait_until(lambda: there.status().error_sources[0].state == "")


def test_what_is_queued_does_not_move_and_that_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Ghes() as ghes:
        ghes.key("m")
        for i in range(3):
            ghes.machine.inject_error(block(ADDRESS + 0x1000 * i), when_busy="queue")
        ghes.comes_to("masked")
        with moved(ghes, tmp_path, SourceOptions()) as (there, console):
            ghes.machine.errors.finish()
            assert (ghes.source().queued, ghes.source().lost) == (0, 2)
            told = [record.getMessage() for record in caplog.records if record.name.startswith("sdeivirt.ras")]
            assert len(told) == 2
            assert "2 errors that were queued for source 0: the guest has moved: the error was not reported" in told[1]
            there.type_in(b"u")
            wait_until(lambda: there.status().error_sources[0].state == "")
            wait_until(lambda: console.text.count("GHES 0") == 1, console.text)


def test_a_report_waits_while_its_guest_is_saved_and_goes_on(tmp_path: Path) -> None:
    with Ghes() as ghes:
        outgoing = Outgoing(
            ghes.machine, parse_uri(f"file:{tmp_path}/guest"), SourceOptions(stop_first=True, stay=True), Progress()
        )
        saving = threading.Thread(target=outgoing.run)
        saving.start()
        while saving.is_alive():
            assert ghes.machine.inject_error(CORRECTED, limit=LIMIT).outcome == "acknowledged"
        saving.join()
        assert outgoing.status.status == "completed"
        source = ghes.source()
        assert source.reported == source.acknowledged > 0
