# SPDX-License-Identifier: Apache-2.0
"""Event files, and files of all sorts in the place of one: events, or one sentence that says what is wrong."""

from __future__ import annotations

import os
import random
import resource
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sdeivirt.errors import EventFileError, ImageError, UsageError
from sdeivirt.machine.images import read_image
from sdeivirt.machine.qemu.boot import Payload
from sdeivirt.sdei.events import EventDefinition, check_events, load_events, parse_event

from .asm import assemble
from .control_support import cli

SAMPLE = b"""# of a platform
[[event]]
number = 0x40000010

[[event]]
number = 1_000
priority = "critical"
interrupt = 16

[[event]]
number = 0o17
type = 'shared'
interrupt = 40

[[event]]
number = 7
signalable = true
"""


def load(path: Path, data: bytes) -> list[EventDefinition]:
    """The events in a file; none where it is refused, which takes one short sentence."""
    path.write_bytes(data)
    try:
        events = load_events(path)
        return list(check_events(events))
    except EventFileError as error:
        assert_one_sentence(error)
        return []


def assert_one_sentence(error: UsageError) -> None:
    text = str(error)
    assert error.exit_code == 2
    assert error.message
    assert error.hint
    assert len(text) < 500
    assert text.isprintable(), text


def test_the_sample_is_sound(tmp_path: Path) -> None:
    events = load(tmp_path / "events", SAMPLE)
    assert [event.number for event in events] == [0, 7, 15, 1000, 0x4000_0010]


def test_every_truncation(tmp_path: Path) -> None:
    sizes = [len(load(tmp_path / "events", SAMPLE[:length])) for length in range(len(SAMPLE) + 1)]
    assert set(sizes) == {0, 1, 2, 3, 4, 5}  # number = 0 is event 0


def flip(path: Path, bits: range) -> None:
    for position in range(len(SAMPLE)):
        for bit in bits:
            damaged = bytearray(SAMPLE)
            damaged[position] ^= 1 << bit
            load(path, bytes(damaged))


def test_a_wrong_bit_in_every_byte(tmp_path: Path) -> None:
    bit = random.randrange(8)
    print(f"bit {bit}")
    flip(tmp_path / "events", range(bit, bit + 1))


@pytest.mark.campaign
def test_every_wrong_bit(tmp_path: Path) -> None:
    flip(tmp_path / "events", range(8))


PARTS = [
    *(
        "[[event]]\n",
        "[event]\n",
        "[[event.x]]\n",
        "event = [",
        "event = ",
        "[",
        "]",
        "{",
        "}",
        "\n",
        "=",
        ",",
        ".",
        "#",
    ),
    *("number", "type", "priority", "signalable", "interrupt", "event", '"number"', "'type'", "other", '""'),
    *(" = 0x40000010\n", " = 0x40001000\n", " = -1\n", " = 0x80000000\n", " = 0\n", " = 7\n", " = 16\n", " = 1020\n"),
    *(" = true\n", ' = "shared"\n', ' = "private"\n', ' = "critical"\n', " = nan\n", " = inf\n", " = 1.5\n", " = []\n"),
    *(" = 2021-12-01\n", " = 25:61:61\n", " = 1979-05-27T07:32:00Z\n", " = {a = 1}\n", ' = """x\ny"""\n', " = [{}]\n"),
    *(" = 0x" + "f" * 5000 + "\n", " = " + "9" * 5000 + "\n", "[" * 400, "a." * 31, "a." * 40, '"\\u00e9\\ud800"'),
    *("\0", "\ufeff", "\u2028", "\x1b[31m", "k" * 2000, " = '" + "v" * 2000 + "'\n", "x" * 100 + " = 1\n"),
]


def structured(path: Path, count: int, seed: int) -> None:
    print(f"seed {seed}")
    chance = random.Random(seed)
    accepted = 0
    for _ in range(count):
        if chance.getrandbits(1):
            text = "".join(chance.choices(PARTS, k=chance.randrange(1, 12)))
        else:
            lines = SAMPLE.decode().splitlines(keepends=True)
            for _ in range(chance.randrange(1, 4)):
                at = chance.randrange(len(lines))
                lines[at : at + chance.randrange(2)] = chance.choices(PARTS, k=chance.randrange(3))
            text = "".join(lines)
        accepted += bool(load(path, text.encode("utf-8", "surrogatepass")))
    assert 0 < accepted < count


def test_parts_of_event_files_in_any_order(tmp_path: Path) -> None:
    structured(tmp_path / "events", 600, random.randrange(1 << 32))


