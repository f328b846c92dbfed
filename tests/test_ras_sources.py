# SPDX-License-Identifier: Apache-2.0
"""How sources of errors are defined: by flags, in the file of events, by the standard; and their windows in memory."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdeivirt.errors import EventFileError, UsageError
from sdeivirt.machine import MachineConfig, open_machine
from sdeivirt.ras.definitions import SourceDefinition, load_definitions, parse_error_source, settle, standard
from sdeivirt.ras.sources import MAX_SOURCES, STANDARD_EVENTS, STANDARD_SOURCES, ErrorSource
from sdeivirt.ras.status_block import BLOCK_SIZE
from sdeivirt.ras.window import WINDOW_SIZE, Window, make_windows, windows_size
from sdeivirt.sdei import EventDefinition, Priority
from sdeivirt.sdei.events import load_events

from .control_support import cli
from .ras_support import CORRECTED

SHARED = EventDefinition(0x324, shared=True)
CRITICAL = EventDefinition(0x325, shared=True, priority=Priority.CRITICAL)


# -- flags


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0x324", SourceDefinition(0x324)),
        ("804:", SourceDefinition(0x324)),
        ("0x324:ghes=1", SourceDefinition(0x324, ghes=1)),
        ("0x324:number=0x3f", SourceDefinition(0x324, number=63)),
        ("0x324:shared", SourceDefinition(0x324, defines=SHARED)),
        ("0x324:normal", SourceDefinition(0x324, defines=SHARED)),
        ("0x325:critical,ghes=1,number=2", SourceDefinition(0x325, 1, 2, CRITICAL)),
        ("0x324:private", SourceDefinition(0x324, defines=EventDefinition(0x324))),
    ],
)
def test_a_flag_defines_a_source(text: str, expected: SourceDefinition) -> None:
    assert parse_error_source(text) == expected


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "no definition"),
        ("error", "no definition"),
        ("0x324:ghes=two", "no definition"),
        ("0x324:loud", "says nothing of a source"),
        ("0x324:interrupt=40", "says nothing of a source"),
        ("0x324:shared=1", "says nothing of a source"),
        ("0x324:shared,private", "gives the type twice"),
        ("0x324:ghes=1,ghes=2", "gives the ghes twice"),
        ("0x324:ghes=3", "no version 3"),
        ("0x324:number=64", "no error source 64"),
        ("0x324:number=-1", "no error source -1"),
        ("0", "event 0x0"),
        ("-5", "cannot be announced"),
        ("0x80000000", "cannot be announced"),
        ("0x40001000:shared", "taken by the dynamic events"),
    ],
)
def test_a_wrong_flag_is_named(text: str, complaint: str) -> None:
    with pytest.raises(EventFileError, match=complaint):
        parse_error_source(text)


@given(st.text(max_size=80))
def test_any_text_is_a_definition_or_an_error(text: str) -> None:
    with contextlib.suppress(EventFileError):
        assert parse_error_source(text).event > 0


# -- files


def load(tmp_path: Path, text: str) -> tuple[list[EventDefinition], list[SourceDefinition]]:
    path = tmp_path / "events.toml"
    path.write_text(text)
    return load_definitions(path)


def test_a_file_defines_events_and_sources(tmp_path: Path) -> None:
    events, sources = load(
        tmp_path,
        """
        [[event]]
        number = 0x324
        type = "shared"

        [[error-source]]
        event = 0x324
        ghes = 1

        [[error-source]]
        event = 0x325
        priority = "critical"
        number = 0
        """,
    )
    assert events == [SHARED]
    assert sources == [SourceDefinition(0x324, ghes=1), SourceDefinition(0x325, number=0, defines=CRITICAL)]
    assert settle(events, sources) == ((SHARED, CRITICAL), (ErrorSource(1, 0x324, 1), ErrorSource(0, 0x325)))


def test_a_file_may_hold_either_of_them(tmp_path: Path) -> None:
    assert load(tmp_path, "[[event]]\nnumber = 7\n") == ([EventDefinition(7)], [])
    assert load(tmp_path, "[[error-source]]\nevent = 7\n") == ([], [SourceDefinition(7)])


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "holds no"),
        ("error-source = 5", "no list of tables"),
        ("error-source = [5]", "no list of tables"),
        ("[error-source]\nevent = 5", "no list of tables"),
        ("[[error-source]]\n", "error source 1: no event"),
        ("[[error-source]]\nevent = 5\n[[error-source]]\nevent = '5'", "error source 2: event must be of type int"),
        ("[[error-source]]\nevent = true", "event must be of type int"),
        ("[[error-source]]\nevent = 5\nghes = 2.0", "ghes must be of type int"),
        ("[[error-source]]\nevent = 5\ninterrupt = 40", "unknown key 'interrupt'"),
        ("[[error-source]]\nevent = 5\ntype = 'critical'", "type 'critical'"),
        ("[[error-source]]\nevent = 5\npriority = 'shared'", "priority 'shared'"),
        ("[[error-source]]\nevent = 5\nghes = 0", "no version 0"),
        ("[[error-source]]\nevent = 5\nnumber = 99", "no error source 99"),
        ("[[error-source]]\nevent = 0x99999999", "cannot be announced"),
        ("[[error-source]]\nevent = 5\n[[source]]\nevent = 6", "'source' beside"),
        ("[[error-source]\nevent = 5", "no TOML file"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(EventFileError, match=complaint) as caught:
        load(tmp_path, text)
    assert "events.toml" in caught.value.message


def test_who_has_no_sources_refuses_a_file_with_some(tmp_path: Path) -> None:
    path = tmp_path / "events.toml"
    path.write_text("[[event]]\nnumber = 7\n[[error-source]]\nevent = 8\n")
    with pytest.raises(EventFileError, match="'error-source' beside"):
        load_events(path)


# -- together


def test_sources_without_a_number_get_the_lowest_that_is_free() -> None:
    given_ = [SourceDefinition(5), SourceDefinition(6, number=0), SourceDefinition(7), SourceDefinition(8, number=2)]
    _, sources = settle([], given_)
    assert [(source.event, source.number) for source in sources] == [(5, 1), (6, 0), (7, 3), (8, 2)]


def test_there_are_only_so_many_sources() -> None:
    many = [SourceDefinition(5 + i) for i in range(MAX_SOURCES)]
    assert [source.number for source in settle([], many)[1]] == list(range(MAX_SOURCES))
    with pytest.raises(EventFileError, match=f"no error source {MAX_SOURCES}"):
        settle([], [*many, SourceDefinition(5 + MAX_SOURCES)])


def test_an_event_is_defined_once() -> None:
    assert settle([SHARED], [SourceDefinition(0x324)])[0] == (SHARED,)
    with pytest.raises(EventFileError, match="defines it again"):
        settle([SHARED], [SourceDefinition(0x324, defines=SHARED)])


def test_the_standard_sources_take_events_as_they_have_been_defined() -> None:
    assert standard(()) == (STANDARD_EVENTS, STANDARD_SOURCES)
    mine = EventDefinition(STANDARD_EVENTS[0].number)
    assert standard((mine,)) == ((mine, STANDARD_EVENTS[1]), STANDARD_SOURCES)


@pytest.mark.parametrize(
    ("sources", "complaint"),
    [
        ((ErrorSource(0, 0x324), ErrorSource(0, 0x325)), "source 0 is defined twice"),
        ((ErrorSource(0, 0x324), ErrorSource(1, 0x324)), "announced by one event"),
        ((ErrorSource(0, 0x326),), "is not defined"),
    ],
)
def test_sources_that_contradict_each_other_make_no_machine(sources: tuple[ErrorSource, ...], complaint: str) -> None:
    with pytest.raises(EventFileError, match=complaint):
        MachineConfig(events=(SHARED, CRITICAL), error_sources=sources)


@pytest.mark.machine
@pytest.mark.parametrize("kind", ["unicorn", pytest.param("qemu", marks=pytest.mark.qemu)])
def test_a_machine_without_acpi_has_no_sources(kind: str) -> None:
    with pytest.raises(UsageError, match=r"sources of errors"):
        open_machine(kind, MachineConfig(events=STANDARD_EVENTS, error_sources=STANDARD_SOURCES)).close()


@pytest.mark.process
def test_run_refuses_what_cannot_be(tmp_path: Path) -> None:
    path = tmp_path / "events.toml"
    path.write_text("[[error-source]]\nevent = 8\n")
    for words in (("--error-source", "0x324"), ("--events", str(path))):
        refused = cli(tmp_path, "run", "--guest", "listen", "--machine", "qemu", *words, code=2).stderr
        assert "a device tree tells the guest of no sources of errors" in refused
        assert "--firmware acpi" in refused
    twice = ("--error-source", "0x324:number=1", "--error-source", "0x325:number=1")
    acpi = ("run", "--guest", "ghes", "--machine", "qemu", "--firmware", "acpi")
    assert "error source 1 is defined twice" in cli(tmp_path, *acpi, *twice, code=2).stderr


# -- windows


class Memory:
    """Physical memory from 0 on, of which some pages are not here."""

    def __init__(self, size: int) -> None:
        self.content = bytearray(size)
        self.absent: set[int] = set()

    def _here(self, address: int, size: int) -> bool:
        return not self.absent & set(range(address // 0x1000, (address + size - 1) // 0x1000 + 1))

    def read(self, address: int, size: int) -> bytes | None:
        return bytes(self.content[address : address + size]) if self._here(address, size) else None

    def write(self, address: int, data: bytes) -> bool:
        if self._here(address, len(data)):
            self.content[address : address + len(data)] = data
            return True
        return False


def window(ghes: int) -> tuple[Window, Memory]:
    made, memory = Window(ErrorSource(0, 0x324, ghes), 0x2000), Memory(0x4000)
    memory.write(made.address, made.blank())
    return made, memory


@pytest.mark.parametrize("ghes", [1, 2])
def test_a_window_is_free_until_it_is_filled_and_again_when_the_guest_has_read_it(ghes: int) -> None:
    made, memory = window(ghes)
    assert made.acknowledged(memory)
    assert made.status(memory) == 0
    assert made.fill(memory, CORRECTED)
    assert not made.acknowledged(memory)
    assert memory.read(made.block, len(CORRECTED)) == CORRECTED
    assert int.from_bytes(memory.content[made.pointer : made.pointer + 8], "little") == made.block
    if ghes == 1:
        memory.write(made.block, bytes(4))
    else:
        memory.write(made.acknowledge, b"\1")
    assert made.acknowledged(memory)


@pytest.mark.parametrize("ghes", [1, 2])
@pytest.mark.parametrize("absent", [2, 3])
def test_a_window_that_is_not_all_here_is_not_filled_by_half(ghes: int, absent: int) -> None:
    made, memory = window(ghes)
    memory.absent = {absent}
    assert not made.fill(memory, CORRECTED)
    memory.absent.clear()
    assert made.acknowledged(memory)
    assert made.status(memory) == 0


def test_windows_stand_one_behind_the_other_in_whole_pages_of_any_size() -> None:
    sources = tuple(ErrorSource(i, 0x300 + i) for i in range(9))
    made = make_windows(sources, 0x10_0000)
    assert [each.address for each in made] == [0x10_0000 + i * WINDOW_SIZE for i in range(9)]
    assert made[-1].block + BLOCK_SIZE <= 0x10_0000 + windows_size(sources)
    assert windows_size(sources) % 0x1_0000 == 0
    assert windows_size(()) == 0
