# SPDX-License-Identifier: Apache-2.0
"""Replay files: what is written is read again; what is damaged is refused with a sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sdeivirt.errors import EnvironmentUnavailableError, UsageError
from sdeivirt.fuzz.describe import describe, replay_aloud
from sdeivirt.fuzz.plan import Failure, World
from sdeivirt.fuzz.replay import load, save
from sdeivirt.sdei.events import EventDefinition, Priority

M64 = 2**64 - 1
EVENTS = (
    EventDefinition(7, interrupt=31),
    EventDefinition(8, priority=Priority.CRITICAL, signalable=True),
    EventDefinition(0x4000_0010, shared=True, priority=Priority.CRITICAL, interrupt=1019),
)
STEPS = [
    ["power", 1, "on"],
    ["call", 1, 0xC400_002C, M64, 0, 0, 1, 2],
    ["set", 0, *range(16)],
    ["inject", 7, 0],
    ["cancel", 0x4000_0010, 1],
    ["interrupt", 31, 1],
    ["look", 1],
    ["reset"],
]
FAILURE = Failure(World("tf-a", 2, EVENTS, (1, 0)), 0x1234, "x0 after PE_MASK", 'it said "no"\nand more', STEPS, 99)


@pytest.fixture
def document(tmp_path: Path) -> dict[str, Any]:
    """A good one, to be damaged."""
    save(FAILURE, tmp_path / "good.json")
    found: dict[str, Any] = json.loads((tmp_path / "good.json").read_text())
    return found


def test_there_and_back(tmp_path: Path) -> None:
    """Everything comes back; long numbers are hexadecimal in the file; an old file is left alone."""
    path = tmp_path / "failure.json"
    save(FAILURE, path)
    with pytest.raises(EnvironmentUnavailableError, match="exists"):
        save(FAILURE, path)
    assert load(path) == FAILURE
    assert '  ["call", 1, "0xc400002c", "0xffffffffffffffff", 0, 0, 1, 2],' in path.read_text().splitlines()
    assert list(tmp_path.iterdir()) == [path], "something was left behind"


def test_machine_steps_are_not_ours_to_judge(tmp_path: Path) -> None:
    failure = Failure(World(machine="unicorn"), 1, "kind", "message", [["settle"], ["sleep", 0, "wfi", 3, 5, False]])
    save(failure, tmp_path / "failure.json")
    assert load(tmp_path / "failure.json") == failure


def test_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentUnavailableError, match=r"cannot write the failure to .*Not a directory"):
        save(FAILURE, tmp_path / "file" / "failure.json")


DAMAGES: dict[str, tuple[dict[str, Any], str]] = {
    "no version": ({"version": None}, "has version None"),
    "newer": ({"version": 2}, "has version 2 of the format, this sdeivirt reads 1"),
    "another format": ({"format": "x"}, "is no replay file of sdeivirt"),
    "policy": ({"policy": "arm"}, "there is no policy 'arm'"),
    "policy's type": ({"policy": 7}, "policy is 7"),
    "no vCPU": ({"vcpus": 0}, "there cannot be 0 vCPUs"),
    "many vCPUs": ({"vcpus": 65}, "there cannot be 65 vCPUs"),
    "true is no number": ({"vcpus": True}, "vcpus is True"),
    "slots": ({"slots": [1]}, r"slots are \[1\]"),
    "many slots": ({"slots": [1, 513]}, r"slots are \[1, 513\]"),
    "events": ({"events": ["5", "5"]}, "event 0x5 is defined twice"),
    "event": ({"events": ["x"]}, "'x' is no event definition"),
    "event's type": ({"events": [5]}, "among the events is 5"),
    "steps' type": ({"steps": {}}, "steps is {}"),
    "step's type": ({"steps": ["reset"]}, "among the steps is 'reset'"),
    "empty step": ({"steps": [["reset"], []]}, r"step 2 is \[\]"),
    "no such step": ({"steps": [["dance", 0]]}, r"step 1 is \['dance', 0\]"),
    "too short": ({"steps": [["call", 0, 1]]}, "step 1 is"),
    "no such PE": ({"steps": [["look", 2]]}, "step 1 is"),
    "negative": ({"steps": [["inject", -1, 0]]}, "step 1 is"),
    "too long a number": ({"steps": [["inject", 2**64, 0]]}, "step 1 is"),
    "hexadecimal": ({"steps": [["inject", "0xg", 0]]}, "step 1 is"),
    "nested": ({"steps": [["inject", [1], 0]]}, "step 1 is"),
    "float": ({"steps": [["inject", 1.0, 0]]}, "step 1 is"),
    "true": ({"steps": [["inject", True, 0]]}, "step 1 is"),
    "power": ({"steps": [["power", 0, "off"]]}, "step 1 is"),
    "seed": ({"seed": "1"}, "seed is '1'"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged(document: dict[str, Any], damage: str, tmp_path: Path) -> None:
    changes, message = DAMAGES[damage]
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(document | changes))
    with pytest.raises(UsageError, match=message):
        load(path)


@pytest.mark.parametrize("key", ["policy", "vcpus", "slots", "events", "seed", "steps", "kind", "message", "at"])
def test_something_is_missing(document: dict[str, Any], key: str, tmp_path: Path) -> None:
    del document[key]
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(document))
    with pytest.raises(UsageError, match=f"it has no {key}"):
        load(path)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"7", b"\xff\xfe", b"[" * 100_000, b'{"format": "sdeivirt fuzz"}']
)
def test_not_even_json(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    with pytest.raises(UsageError):
        load(path)


def test_cut_off_anywhere(tmp_path: Path) -> None:
    """A file of which the end is missing is no replay file."""
    save(FAILURE, tmp_path / "good.json")
    whole = (tmp_path / "good.json").read_bytes().rstrip()
    path = tmp_path / "cut.json"
    for length in range(0, len(whole) - 1, 7):
        path.write_bytes(whole[:length])
        with pytest.raises(UsageError):
            load(path)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        load(tmp_path / "nothing.json")
    with pytest.raises(UsageError, match="it is a directory"):
        load(tmp_path)


def test_steps_in_words() -> None:
    """What a replay says of each step, and what came of it."""
    register = ["call", 0, 0xC400_0021, 0, 0x4010_0000, 7, 0, 0]
    steps = [
        ["call", 1, 0xC400_0025, 0, 0, 0, 0, 0],
        register,
        ["call", 0, 0xC400_0022 | 5 << 32, 0, 0, 0, 0, 0],
        ["call", 0, 0xC400_002C, 0, 0, 0, 0, 0],
        ["call", 1, 0xC400_002F, 0, 0, 0, 0, 0],
        ["look", 0],
        ["call", 0, 0xC400_0025, 1, 0, 0, 0, 0],
        ["call", 1, 0x8400_0000, 0, 0, 0, 0, 0],
        ["interrupt", 20, 1],
    ]
    said: list[str] = []
    assert replay_aloud(Failure(World(vcpus=2), 0, "", "", steps), said.append) is None
    assert [line.strip() for line in said] == [
        "1 PE 1 calls EVENT_COMPLETE(status=0x0) -> DENIED",
        "2 PE 0 calls EVENT_REGISTER(event=0x0, entry=0x40100000, argument=0x7, flags=0x0, affinity=0x0) -> SUCCESS",
        "3 PE 0 calls EVENT_ENABLE(event=0x0) as 0x5c4000022 -> SUCCESS",
        "4 PE 0 calls PE_UNMASK() -> SUCCESS",
        "5 PE 1 calls EVENT_SIGNAL(event=0x0, affinity=0x0) -> SUCCESS",
        "6 PE 0 stops and looks -> PE 0 enters event 0x0",
        "7 PE 0 calls EVENT_COMPLETE(status=0x1) -> a handler ends",
        "8 PE 1 calls 0x84000000(0x0, 0x0, 0x0) -> 0x10001",
        "9 interrupt 20 fires, on PE 1",
    ]
    assert describe(["settle"]) == "settle"
    assert describe(["power", 3, "reset"]) == "the machine resets PE 3"
