# SPDX-License-Identifier: Apache-2.0
"""The parser of streams, fuzzed: it gives a state or a StreamError, and RAM changes only where it was addressed.

Sound streams are changed: bits, numbers, lengths, frames that are lost, doubled, exchanged or of another stream, ends
cut off. In half of them numbers and checksums are put right afterwards, so that what is behind these is reached; in
the others nothing may be taken for a state but what it was before.
"""

from __future__ import annotations

import io
import random
import resource
import struct
from collections import Counter

import pytest
import xxhash

from sdeivirt.errors import StreamError
from sdeivirt.machine.base import PAGE_SIZE
from sdeivirt.migration.ram import PageDecoder
from sdeivirt.migration.sections import Section, pack
from sdeivirt.migration.stream import FrameReader, Sections

from .stream_support import FRAME_SIZE, HEADER_SIZE, RAM_BASE, Clock, a_ram, a_stream, by_hand, header, load, spans
from .test_migration_stream import STREAM_1_0

PAGES = 8
GUARD = b"\xa5" * PAGE_SIZE
UNTOUCHED = b"\x5a" * PAGE_SIZE * PAGES
BLOCK = 1000  # inputs of one seed

State = tuple[list[Section], bytes]

NUMBERS = [
    *(0, 1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 255, 256, 511, 512, 513, 4095, 4096, 4097, 0x7FFF, 0xFFFF, 1 << 16),
    *(1 << 20, 1 << 21, (1 << 21) + 1040, 1 << 24, 1 << 26, (1 << 26) + 1, (1 << 31) - 1, 1 << 31, (1 << 32) - 1),
    *(1 << 32, 1 << 52, (1 << 52) - 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, (1 << 64) - PAGE_SIZE),
    *(RAM_BASE + page * PAGE_SIZE for page in (-1, 0, 1, 4, 7, 8, 9)),
]
WIDTHS = (1, 2, 4, 8)


def seeds_of_streams() -> list[tuple[bytes, list[bytes]]]:
    """Sound streams: header and frames."""
    plain = struct.pack("<QII4H", RAM_BASE + 2 * PAGE_SIZE, 4, 0, 0, 1, 2, 3) + bytes(range(1, 256)) * 16 + bytes(16)
    one = header() + by_hand(0, b"CONF", b"\x80", version=1) + by_hand(1, b"PAGE", plain)
    one += by_hand(2, b"ZERO", struct.pack("<QQ", RAM_BASE, 8))
    one += by_hand(3, b"DESC", b"\x81\xa8sections\x90", version=2)
    one += by_hand(4, b"END ", struct.pack("<QQQ", 4, 11, len(one)))
    clocks = [pack("clock", Clock(ticks, False), ticks) for ticks in range(3)]
    streams = [
        one,
        STREAM_1_0,
        a_stream(a_ram(PAGES)),
        a_stream(bytearray(PAGE_SIZE * PAGES), sections=[pack("clock", Clock(3, True))]),
        a_stream(bytearray(b"\x77" * PAGE_SIZE * PAGES), sections=clocks),
    ]
    return [(each[:HEADER_SIZE], [each[span.start : span.end] for span in spans(each)]) for each in streams]


