# SPDX-License-Identifier: Apache-2.0
"""Frames and sections: what is written is read, and what was damaged, cut, doubled or is newer is refused and named."""

from __future__ import annotations

import io
import re
import struct
import tracemalloc

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdeivirt.errors import MigrationError, StreamError
from sdeivirt.machine.base import PAGE_SIZE
from sdeivirt.migration.frames import KINDS
from sdeivirt.migration.inventory import describe
from sdeivirt.migration.sections import Section, pack, unpack
from sdeivirt.migration.stream import FrameReader, FrameWriter, Sections

from .stream_support import (
    FRAME_SIZE,
    HEADER_SIZE,
    RAM_BASE,
    Clock,
    a_ram,
    a_stream,
    by_hand,
    frames_of,
    header,
    joined,
    load,
    some_sections,
    spans,
)

# A stream of version 1.0, as it was laid out by hand: a page of zeroes, a window
# of four pages (0..255, zeroes, not told of, the same as the first), two sections whose description has no types.
STREAM_1_0 = bytes.fromhex(
    "53444549564952540100000000000000434f4e4601000000000000000d00000000000000000000007a282a6814e9a2ca81a6"
    "6d656d6f7279ce002000005a45524f0000000000000000100000000100000000000000c8bc9f119ffb427000000040000000"
    "0001000000000000005041474500000000000000002c0100000200000000000000ca075555dd060880001000400000000004"
    "00000001000000000001000200030028b52ffd60000f5508000410000102030405060708090a0b0c0d0e0f10111213141516"
    "1718191a1b1c1d1e1f202122232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f404142434445464748"
    "494a4b4c4d4e4f505152535455565758595a5b5c5d5e5f606162636465666768696a6b6c6d6e6f707172737475767778797a"
    "7b7c7d7e7f808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9fa0a1a2a3a4a5a6a7a8a9aaabac"
    "adaeafb0b1b2b3b4b5b6b7b8b9babbbcbdbebfc0c1c2c3c4c5c6c7c8c9cacbcccdcecfd0d1d2d3d4d5d6d7d8d9dadbdcddde"
    "dfe0e1e2e3e4e5e6e7e8e9eaebecedeeeff0f1f2f3f4f5f6f7f8f9fafbfcfdfeff010000fd1ef0d714444553430100000000"
    "000000590000000300000000000000ec529ef95049c60381a873656374696f6e739284a46e616d65a5626f617264a8696e73"
    "74616e636500a776657273696f6e01a66c656e6774681184a46e616d65a5636c6f636ba8696e7374616e636501a776657273"
    "696f6e01a66c656e677468185345435401000000000000001700000004000000000000001280e77c2c61e50705626f617264"
    "82a57469636b7305a772756e6e696e67c35345435401000000010000001e00000005000000000000002412f1f6f3e33cd405"
    "636c6f636b83a57469636b7307a772756e6e696e67c2a46e616d65a178454e44200000000000000000180000000600000000"
    "0000003c29c863ec5acb0e06000000000000000400000000000000a702000000000000"
)

NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
SECTIONS = st.lists(
    st.builds(
        lambda name, instance, version, fields: Section(name, instance, version, msgspec.msgpack.encode(fields)),
        NAMES,
        st.integers(0, 2**32 - 1),
        st.integers(0, 2**16 - 1),
        st.dictionaries(st.text(max_size=8), VALUES, max_size=4),
    ),
    max_size=5,
    unique_by=lambda section: (section.name, section.instance),
)
MESSAGES = sorted(kind for kind, limits in KINDS.items() if limits.longest == 1 << 20 and limits.versions == (0,))


def of_sections(sections: list[Section]) -> bytes:
    """A stream of sections alone."""
    writer = FrameWriter()
    parts = [writer.header(), *writer.describe(sections)]
    for section in sections:
        parts += writer.section(section)
    return joined([*parts, *writer.end(0)])


def refusal(stream: bytes) -> str:
    with pytest.raises(StreamError) as caught:
        load(stream, memoryview(bytearray(8 * PAGE_SIZE)))
    return caught.value.message


