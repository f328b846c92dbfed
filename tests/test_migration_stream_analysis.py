# SPDX-License-Identifier: Apache-2.0
"""Streams told: whole ones, damaged ones as far as they are sound, and hostile ones without harm."""

from __future__ import annotations

import json
import os
import re
import struct
import time
import tracemalloc
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdeivirt.errors import StreamError, UsageError
from sdeivirt.machine.base import PAGE_SIZE
from sdeivirt.migration.analysis import Analysis, Region, analyze, render
from sdeivirt.migration.histogram import Histogram
from sdeivirt.migration.inventory import describe
from sdeivirt.migration.ram import PageEncoder
from sdeivirt.migration.sections import Section
from sdeivirt.migration.shown import Shower
from sdeivirt.migration.stream import FrameWriter
from sdeivirt.registers.ids import KINDS
from sdeivirt.registers.sections import to_sections
from sdeivirt.sdei import EventDefinition, Sdei

from .stream_support import (
    HEADER_SIZE,
    RAM_BASE,
    a_ram,
    a_stream,
    by_hand,
    header,
    joined,
    spans,
)
from .test_migration_stream import STREAM_1_0

MIB = 1 << 20


def analyzed(tmp_path: Path, stream: bytes) -> Analysis:
    """The analysis of a stream; whatever it is, people and JSON can be told."""
    path = tmp_path / "stream"
    path.write_bytes(stream)
    analysis = analyze(path)
    assert json.loads(json.dumps(asdict(analysis), allow_nan=False))["size"] == len(stream)
    text = render(analysis)
    assert text.replace("\n", "").isprintable()
    assert analysis.complete == (not analysis.error) == ("NOT WHOLE" not in text)
    return analysis


def framed(*frames: tuple[bytes, bytes, int]) -> bytes:
    """A stream of frames: kind, payload, version."""
    stream = header()
    for number, (kind, payload, version) in enumerate(frames):
        stream += by_hand(number, kind, payload, version=version)
    return stream


def of_memory(memory: int, **more: Any) -> tuple[bytes, bytes, int]:
    return b"CONF", msgspec.msgpack.encode({"memory": memory, **more}), 1


def zeroes(first: int, count: int) -> tuple[bytes, bytes, int]:
    return b"ZERO", struct.pack("<QQ", RAM_BASE + first * PAGE_SIZE, count), 0


def test_a_whole_stream_is_told(tmp_path: Path) -> None:
    stream = a_stream()
    analysis = analyzed(tmp_path, stream)
    assert (analysis.complete, analysis.version, analysis.sound) == (True, "1.2", len(stream))
    assert analysis.configuration == {"memory": 2 << 20}
    kinds = ["CONF", "PAGE", "PASS", "DESC", "SECT", "END"]
    assert [(kind, each.frames) for kind, each in analysis.frames.items()] == [
        (kind, 3 if kind == "SECT" else 1) for kind in kinds
    ]
    assert sum(each.bytes for each in analysis.frames.values()) == len(stream) - HEADER_SIZE
    (only,) = analysis.passes
    assert (only.number, only.plain, only.zero, only.duplicate, only.compressed, only.ended) == (1, 3, 4, 1, 1, True)
    assert [(each.name, each.instance, each.version) for each in analysis.sections] == [
        ("board", 0, 1),
        ("clock", 0, 1),
        ("clock", 1, 1),
    ]
    offsets = [span.start for span in spans(stream) if span.kind == b"SECT"]
    assert [each.offset for each in analysis.sections] == offsets
    assert {name: (field.type, field.value) for name, field in analysis.sections[0].fields.items()} == {
        "ticks": ("int", 1),
        "running": ("bool", True),
        "name": ("str", "of the board"),
        "spare": ("bytes", {"bytes": 2, "hex": "0102"}),
        "history": ("list", [1, 2, 3]),
    }


def test_a_stream_of_an_older_version_is_told(tmp_path: Path) -> None:
    analysis = analyzed(tmp_path, STREAM_1_0)
    assert (analysis.complete, analysis.version) == (True, "1.0")
    assert [each.name for each in analysis.sections] == ["board", "clock"]
    assert [each.note for each in analysis.sections] == ["", ""]