class Fuzzer:
    """Changes streams and reads them."""

    def __init__(self) -> None:
        self.streams = seeds_of_streams()
        self.pool = [frame for _, frames in self.streams for frame in frames]
        self.memory = bytearray(GUARD + UNTOUCHED + GUARD)
        self.ram = memoryview(self.memory)[PAGE_SIZE:-PAGE_SIZE]
        self.outcomes: Counter[str] = Counter()
        self.chance = random.Random()
        self.sound = [self.state(start + b"".join(frames)) for start, frames in self.streams]

    def state(self, stream: bytes) -> State:
        """What a sound stream gives."""
        ram = bytearray(UNTOUCHED)
        return load(stream, memoryview(ram)), bytes(ram)

    def run(self, seed: int, count: int) -> int:
        """Read `count` inputs; how many these were. What fails names its seed, and has its bytes."""
        done = 0
        for block in range(count // BLOCK):
            self.chance.seed(seed + block)
            for number in range(BLOCK):
                stream, expected = self.changed()
                try:
                    self.read(stream, expected)
                except BaseException as error:
                    error.add_note(f"seed {seed + block:#x}, input {number}: {stream.hex()}")
                    raise
                done += 1
        return done

    def below(self, limit: int) -> int:
        """As randrange(), in a third of the time."""
        return int(self.chance.random() * limit)

    def changed(self) -> tuple[bytes, State | None]:
        """One input, and the only state that it may give, if that is known."""
        which = self.below(len(self.streams))
        start, frames = self.streams[which]
        frames = list(frames)
        expected: State | None = self.sound[which]
        lies = -1
        for _ in range((1, 1, 1, 2, 3)[self.below(5)]):
            # Pages have most that can be wrong, and stand among the first.
            at, what = self.below(len(frames) if self.below(3) else min(3, len(frames))), self.below(12)
            frame = frames[at]
            if what < 4:
                changed = bytearray(frame)
                place = self.below(len(frame)) if what else self.below(FRAME_SIZE)
                changed[place] ^= 1 << self.below(8)
                frames[at] = bytes(changed)
            elif what < 7:
                width = WIDTHS[self.below(4)]
                number = NUMBERS[self.below(len(NUMBERS))] & ((1 << 8 * width) - 1)
                place = FRAME_SIZE + width * self.below(min(len(frame), 64) // width)
                frames[at] = frame[:place] + number.to_bytes(width, "little") + frame[place + width :]
            elif what == 7:
                lies = at
                length = NUMBERS[self.below(len(NUMBERS))] & 0xFFFF_FFFF
                frames[at] = frame[:12] + length.to_bytes(4, "little") + frame[16:]
            elif what == 8:
                cut = FRAME_SIZE + self.below(len(frame) - FRAME_SIZE + 1)
                frames[at] = frame[:cut] + (frame[cut + self.below(9) :] if self.below(2) else frame[:cut])
            elif what < 11:
                # One of another stream that fits is sound: it is no checksum's work to tell who wrote it.
                expected = None
                frames[at : at + what - 9] = [self.pool[self.below(len(self.pool))]]
            else:
                frames[at : at + 2] = frames[at : at + 2][:: -1 if self.below(2) else 2]
        if self.below(2):
            expected = None
            frames = [repaired(frame, number, number == lies) for number, frame in enumerate(frames)]
        stream = start + b"".join(frames)
        return (stream if self.below(8) else stream[: self.below(len(stream) + 1)]), expected

    def read(self, stream: bytes, expected: State | None) -> None:
        """As a destination does; RAM that nothing addressed has to be as it was."""
        addressed: set[int] = set()
        reader = FrameReader(io.BytesIO(stream).readinto)
        sections, decoder = Sections(), PageDecoder(self.ram)
        outcome = "cut short"
        try:
            reader.start()
            while (frame := reader.next()) is not None:
                kind = frame.kind
                outcome = "refused in its frames"
                if kind in (b"PAGE", b"ZERO"):
                    outcome = "refused for its pages"
                    first, count = struct.unpack_from("<QQ" if kind == b"ZERO" else "<QI", frame.payload)
                    decoder.apply(frame)
                    page = (first - RAM_BASE) // PAGE_SIZE
                    addressed.update(range(page, page + count))
                elif kind in (b"DESC", b"SECT", b"END "):
                    outcome = "refused for its sections"
                    sections.feed(frame)
                    if sections.complete:
                        for section in sections.sections():
                            section.fields()
                        outcome = "whole"
                        assert expected is None or (sections.sections(), bytes(self.ram)) == expected
                        break
                outcome = "refused in its frames"
        except StreamError:
            pass
        self.outcomes[outcome] += 1
        memory = self.memory
        if addressed:
            for page in set(range(PAGES)) - addressed:
                at = PAGE_SIZE * (1 + page)
                assert memory[at : at + PAGE_SIZE] == UNTOUCHED[:PAGE_SIZE]
            assert memory.startswith(GUARD)
            assert memory.endswith(GUARD)
            self.ram[:] = UNTOUCHED
        else:
            assert memory[PAGE_SIZE:-PAGE_SIZE] == UNTOUCHED


def repaired(frame: bytes, number: int, lies: bool) -> bytes:
    """The frame with the number that is due, a checksum that is right, and its length, unless that is what lies."""
    if len(frame) < FRAME_SIZE:
        return frame
    length = frame[12:16] if lies else (len(frame) - FRAME_SIZE).to_bytes(4, "little")
    head, payload = frame[:12] + length + number.to_bytes(8, "little"), frame[FRAME_SIZE:]
    return head + xxhash.xxh3_64_intdigest(head + payload).to_bytes(8, "little") + payload


def campaign(count: int) -> None:
    seed = random.SystemRandom().getrandbits(48)
    print(f"seed {seed:#x}")
    fuzzer = Fuzzer()
    assert fuzzer.run(seed, BLOCK) == BLOCK
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    done = BLOCK + fuzzer.run(seed + 1, count - BLOCK)
    print(f"{done:,} inputs: {dict(fuzzer.outcomes)}")
    assert done == sum(fuzzer.outcomes.values()) == count
    # Each layer is reached, and no input is as large as a window of pages: KiB on Linux.
    assert min(fuzzer.outcomes[outcome] for outcome in OUTCOMES) > count // 200
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 << 10


OUTCOMES = ("whole", "refused in its frames", "refused for its pages", "refused for its sections", "cut short")


def test_a_damaged_stream_is_refused_or_harmless() -> None:
    campaign(10_000)


@pytest.mark.campaign
def test_half_a_million_damaged_streams_are_refused_or_harmless() -> None:
    campaign(500_000)


@pytest.mark.nightly
@pytest.mark.parametrize("half", [1, 2])
def test_five_million_damaged_streams_are_refused_or_harmless(half: int) -> None:
    campaign(2_500_000)