# -- there and back


@given(SECTIONS)
def test_sections_arrive_as_they_were(sections: list[Section]) -> None:
    assert load(of_sections(sections), memoryview(b"")) == sections


@given(
    st.lists(st.tuples(st.sampled_from(MESSAGES), st.lists(st.binary(max_size=200), max_size=3)), max_size=6),
    st.integers(1, 100),
)
def test_frames_arrive_as_they_were_whatever_the_chunks(messages: list[tuple[bytes, list[bytes]]], chunk: int) -> None:
    writer = FrameWriter()
    parts: list[bytes | memoryview] = [writer.header()]
    expected, offset = [], HEADER_SIZE
    for number, (kind, buffers) in enumerate(messages):
        parts += writer.frame(kind, *[memoryview(buffer) for buffer in buffers])
        expected.append((kind, number, offset, b"".join(buffers)))
        offset += FRAME_SIZE + len(expected[-1][3])
    stream = joined(parts)
    assert (writer.frames, writer.bytes) == (len(messages), len(stream))
    read = [(frame.kind, frame.number, frame.offset, bytes(frame.payload)) for frame in frames_of(stream, chunk)]
    assert read == expected


def test_the_writer_and_the_format_by_hand_agree() -> None:
    writer = FrameWriter()
    section = pack("clock", Clock(1, False), 3)
    assert writer.header() == header()
    assert joined(writer.frame(b"HELO", b"a", memoryview(b"bc"))) == by_hand(0, b"HELO", b"abc")
    payload = b"\x05clock" + section.data
    assert joined(writer.section(section)) == by_hand(1, b"SECT", payload, version=1, instance=3)
    before = HEADER_SIZE + 2 * FRAME_SIZE + 3 + len(payload)
    assert joined(writer.end(7)) == by_hand(2, b"END ", struct.pack("<QQQ", 2, 7, before))


def test_the_description_tells_the_types_of_fields() -> None:
    values = {
        "small": 1,
        "negative": -1,
        "large": 2**64 - 1,
        "least": -(2**63),
        "yes": True,
        "nothing": None,
        "half": 0.5,
        "word": "x",
        "long": "x" * 300,
        "bytes": b"",
        "many": b"x" * 70_000,
        "list": [1],
        "lists": [1] * 20,
        "map": {"a": 1},
        "maps": {str(number): 1 for number in range(20)},
    }
    (described,) = describe([Section("all", 0, 1, msgspec.msgpack.encode(values))]).sections
    assert described.fields == {
        **dict.fromkeys(("small", "negative", "large", "least"), "int"),
        **dict.fromkeys(("word", "long"), "str"),
        **dict.fromkeys(("bytes", "many"), "bytes"),
        **dict.fromkeys(("list", "lists"), "list"),
        **dict.fromkeys(("map", "maps"), "map"),
        "yes": "bool",
        "nothing": "nil",
        "half": "float",
    }
    with pytest.raises(StreamError, match="'all'"):
        describe([Section("all", 0, 1, b"\x01")])


def test_large_sections_arrive_and_larger_ones_are_not_written() -> None:
    sections = [pack("large", Clock(1, True, spare=bytes(range(256)) * 25_000)), pack("small", Clock(2, True))]
    stream = of_sections(sections)
    assert len(stream) > 5 << 20
    assert load(stream, memoryview(b"")) == sections
    with pytest.raises(MigrationError, match="SECT of 67108865 bytes"):
        FrameWriter().frame(b"SECT", bytes((64 << 20) + 1))


# -- versions


def test_a_stream_of_an_older_minor_version_loads() -> None:
    ram = bytearray(b"\xee" * 8 * PAGE_SIZE)
    board, clock = load(STREAM_1_0, memoryview(ram))
    assert unpack(board, Clock) == Clock(5, True)
    assert clock.instance == 1
    assert unpack(clock, Clock) == Clock(7, False, "x")
    counted = bytes(range(256)) * 16
    there = b"\xee" * PAGE_SIZE
    assert ram == bytes(PAGE_SIZE) + counted + bytes(PAGE_SIZE) + there + counted + there * 3