def test_pages_are_told_by_pass_and_place(tmp_path: Path) -> None:
    ram = bytearray(8 * MIB)
    ram[2 * MIB : 4 * MIB] = bytes(range(1, 256)) * (2 * MIB // 255) + bytes(2 * MIB % 255)
    ram[5 * MIB : 5 * MIB + 3 * PAGE_SIZE] = b"x" * 3 * PAGE_SIZE
    writer, encoder = FrameWriter(), PageEncoder(memoryview(ram))
    configuration = of_memory(len(ram))
    parts: list[bytes | memoryview] = [writer.header(), *writer.frame(*configuration[:2], version=1)]

    def send(first: int, count: int, dirty: bytearray | None) -> None:
        payload = encoder.window(first, count, dirty)
        if payload is None:
            parts.extend(writer.frame(b"ZERO", encoder.zero_run(first, count)))
        else:
            parts.extend(map(bytes, writer.frame(b"PAGE", *payload)))

    for first in range(0, 2048, 512):
        send(first, 512, None)
    parts += writer.frame(b"PASS", struct.pack("<I", 1))
    dirty = bytearray(2048)
    dirty[512] = dirty[513] = dirty[1280] = dirty[2047] = 1
    for first in (512, 1024, 1536):
        send(first, 512, dirty)
    parts += writer.frame(b"PASS", struct.pack("<I", 2))
    analysis = analyzed(tmp_path, joined([*parts, *writer.describe([]), *writer.end(encoder.stats.pages)]))
    assert analysis.complete
    # 255 bytes over and over: page n is as page n + 255.
    assert [(each.number, each.plain, each.zero, each.duplicate) for each in analysis.passes] == [
        (1, 255 + 1 + 1, 2048 - 512 - 3, 2 + 256),
        (2, 3, 1, 0),
    ]
    assert [astuple(each)[2:] for each in analysis.regions] == [
        (0, 512, 0),
        (257, 0, 1),
        (1, 0, 255),
        (0, 256, 0),
        (2, 253, 2),
        (0, 256, 0),
        (0, 257, 0),
    ]


@given(
    st.lists(
        st.tuples(st.integers(0, 2047), st.integers(1, 2048), st.sampled_from([0, 1, 3])).map(
            lambda run: (run[0], min(run[1], 2048 - run[0]), run[2])
        ),
        max_size=12,
    )
)
def test_the_histogram_counts_every_page(runs: list[tuple[int, int, int]]) -> None:
    histogram = Histogram()
    counts = [[0, 0, 0] for _ in range(8)]
    for first, count, sort in runs:
        histogram.run(first, count, sort)
        for page in range(first, first + count):
            counts[page // 256][min(sort, 2)] += 1
    told = [[0, 0, 0] for _ in range(8)]
    end = 0
    for region in histogram.regions():
        assert region.address >= end
        end = region.address + region.size
        for mib in range((region.address - RAM_BASE) // MIB, (end - RAM_BASE) // MIB):
            told[mib] = [number * MIB // region.size for number in (region.plain, region.zero, region.duplicate)]
    assert told == counts


def test_registers_are_told_by_name(tmp_path: Path) -> None:
    sdei = Sdei(2, [EventDefinition(0x40000010), EventDefinition(0x20, shared=True)])
    analysis = analyzed(tmp_path, a_stream(sections=to_sections(sdei)))
    assert analysis.complete
    vm = analysis.sections[0].fields["registers"].value
    assert isinstance(vm, dict)
    assert vm["SDEI_VCPUS"]["says"] == "2"
    assert vm["SDEI_VCPUS"]["value"] == "0x2"
    assert any("0x40000010" in each["says"] for each in vm.values())
    text = render(analysis)
    assert "event 0x40000010" in text
    assert "SDEI_AFFINITY" in text


@given(
    st.dictionaries(
        st.builds(lambda kind, index: kind.id | index, st.sampled_from(KINDS), st.integers(0, 3))
        | st.integers(0, 2**64 - 1),
        st.integers(-(2**63), 2**64 - 1)
        | st.sampled_from([16, 32, 256]).flatmap(lambda size: st.binary(min_size=size, max_size=size))
        | st.binary(max_size=40)
        | st.none(),
        max_size=8,
    )
)
def test_no_register_is_too_odd_to_be_told(registers: dict[int, Any]) -> None:
    shower = Shower()
    for name in ("sdei", "sdei-pe"):
        section = Section(name, 0, 1, msgspec.msgpack.encode({"registers": registers}))
        shown = shower.fields(section)["registers"].value
        assert isinstance(shown, dict)
        assert len(shown) == len(registers)
        json.dumps(shown)


def test_every_cut_is_told(tmp_path: Path) -> None:
    stream = a_stream()
    starts = [span.start for span in spans(stream)]
    for length in range(HEADER_SIZE, len(stream), 7):
        analysis = analyzed(tmp_path, stream[:length])
        assert analysis.sound == max(start for start in [HEADER_SIZE, *starts] if start <= length)
        assert f"cut short at offset {length:#x}" in analysis.error
        described = any(span.kind == b"DESC" and span.end <= length for span in spans(stream))
        assert [each.name for each in analysis.sections] == (["board", "clock", "clock"] if described else [])
        came = sum(span.kind == b"SECT" and span.end <= length for span in spans(stream))
        assert sum(each.offset is not None for each in analysis.sections) == came


def test_flipped_bits_are_told(tmp_path: Path) -> None:
    stream = bytearray(a_stream())
    for at in range(HEADER_SIZE, len(stream), 5):
        stream[at] ^= 1 << at % 8
        analysis = analyzed(tmp_path, bytes(stream))
        (span,) = (span for span in spans(a_stream()) if span.start <= at < span.end)
        assert analysis.sound == span.start
        assert f"at offset {span.start:#x}" in analysis.error
        stream[at] ^= 1 << at % 8


RAM_2M = of_memory(2 * MIB)
NO_SECTIONS = (b"DESC", msgspec.msgpack.encode(describe([])), 2)


@pytest.mark.parametrize(
    ("frames", "said"),
    [
        ([zeroes(0, 1)], r"frame 0 \(ZERO\) .* before the description of the machine"),
        ([RAM_2M, RAM_2M], r"frame 1 \(CONF\) .* a second time"),
        ([(b"CONF", b"\x01", 1)], r"frame 0 \(CONF\)"),
        ([(b"CONF", b"\x91" * 5000, 1)], r"frame 0 \(CONF\)"),
        ([(b"CONF", b"\x80", 1)], "how much memory"),
        ([of_memory(2**63)], "how much memory"),
        ([of_memory(-1)], "how much memory"),
        ([RAM_2M, zeroes(512, 1)], "not in the guest's RAM"),
        ([RAM_2M, (b"PAGE", bytes(16), 0)], "0 pages are not 1 to 512"),
        ([RAM_2M, zeroes(0, 1), NO_SECTIONS], "the end of the state is missing"),
    ],
)
def test_what_cannot_be_is_told(tmp_path: Path, frames: list[tuple[bytes, bytes, int]], said: str) -> None:
    analysis = analyzed(tmp_path, framed(*frames))
    assert not analysis.complete
    assert re.search(said, analysis.error), analysis.error


def test_an_end_that_lies_is_told(tmp_path: Path) -> None:
    before = framed(RAM_2M, zeroes(0, 5), NO_SECTIONS)
    for pages, complete in ((5, True), (4, False)):
        analysis = analyzed(tmp_path, before + by_hand(3, b"END ", struct.pack("<QQQ", 3, pages, len(before))))
        assert analysis.complete == complete
    assert "it tells of 4 pages, and 5 came" in analysis.error


def test_what_is_behind_the_end_is_told(tmp_path: Path) -> None:
    stream = a_stream()
    number = len(spans(stream))
    for more, says in (
        (b"x", "1 byte follows the end of the state"),
        (by_hand(number, b"PASS", bytes(4)), "36 bytes follow the end of the state"),
        (by_hand(number, b"CMIT", b"\x80"), "33 bytes follow the end of the state"),
    ):
        analysis = analyzed(tmp_path, stream + more)
        assert says in analysis.error
        assert not analysis.complete
        assert analysis.sound == len(stream)


def test_odd_fields_are_told(tmp_path: Path) -> None:
    deep: Any = 1
    for _ in range(200):
        deep = [deep]
    fields = {
        "deep": deep,
        "nan": float("nan"),
        "infinite": float("inf"),
        "extension": msgspec.msgpack.Ext(5, b"x"),
        "keys": {1: 2, b"x": 3, -1: 4, False: 5},
        "escape": "\x1b[2J\u202eevil\n",
        "\x1b]0;evil\x07": 1,
        "large": bytes(2 * MIB),
        "long": list(range(100_000)),
        "": None,
    }
    sections = [Section("odd", 0, 1, msgspec.msgpack.encode(fields)), Section("x", 7, 9, b"\x80")]
    analysis = analyzed(tmp_path, a_stream(sections=sections))
    assert analysis.complete
    shown = analysis.sections[0].fields
    assert (shown["large"].type, shown["large"].value) == ("bytes", None)
    assert shown["large"].length > 2 * MIB
    assert shown["nan"].value == "nan"
    assert shown["keys"].value == {"0x1": 2, "b'x'": 3, "-0x1": 4, "False": 5}


def test_people_see_the_members_of_maps_and_the_numbers_of_lists(tmp_path: Path) -> None:
    fields = {"registers": {"x": list(range(0x100, 0x100 + 31)), "system": {"ELR_EL1": 0x1234}}, "none": {}}
    text = render(analyzed(tmp_path, a_stream(sections=[Section("vcpu", 0, 1, msgspec.msgpack.encode(fields))])))
    assert re.search(r"\n    x +0x100 0x101 0x102 0x103\n +0x104 ", text)
    assert "0x11e" in text
    assert re.search(r"\n    system *\n      ELR_EL1 +4660 = 0x1234\n", text)
    long = {"numbers": list(range(5000)), "members": {str(number): number for number in range(5000)}}
    text = render(analyzed(tmp_path, a_stream(sections=[Section("long", 0, 1, msgspec.msgpack.encode(long))])))
    assert "... 3,976 more" in text
    assert "4,744 more" in text


@pytest.mark.parametrize("data", [b"\x01", b"", b"\x81\x01\x01", b"\x81\xa1a", b"\x80\x80", b"\x81\xa1a\xa1\xff"])
def test_a_section_that_is_no_record_is_told(tmp_path: Path, data: bytes) -> None:
    described = msgspec.msgpack.encode({"sections": [{"name": "a", "instance": 0, "version": 1, "length": len(data)}]})
    before = framed(RAM_2M, (b"DESC", described, 2), (b"SECT", b"\x01a" + data, 1))
    analysis = analyzed(tmp_path, before + by_hand(3, b"END ", struct.pack("<QQQ", 3, 0, len(before))))
    (section,) = analysis.sections
    damaged = [str(field.value) for field in section.fields.values() if "damaged" in str(field.value)]
    assert "damaged" in section.note or damaged


def test_fields_other_than_described_are_told(tmp_path: Path) -> None:
    honest, other = (Section("a", 0, 1, msgspec.msgpack.encode({name: 1})) for name in "ab")
    before = framed(
        RAM_2M, (b"DESC", msgspec.msgpack.encode(describe([other])), 2), (b"SECT", b"\x01a" + honest.data, 1)
    )
    analysis = analyzed(tmp_path, before + by_hand(3, b"END ", struct.pack("<QQQ", 3, 0, len(before))))
    assert analysis.sections[0].note == "its fields are not those that were described"


def test_a_stream_takes_little_memory_and_a_hostile_one_little_time(tmp_path: Path) -> None:
    path = tmp_path / "stream"
    writer = FrameWriter()
    encoder = PageEncoder(memoryview(bytearray(os.urandom(2 * MIB))))
    with path.open("wb") as file:
        file.write(writer.header())
        file.writelines(writer.frame(b"CONF", of_memory(64 << 30)[1], version=1))
        for _ in range(16):
            file.writelines(writer.frame(b"PAGE", *(encoder.window(0, 512) or [])))
        for first in range(2000):
            file.writelines(writer.frame(b"ZERO", encoder.zero_run(first, (16 << 20) - 2 * first)))
    tracemalloc.start()
    began = time.monotonic()
    try:
        analysis = analyze(path)
        assert tracemalloc.get_traced_memory()[1] < 24 * MIB
    finally:
        tracemalloc.stop()
    assert time.monotonic() - began < 20
    assert analysis.regions[0].plain == 16 * 256
    assert len(render(analysis)) < 10_000


@pytest.mark.parametrize("kind", ["missing", "directory", "fifo", "device"])
def test_files_that_are_none_are_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "file"
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path = Path("/dev/zero")
    with pytest.raises(UsageError, match="cannot read") as caught:
        analyze(path)
    assert "sdeivirt save" in caught.value.hint


@pytest.mark.parametrize("stream", [b"", b"SDEIVIRT", b"\x7fELF" * 100, header(1, 3) + a_stream(a_ram())[HEADER_SIZE:]])
def test_what_is_no_stream_of_ours_is_refused(tmp_path: Path, stream: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(stream)
    with pytest.raises(StreamError, match=str(path)):
        analyze(path)


def test_regions_with_the_same_numbers_are_put_together(tmp_path: Path) -> None:
    analysis = analyzed(tmp_path, framed(of_memory(64 << 30), zeroes(0, 16 << 20), zeroes(256, 512)))
    assert analysis.regions == [
        Region(RAM_BASE, MIB, 0, 256, 0),
        Region(RAM_BASE + MIB, 2 * MIB, 0, 1024, 0),
        Region(RAM_BASE + 3 * MIB, (64 << 30) - 3 * MIB, 0, (16 << 20) - 768, 0),
    ]
