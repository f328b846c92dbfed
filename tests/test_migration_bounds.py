# SPDX-License-Identifier: Apache-2.0
"""What another side may say, and how much of it: no more than a guest can have, and nothing for a terminal to obey."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec
import pytest

from sdeivirt.errors import SdeivirtError, StreamError, UsageError
from sdeivirt.machine import MachineConfig
from sdeivirt.migration.collector import Sections
from sdeivirt.migration.description import CONFIGURATION, Configuration, read_configuration
from sdeivirt.migration.foreign import printable
from sdeivirt.migration.inventory import Description, SectionDescription
from sdeivirt.migration.messages import Failure, Kind, Ready
from sdeivirt.migration.sections import Section, pack, unpack
from sdeivirt.migration.wire import Wire

from .source_support import moved
from .stream_support import by_hand, frames_of, header
from .test_migration_early import running

MIB = 1 << 20


def described(sections: Iterable[object]) -> bytes:
    return header() + by_hand(0, b"DESC", msgspec.msgpack.encode({"sections": list(sections)}), version=2)


def collected(stream: bytes, collector: Sections) -> None:
    for frame in frames_of(stream):
        collector.feed(frame)


def test_sections_are_no_more_than_a_guest_can_have() -> None:
    """The image of a guest goes along, and may be as large as its RAM; what is only looked at can be of any size."""
    sections = [SectionDescription(f"x{i}", 0, 1, 64 * MIB) for i in range(10)]
    collected(described(sections), Sections(ram=512 * MIB))
    collected(described(sections), Sections(keep=False, ram=0))
    with pytest.raises(StreamError, match=f"{640 * MIB} bytes together: {320 * MIB} is the most"):
        collected(described(sections), Sections(ram=64 * MIB))


def test_a_description_is_of_a_number_of_sections_with_a_number_of_fields() -> None:
    entry = {"instance": 0, "version": 0, "length": 0}
    few = {f"{i:x}": "" for i in range(256)}
    most = [{"name": f"{i:x}", **entry} for i in range(1 << 14)]
    collected(described([{"name": "a", **entry, "fields": few}]), Sections())
    collected(described(most), Sections())
    for too_many in (
        [{"name": "a", **entry, "fields": {**few, "x": ""}}],
        [*most, {"name": "x", **entry}],
    ):
        with pytest.raises(StreamError, match="description of the sections is damaged"):
            collected(described(too_many), Sections())


def test_a_description_is_decoded_once() -> None:
    stream = described([SectionDescription("a", 0, 1, 1)])
    (frame,) = frames_of(stream)
    collector = Sections()
    collector.feed(frame)
    assert frame.description == Description([SectionDescription("a", 0, 1, 1)])
    assert collector.description is frame.description


# -- a machine that cannot be


@pytest.mark.parametrize("seconds", [0, 0.0, -1, -0.5, float("nan"), float("inf"), float("-inf"), 1e300, 10**400])
def test_a_watchdog_waits_for_some_time_and_not_for_ever(seconds: float) -> None:
    with pytest.raises(UsageError, match="a watchdog cannot wait for"):
        MachineConfig(watchdog=seconds)
    if seconds != 10**400:  # MessagePack has 64 bits
        says_why({"watchdog": seconds}, "a watchdog cannot wait for")


@pytest.mark.parametrize("seconds", [None, 1e-3, 1, 86400.0])
def test_a_watchdog_that_can_be(seconds: float | None) -> None:
    assert MachineConfig(watchdog=seconds).watchdog == seconds


@pytest.mark.parametrize("bootargs", ["\u00e9", "x\0y", "\x1b[2J", "a" * 2048, "a" * 900_000])
def test_boot_arguments_that_no_tree_can_hold_are_those_of_no_machine(bootargs: str) -> None:
    with pytest.raises(UsageError, match="cannot stand in a device tree"):
        MachineConfig(bootargs=bootargs)
    says_why({"bootargs": bootargs}, "cannot stand in a device tree")


def test_other_members_are_looked_at_too() -> None:
    says_why({"vcpus": 0}, "a machine cannot have 0 vCPUs")
    says_why({"memory": MIB + 1}, "bytes of memory")


def says_why(members: dict[str, object], why: str) -> None:
    """A description of a machine with these members is refused when it is read."""
    sound = pack(CONFIGURATION, Configuration.of("unicorn", MachineConfig()))
    assert read_configuration(sound).vcpus == 2
    record = msgspec.msgpack.decode(sound.data) | members
    section = Section(CONFIGURATION, 0, sound.version, msgspec.msgpack.encode(record))
    with pytest.raises(StreamError, match=why):
        read_configuration(section)


# -- for a terminal


ESCAPES = "x\x1b]0;owned\x07\x1b[2J\x9b1m\u202eall is\r\nwell"


def test_words_of_others_are_one_line_of_what_can_be_read() -> None:
    assert printable(ESCAPES) == "x?]0;owned??[2J?1m?all is  well"
    assert printable("déjà vu, \u4e2d") == "déjà vu, \u4e2d"
    assert len(printable("a" * 5000)) == 1000


@pytest.mark.machine
def test_why_another_side_gave_up_can_be_shown(tmp_path: Path) -> None:
    def fail(wire: Wire) -> None:
        wire.say(Kind.READY, Ready())
        wire.say(Kind.FAILURE, Failure(ESCAPES, ESCAPES))

    with running("unicorn", memory=16 * MIB) as machine:
        status = moved(machine, fail, tmp_path)
        assert "x?]0;owned??[2J?1m?all is  well" in status.error
        assert status.error.isprintable()
        assert status.hint.isprintable()


def test_fields_that_are_not_known_are_named_without_what_a_terminal_obeys() -> None:
    """msgspec says the name of such a field as it stands there."""
    for read in (
        lambda: unpack(Section("ready", 0, 1, msgspec.msgpack.encode({ESCAPES: 1})), Ready),
        lambda: Section("ready", 0, 1, b"\x81\xa1\x1b").fields(),
        lambda: collected(described([{ESCAPES: 1}]), Sections()),
    ):
        with pytest.raises(SdeivirtError) as caught:
            read()
        assert caught.value.message.isprintable()