def test_what_came_later_has_no_place_in_an_older_stream() -> None:
    assert "frame 2 (PASS)" in refusal(header(1, 0) + a_stream()[HEADER_SIZE:])
    typed = header(1, 0) + by_hand(0, b"DESC", b"\x81\xa8sections\x90", version=2)
    assert re.search(r"newer .* frame 0 \(DESC\) at offset 0x10: version 2 is not known, up to 1 are", refusal(typed))


@pytest.mark.parametrize(("version", "hint"), [((1, 3), "newer"), ((2, 0), "newer"), ((0, 9), "older")])
def test_other_versions_are_refused_with_both_named(version: tuple[int, int], hint: str) -> None:
    with pytest.raises(StreamError) as caught:
        load(header(*version) + a_stream()[HEADER_SIZE:], memoryview(b""))
    assert f"version {version[0]}.{version[1]}" in caught.value.message
    assert "1.0 to 1.2" in caught.value.message
    assert hint in caught.value.hint


def test_a_newer_section_is_refused_and_named() -> None:
    sections = [pack("board", Clock(1, True)), Section("clock", 2, 2, pack("clock", Clock(1, True)).data)]
    loaded = load(of_sections(sections), memoryview(b""))
    with pytest.raises(StreamError, match=r"'clock' of instance 2 has version 2.*up to 1") as caught:
        unpack(loaded[1], Clock)
    assert "newer" in caught.value.hint


@pytest.mark.parametrize(
    ("frame", "said"),
    [
        (by_hand(0, b"TURN", b"new"), "b'TURN'.*such frames are not known"),
        (by_hand(0, b"\xff\x00\x01\x02", b"new"), "such frames are not known"),
        (by_hand(0, b"HELO", flags=1), "flags 0x1 are not known"),
        (by_hand(0, b"HELO", version=1), "version 1 is not known, up to 0 are"),
        (by_hand(0, b"DESC", b"\x80", version=3), "version 3 is not known, up to 2 are"),
        (by_hand(0, b"PAGE", bytes(16), instance=1), "an instance of 1 is not known"),
    ],
    ids=["a kind", "a kind of no letters", "a flag", "a version", "a version of DESC", "an instance"],
)
def test_newer_frames_are_told_from_damaged_ones(frame: bytes, said: str) -> None:
    with pytest.raises(StreamError, match=r"newer .*frame 0 .*at offset 0x10: ") as caught:
        load(header() + frame, memoryview(b""))
    assert re.search(said, caught.value.message)
    assert "newer" in caught.value.hint


# -- damage


@pytest.mark.parametrize("stream", [b"", b"SDEI", b"SDEIVIRT\x01", header()])
def test_an_empty_stream_is_cut_short(stream: bytes) -> None:
    assert f"cut short at offset {len(stream):#x}" in refusal(stream)


@pytest.mark.parametrize("stream", [b"#!/bin/sh\nexit 0\n", b"QEVM\x00\x00\x00\x03", b"\x00" * 100, b"x"])
def test_what_is_no_stream_is_called_so(stream: bytes) -> None:
    assert "no stream of sdeivirt" in refusal(stream)


def test_every_cut_is_refused_where_it_is() -> None:
    stream = a_stream()
    for length in range(HEADER_SIZE, len(stream)):
        message = refusal(stream[:length])
        assert f"cut short at offset {length:#x}" in message
        (span,) = (span for span in spans(stream) if span.start <= length < span.end)
        if length > span.start:
            assert f"at offset {span.start:#x}" in message
        if span.kind == b"SECT":
            assert re.search("section '(board|clock)'", message)


