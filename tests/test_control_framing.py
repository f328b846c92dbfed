# SPDX-License-Identifier: Apache-2.0
"""A byte stream cut into JSON texts, whatever the chunks."""

from __future__ import annotations

import collections
import json
import time
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdeivirt.control.framing import MAX_DEPTH, MAX_MESSAGE, FramingError, Splitter, decode, encode

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
OBJECTS = st.dictionaries(st.text(), JSON, max_size=4)


def feed(splitter: Splitter, data: bytes, cuts: list[int]) -> list[bytes]:
    texts: list[bytes] = []
    bounds = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    for start, end in pairwise(bounds):
        texts += splitter.feed(data[start:end])
    return texts


@given(
    st.lists(OBJECTS, max_size=5),
    st.lists(st.integers(0, 10_000), max_size=12),
    st.sampled_from([None, 2]),
    st.sampled_from(["", "\n", "\r\n", "  \t\n\n"]),
)
def test_objects_arrive_whole_from_any_chunks(
    messages: list[dict[str, Any]], cuts: list[int], indent: int | None, between: str
) -> None:
    data = between.join(json.dumps(message, indent=indent, ensure_ascii=False) for message in messages).encode()
    assert [decode(text) for text in feed(Splitter(), data, cuts)] == messages


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=8))
def test_the_chunks_make_no_difference_to_garbage(data: bytes, cuts: list[int]) -> None:
    try:
        whole = list(Splitter().feed(data))
    except FramingError:
        with pytest.raises(FramingError):
            feed(Splitter(), data, cuts)
    else:
        assert feed(Splitter(), data, cuts) == whole


@pytest.mark.parametrize("garbage", ["hello", "[1, 2", '{"execute: 1}', '"', "}", "]]", '{"a": "\\', "1 2 3"])
def test_the_stream_goes_on_after_a_bad_line(garbage: str) -> None:
    texts = list(Splitter().feed(garbage.encode() + b"\n"))
    if "[1" in garbage:  # may still become a list: nothing to say yet
        assert not texts
        return
    splitter = Splitter()
    texts = list(splitter.feed(garbage.encode() + b'\n{"execute": "stop"}'))
    assert decode(texts[-1]) == {"execute": "stop"}
    for text in texts[:-1]:
        with pytest.raises(ValueError):
            decode(text)


@pytest.mark.parametrize(
    "text",
    [b'{"a": NaN}', b'{"a": -Infinity}', b'{"a": 1e999}', b'{"a": 1, "a": 2}', b'{"a": "\xff"}', b"{'a': 1}"],
)
def test_json_is_read_strictly(text: bytes) -> None:
    with pytest.raises(ValueError):
        decode(text)


def test_a_message_may_have_64_kib_and_no_more() -> None:
    longest = b'{"a": "' + b"x" * (MAX_MESSAGE - 9) + b'"}'
    assert len(longest) == MAX_MESSAGE
    assert list(Splitter().feed(longest)) == [longest]
    for data in (longest[:-2] + b'x"}', b"x" * (MAX_MESSAGE + 1), b'"' + b"x" * MAX_MESSAGE):
        with pytest.raises(FramingError, match="64 KiB"):
            list(Splitter().feed(data))


def test_blanks_are_not_kept() -> None:
    splitter = Splitter()
    for _ in range(20):
        assert not list(splitter.feed(b" \r\n" * 10_000))


def test_the_limit_does_not_depend_on_the_chunks() -> None:
    """Blanks before a message used to count where they came in one piece with it, and only there."""
    blanks = b" \n" * MAX_MESSAGE
    for chunk in (len(blanks) + 2, MAX_MESSAGE, 1000):
        splitter = Splitter()
        data = blanks + b"{}"
        texts = [text for at in range(0, len(data), chunk) for text in splitter.feed(data[at : at + chunk])]
        assert texts == [b"{}"]
        # Behind it they do: it could go on.
        splitter = Splitter()
        assert not list(splitter.feed(b"x"))
        with pytest.raises(FramingError, match="64 KiB"):
            collections.deque((list(splitter.feed(b" " * chunk)) for _ in range(0, len(data), chunk)), maxlen=0)


def test_nesting_has_a_limit() -> None:
    assert len(list(Splitter().feed(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH))) == 1
    with pytest.raises(FramingError, match="deep"):
        list(Splitter().feed(b"[" * (MAX_DEPTH + 1)))


def test_a_byte_at_a_time_costs_no_more_than_linear_time() -> None:
    def cost(size: int) -> float:
        data = b'{"a": "' + b"x" * size + b'"}'
        splitter = Splitter()
        start = time.process_time()
        texts = [text for byte in data for text in splitter.feed(bytes([byte]))]
        assert texts == [data]
        return time.process_time() - start

    # Quadratic would be a factor of 16.
    assert min(cost(60_000) for _ in range(3)) < 10 * min(cost(15_000) for _ in range(3))


def test_what_is_sent_is_one_line_of_ascii() -> None:
    line = encode({"a": "ü\n"})
    assert line.endswith(b"\r\n")
    assert line.isascii()
    assert line.count(b"\n") == 1
