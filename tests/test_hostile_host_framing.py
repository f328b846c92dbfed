# SPDX-License-Identifier: Apache-2.0
"""The framing and the parsing of requests, fuzzed: any bytes are texts, errors or an end, and nothing else."""

from __future__ import annotations

import contextlib
import json
import random
import re
import time
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from sdeivirt.control.commands import CommandError, parse_request
from sdeivirt.control.framing import MAX_MESSAGE, FramingError, Splitter, decode, encode

VARIANTS = 50

WORDS = [
    *(b"{", b"}", b"[", b"]", b'"', b"\\", b":", b",", b"\n", b"\r\n", b" ", b"\t", b"\x00", b"\xff", b"\xed\xa0\x80"),
    *(b"null", b"true", b"NaN", b"-Infinity", b"1e999", b"-0", b"9" * 4301, b'"\\ud800"', b'"\\', b"\xef\xbb\xbf"),
    *(b'"execute"', b'"arguments"', b'"id"', b'"stop"', b'{"execute": "stop"}', b'{"execute": "stop", "id": 1}\n'),
    *(b'{"arguments": {}, "execute": "quit"}', b'{"execute": 1}', b'{"execute": "x", "arguments": []}'),
    *(b"[" * 65, b'{"a":' * 65, b'"' + b"x" * 1000, b"x" * 70_000, b" " * 70_000),
]
# Places in WORDS, which stay short when they are printed, or other bytes.
PIECES = st.lists(st.integers(0, len(WORDS) - 1) | st.binary(max_size=8), max_size=12)


def damage(data: bytes, chance: random.Random) -> bytes:
    """The same with some bits, bytes or stretches wrong, cut off, doubled or exchanged."""
    damaged = bytearray(data)
    for _ in range(chance.choice((0, 1, 1, 2, 5))):
        at, end = sorted((chance.randrange(len(damaged) + 1), chance.randrange(len(damaged) + 1)))
        kind = chance.randrange(6)
        if kind == 0 and at < len(damaged):
            damaged[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            damaged[at:at] = chance.choice(WORDS)
        elif kind == 2:
            del damaged[at : min(end, at + 20)]
        elif kind == 3:
            damaged[at:at] = damaged[at : min(end, at + 200)]
        elif kind == 4:
            del damaged[at:]
        elif at < len(damaged):
            damaged[at] = chance.randrange(256)
    return bytes(damaged)


def follow(data: bytes, cuts: list[int]) -> tuple[list[bytes], bool]:
    """The texts in a stream that comes in chunks, and whether it could be followed to its end."""
    splitter = Splitter()
    texts: list[bytes] = []
    bounds = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    try:
        for start, end in pairwise(bounds):
            texts += splitter.feed(data[start:end])
            assert len(splitter._text) <= MAX_MESSAGE
    except FramingError:
        return texts, False
    return texts, True


def check(data: bytes, chance: random.Random) -> None:
    whole = follow(data, [])
    chunked = follow(data, [chance.randrange(1 << 20) for _ in range(chance.randrange(8))])
    assert chunked[1] == whole[1]
    # Of a chunk in which the stream is lost, the texts before have been handed on already.
    assert chunked[0] == whole[0]
    texts, followed = whole
    for text in texts:
        assert 0 < len(text) <= MAX_MESSAGE
        try:
            message = decode(text)
        except ValueError:
            continue
        # What is JSON can be said again: an id comes back as it was.
        assert decode(encode({"id": message})) == {"id": message}
        assert json.loads(text) == message or re.search(rb"[nN]a[nN]", text)
        with contextlib.suppress(CommandError):
            request = parse_request(message)
            assert isinstance(request.name, str)
            assert isinstance(request.arguments, dict)
    if followed:
        # Nothing but blanks, and the start of a text, is kept back.
        rest = len(data.strip()) - sum(map(len, texts))
        assert rest <= MAX_MESSAGE + sum(data.count(blank) for blank in (b" ", b"\t", b"\r", b"\n"))


def fuzz(pieces: list[int | bytes], seed: int) -> None:
    note(f"seed {seed}")
    chance = random.Random(seed)
    data = b"".join(WORDS[piece] if isinstance(piece, int) else piece for piece in pieces)
    check(data, chance)
    for _ in range(VARIANTS - 1):
        check(damage(data, chance), chance)


SEEDS = st.integers(0, (1 << 32) - 1)


@settings(max_examples=60)
@given(PIECES, SEEDS)
def test_any_stream_is_texts_errors_or_an_end(pieces: list[int | bytes], seed: int) -> None:
    fuzz(pieces, seed)


@pytest.mark.campaign
@settings(max_examples=100_000 // VARIANTS, suppress_health_check=list(HealthCheck))
@given(PIECES, SEEDS)
def test_a_hundred_thousand_streams_are_texts_errors_or_an_end(pieces: list[int | bytes], seed: int) -> None:
    fuzz(pieces, seed)


@pytest.mark.parametrize("start", [b"", b'"', b'{"a": "', b'{"a": ['])
def test_a_byte_at_a_time_costs_no_more_than_linear_time_whatever_it_is(start: bytes) -> None:
    """A line outside of any object used to be copied with every byte."""

    def cost(size: int) -> float:
        splitter = Splitter()
        begin = time.process_time()
        for byte in start + b"1," * (size // 2):
            assert not list(splitter.feed(bytes([byte])))
        return time.process_time() - begin

    # Quadratic would be a factor of 16.
    assert min(cost(60_000) for _ in range(3)) < 10 * min(cost(15_000) for _ in range(3))
