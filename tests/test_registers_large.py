# SPDX-License-Identifier: Apache-2.0
"""Registers of a VM with as many vCPUs as there can be, and many events: more than a message of the socket holds."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sdeivirt.cli import main
from sdeivirt.control.client import VmClient
from sdeivirt.control.framing import MAX_MESSAGE
from sdeivirt.control.runtime import VmDirectory
from sdeivirt.errors import UsageError
from sdeivirt.machine import MachineConfig
from sdeivirt.machine.base import MAX_VCPUS
from sdeivirt.sdei import EventDefinition

from .control_support import Served

PRIVATE = [0x4000_0100 + i for i in range(24)]
SHARED = [0x4000_0200 + i for i in range(1000)]
EVENTS = (*map(EventDefinition, PRIVATE), *(EventDefinition(number, shared=True) for number in SHARED))


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """It is paused, and every vCPU has a handler of every private event."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with VmDirectory.acquire("vm") as directory:
        served = Served(directory, MachineConfig(vcpus=MAX_VCPUS, events=EVENTS))
        try:
            for vcpu in range(MAX_VCPUS):
                for event in PRIVATE:
                    served.machine.register(vcpu, event)
            served.machine.pause()
            yield served
        finally:
            served.close()


Run = Callable[..., str]


@pytest.fixture
def run(large: Served, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*words: str, code: int = 0) -> str:
        assert main(["registers", "vm", *words]) == code
        output = capsys.readouterr()
        return output.err if code else output.out

    return run


def test_all_of_it_is_dumped_loaded_listed_and_set_at_once(large: Served, run: Run, tmp_path: Path) -> None:
    dump = run("dump")
    document = json.loads(dump)
    assert len(document["vcpus"]) == MAX_VCPUS
    assert len(dump) > 10 * MAX_MESSAGE
    rows = json.loads(run("list", "--json"))
    assert sum(row["name"] == f"SDEI_STATE.{PRIVATE[-1]:#x}" for row in rows) == MAX_VCPUS

    # A transaction of 512 registers for each of two events: whole, or not at all.
    pending = [f"SDEI_STATE.{event:#x}@{vcpu}=0xb" for event in PRIVATE[:2] for vcpu in range(MAX_VCPUS)]
    assert "has no bits" in run("set", *pending, "SDEI_PE_STATE@0=2", code=2)
    assert run("dump") == dump
    assert run("set", *pending) == ""
    assert all(vcpu[f"SDEI_STATE.{PRIVATE[1]:#x}"] == "0xb" for vcpu in json.loads(run("dump"))["vcpus"])
    file = tmp_path / "state.json"
    file.write_text(dump)
    assert run("load", str(file)) == ""
    assert run("dump") == dump


def test_a_command_that_no_message_holds_is_refused_in_a_sentence(large: Served) -> None:
    with VmClient("vm") as client:
        with pytest.raises(UsageError, match="arguments of set-registers are longer than the 64 KiB"):
            client.execute("set-registers", registers=["x" * MAX_MESSAGE])
        assert client.execute("query-status")["status"] == "paused"  # the connection is as it was