def test_every_flipped_bit_is_refused_where_it_is() -> None:
    stream = bytearray(a_stream(a_ram(24)))
    names = iter(("section 'board'", "section 'clock'", "section 'clock' of instance 1"))
    named = {span: next(names) if span.kind == b"SECT" else "" for span in spans(bytes(stream))}
    ram = memoryview(bytearray(24 * PAGE_SIZE))
    refused = 0
    for at in range(len(stream)):
        for bit in range(8):
            stream[at] ^= 1 << bit
            with pytest.raises(StreamError) as caught:
                load(bytes(stream), ram)
            message = caught.value.message
            if at >= HEADER_SIZE:
                ((span, name),) = ((span, name) for span, name in named.items() if span.start <= at < span.end)
                assert f"at offset {span.start:#x}" in message, (at, bit)
                assert name in message, (at, bit)
            elif not 8 <= at < 12:
                assert "at offset 0x" in message, (at, bit)
            elif (at, bit) != (10, 1):  # which makes it a stream of 1.0, and those have no PASS
                assert "has version" in message, (at, bit)
            refused += 1
            stream[at] ^= 1 << bit
    assert refused == len(stream) * 8 > 8_000
    load(bytes(stream), ram)


def test_frames_count() -> None:
    stream = a_stream()
    found = spans(stream)
    first, second = (stream[span.start : span.end] for span in found[:2])
    rest = stream[found[1].end :]
    assert "frame 0 (PAGE) at offset 0x10: it has number 1" in refusal(header() + second + rest)
    assert f"frame 1 (CONF) at offset {found[1].start:#x}: it has number 0" in refusal(header() + first + first + rest)
    assert "it has number 1" in refusal(header() + second + first + rest)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_no_length_is_believed_beyond_what_its_kind_allows(kind: bytes) -> None:
    limits = KINDS[kind]
    for length in (limits.shortest - 1, limits.longest + 1, 2**32 - 1):
        if length >= 0:
            frame = by_hand(0, kind, b"x" * min(length, 100), length=length)
            name = kind.decode().strip()
            said = rf"frame 0 \({name}\) at offset 0x10: a length of {length} bytes cannot be"
            assert re.search(said, refusal(header() + frame))


@pytest.mark.parametrize("kind", [b"SECT", b"DESC", b"PAGE", b"HELO", b"WHAT"])
def test_memory_is_taken_as_bytes_arrive(kind: bytes) -> None:
    length = KINDS[kind].longest if kind in KINDS else 1 << 20
    for come in (100, 3 << 20):
        if come < length:
            stream = header() + by_hand(0, kind, bytes(come), length=length)
            tracemalloc.start()
            try:
                assert f"cut short at offset {len(stream):#x}, in frame 0" in refusal(stream)
                assert tracemalloc.get_traced_memory()[1] < 3 * come + (3 << 20)
            finally:
                tracemalloc.stop()


# -- sections


SECOND = pack("clock", Clock(1, False), 1)


def sections_refused(*frames: tuple[bytes, bytes, dict[str, int]]) -> str:
    stream = header()
    for number, (kind, payload, options) in enumerate(frames):
        stream += by_hand(number, kind, payload, **options)
    return refusal(stream)


def described(*sections: Section) -> tuple[bytes, bytes, dict[str, int]]:
    return b"DESC", msgspec.msgpack.encode(describe(sections)), {"version": 2}


def sent(section: Section) -> tuple[bytes, bytes, dict[str, int]]:
    payload = bytes((len(section.name),)) + section.name.encode() + section.data
    return b"SECT", payload, {"version": section.version, "instance": section.instance}


def collect(stream: bytes, collector: Sections) -> None:
    reader = FrameReader(io.BytesIO(stream).readinto)
    reader.start()
    while not collector.complete:
        frame = reader.next()
        if frame is None:
            raise reader.cut_short()
        collector.feed(frame)


END = (b"END ", struct.pack("<QQQ", 0, 0, 0), dict[str, int]())