@pytest.mark.campaign
def test_many_parts_of_event_files_in_any_order(tmp_path: Path) -> None:
    structured(tmp_path / "events", 8000, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[event]]\nnumber = " + "9" * 5000, "a number that is too long"),
        ("[[event]]\nnumber = 0x" + "f" * 5000, "event of 20000 bits is no event number"),
        ("[[event]]\nnumber = 1\ninterrupt = 0x" + "f" * 5000, "interrupt of 20000 bits does not fit"),
        ("[[event]]\nnumber = [0x" + "f" * 5000 + "]", "must be of type int"),
        ("[[event]]\nnumber = 1\ntype = '" + "x" * 100_000 + "'", "it is private or shared"),
        ("[[event]]\n" + "k" * 100_000 + " = 1", "unknown key 'kkk"),
        ("event = " + "[" * 100_000, "nested too deep"),
        ("event = " + "[\n" * 100_000, "nested too deep"),
        ("event = [" + "{a = " * 50_000, "nested too deep"),
        ("a." * 100_000 + "b = 1", "more than 32 dots in line 1"),
        ("\n[" + "a." * 100_000 + "b]", "more than 32 dots in line 2"),
        ("#" * (1 << 20) + "\n", "more than 1 MiB"),
    ],
    ids=lambda text: repr(text[:30]),
)
def test_what_is_too_much(tmp_path: Path, text: str, message: str) -> None:
    """Each of these used to be a traceback, a page of digits, or all of the memory."""
    (tmp_path / "events").write_text(text)
    with pytest.raises(EventFileError) as caught:
        load_events(tmp_path / "events")
    assert_one_sentence(caught.value)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["0x" + "f" * 9000, "9" * 9000, "1:interrupt=0x" + "f" * 9000, "1:" + "z" * 9000, "1:shared," + "\x1b" * 900],
)
def test_flags_that_are_too_much(text: str) -> None:
    with pytest.raises(EventFileError) as caught:
        parse_event(text)
    assert_one_sentence(caught.value)


@pytest.mark.campaign
@pytest.mark.parametrize(
    "line", ["a." * 30 + "{}b = 1\n", "[" + "a{}." * 10 + "b]\n", "x{} = [[[[1]]]]\n", "[[a]]\n", "{} = '\\n\\n'\n"]
)
def test_the_dearest_files_cost_seconds_and_no_more(tmp_path: Path, line: str) -> None:
    size = 1 << 20
    text = "".join(line.replace("{}", str(i)) for i in range(size // (len(line) + 6)))
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    assert load(tmp_path / "events", text.encode()[:size]) == []
    assert time.process_time() - start < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 600 << 10  # KiB


# -- what is no file


def is_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def is_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(path))


def is_sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 40)


def is_secret(path: Path) -> None:
    path.write_bytes(SAMPLE)
    path.chmod(0)


def is_loop(path: Path) -> None:
    path.symlink_to(path)


NOBODY = 65534
READERS: dict[str, tuple[Callable[[Path], object], type[UsageError]]] = {
    "events": (load_events, EventFileError),
    "guest": (lambda path: read_image(path, 0x4000_0000, 64 << 20), ImageError),
    "initrd": (lambda path: Payload.read(assemble("    b ."), path, 0x4400_0000), ImageError),
}


@pytest.mark.parametrize("what", READERS)
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (is_device, "it is a device"),
        (os.mkfifo, "it is a FIFO"),
        (Path.mkdir, "it is a directory"),
        (is_socket, "No such device or address"),
        (is_sparse, "more than|no AArch64 ELF file"),
        (is_loop, "symbolic links"),
        (lambda path: None, "No such file"),
    ],
    ids=["device", "FIFO", "directory", "socket", "sparse", "loop", "nothing"],
)
def test_what_is_no_file(tmp_path: Path, make: Callable[[Path], object], message: str, what: str) -> None:
    """The device used to be read until memory was full, and a FIFO for ever."""
    read, kind = READERS[what]
    make(tmp_path / "given")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(kind, match=message) as caught:
        read(tmp_path / "given")
    assert_one_sentence(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10  # KiB


@pytest.mark.parametrize("what", READERS)
def test_names_that_are_none_and_files_of_others(tmp_path: Path, what: str) -> None:
    read, kind = READERS[what]
    for name in ("a\0b", "n" * 300, "n/" * 3000):
        with pytest.raises(kind) as caught:
            read(tmp_path / name)
        assert caught.value.exit_code == 2
    is_secret(tmp_path / "secret")
    me = os.geteuid()
    if me == 0:  # who reads everything
        assemble("    b .")
        os.seteuid(NOBODY)
    try:
        with pytest.raises(kind, match="Permission denied"):
            read(tmp_path / "secret")
    finally:
        os.seteuid(me)


@pytest.mark.process
def test_the_command_line_says_it_in_a_sentence(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for words in (
        ("--guest", "listen", "--events", "/dev/zero"),
        ("--guest", "listen", "--events", os.fspath(tmp_path / "fifo")),
        ("--kernel", "/dev/zero"),
        ("--kernel", os.fspath(tmp_path / "fifo")),
        ("--guest", os.fspath(tmp_path / "fifo")),
        ("--guest", "g" * 300),
    ):
        done = cli(tmp_path, "run", *words, code=2)
        lines = done.stderr.splitlines()
        assert [line.partition(":")[0] for line in lines] == ["error", "hint"]
        assert done.stdout == ""
    assert list((tmp_path / "sdeivirt").iterdir()) == []