@pytest.mark.parametrize(
    ("order", "said"),
    [
        ("", r"the end of the state is missing"),
        ("0", r"section 'board' at offset 0x10|SECT.* has no place"),
        ("D01", r"behind 3 frames: section 'clock' of instance 1 is missing"),
        ("D01E", r"section 'clock' of instance 1 is missing before frame 3 \(END\) at offset 0x"),
        ("D021", r"section 'clock' of instance 1 in frame 2 .* stands where section 'clock' is due"),
        ("D001", r"section 'board' is there twice, again in frame 2 \(SECT\) at offset 0x"),
        ("D0123", r"section 'more' in frame 4 .* was not described"),
        ("D01D", r"DESC.* has no place"),
        ("D01P", r"PASS.* has no place"),
        ("E", r"END.* has no place"),
        ("D012E", r"frame 4 \(END\) at offset 0x\w+ tells of 0 frames and 0 bytes before it, and 4 and \d+ came"),
    ],
)
def test_sections_come_as_described(order: str, said: str) -> None:
    sections = [*some_sections(), pack("more", Clock(0, False))]
    frames = {"D": described(*sections[:3]), "E": END, "P": (b"PASS", bytes(4), dict[str, int]())}
    frames |= {str(index): sent(section) for index, section in enumerate(sections)}
    stream = header()
    for number, letter in enumerate(order):
        kind, payload, options = frames[letter]
        stream += by_hand(number, kind, payload, **options)
    collector = Sections()
    with pytest.raises(StreamError) as caught:
        collect(stream, collector)
    assert re.search(said, caught.value.message), caught.value.message
    with pytest.raises(StreamError, match="not whole"):
        collector.sections()


def test_a_section_of_another_length_or_version_is_refused() -> None:
    other = Section("clock", 1, 1, SECOND.data + b"\xc0")
    newer = Section("clock", 1, 2, SECOND.data)
    for section in (other, newer):
        message = sections_refused(described(SECOND), sent(section))
        assert re.search(r"section 'clock' of instance 1 in frame 1 .*was described with version 1 and", message)


@pytest.mark.parametrize(
    "payload", [b"\x00x", b"\x05cloc", b"\x05clo\x00k", b"\x06cloc\xc3\xa9", b"\xff" * 255, b"\x01-", b"\x03a/b"]
)
def test_a_section_without_a_name_is_refused(payload: bytes) -> None:
    message = sections_refused(described(SECOND), (b"SECT", payload, {"version": 1, "instance": 1}))
    assert re.search(r"frame 1 \(SECT\) at offset 0x\w+ has no name", message)


@pytest.mark.parametrize(
    ("description", "said"),
    [
        (b"\xc1", "description of the sections is damaged"),
        (b"\x81\xa8sections\x91\x80", "missing required field `name`"),
        (msgspec.msgpack.encode({"sections": [], "more": 1}), "unknown field `more`"),
        (b"\x91" * 10_000, "damaged"),
        (b"\x81\xa8sections" + b"\x91" * 100_000 + b"\x01", "damaged"),
        (msgspec.msgpack.encode({"sections": [{"name": "a b", "instance": 0, "version": 1, "length": 1}]}), "'a b'"),
        (
            msgspec.msgpack.encode({"sections": [{"name": "a", "instance": 0, "version": 1, "length": 1}] * 2}),
            "section 'a' twice",
        ),
        (
            msgspec.msgpack.encode({"sections": [{"name": "a", "instance": 2**32, "version": 1, "length": 1}]}),
            "damaged",
        ),
    ],
    ids=["no MessagePack", "no name", "unknown", "deep", "deep inside", "bad name", "twice", "bad instance"],
)
def test_a_description_that_cannot_be_is_refused(description: bytes, said: str) -> None:
    message = sections_refused((b"DESC", description, {"version": 2}))
    assert said in message
    assert "frame 0 (DESC) at offset 0x10" in message


def test_frames_behind_the_end_are_refused() -> None:
    stream = a_stream()
    number = len(spans(stream))
    collector = Sections()
    for frame in frames_of(stream + by_hand(number, b"PASS", bytes(4))):
        if frame.kind in (b"DESC", b"SECT", b"END "):
            collector.feed(frame)
        elif collector.complete:
            with pytest.raises(StreamError, match=r"PASS.*after the end"):
                collector.feed(frame)
            return
    pytest.fail("the frame behind the end was not read")


def test_an_address_of_pages_is_where_ram_begins() -> None:
    span = next(span for span in spans(a_stream()) if span.kind == b"PAGE")
    assert struct.unpack_from("<Q", a_stream(), span.start + FRAME_SIZE) == (RAM_BASE,)
