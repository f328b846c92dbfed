# SPDX-License-Identifier: Apache-2.0
"""`sdeivirt registers` and the commands behind it, on VMs that run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sdeivirt.cli import main
from sdeivirt.control import client as client_module
from sdeivirt.control.client import VmClient
from sdeivirt.errors import RegisterError, StateError, UnknownVcpuError
from sdeivirt.guests import guest_path
from sdeivirt.machine import MachineConfig, open_machine
from sdeivirt.registers import Registers
from sdeivirt.registers.running import dump_registers, get_register, list_registers, load_registers, set_registers
from sdeivirt.sdei import EventDefinition

from .control_support import LIMIT, Qmp, VmProcess, cli, environment
from .machine_support import KINDS, Console, Until, engine

SHARED = 0x4000_0010
GUEST = ["--guest", "listen", "--vcpus", "2", "--append", f"events=0,{SHARED:#x}", "--event", f"{SHARED:#x}:shared"]
READY = ["listening: CPU#0", "listening: CPU#1"]
PENDING = 0x6030_0000_0014_000B
MASKED = {"register": "SDEI_PE_STATE", "value": 1, "vcpu": 0}
SWITCHED_OFF = {"register": "STD_BMAP", "value": 1}


@pytest.fixture(scope="module")
def vm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VmProcess]:
    """A VM whose two vCPUs listen to event 0, and whoever is asked to the shared one."""
    with VmProcess(tmp_path_factory.mktemp("run"), *GUEST) as vm:
        for text in READY:
            vm.wait_out(text)
        yield vm


@pytest.fixture
def here(vm: VmProcess, monkeypatch: pytest.MonkeyPatch) -> VmProcess:
    """The same, for clients in this process."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(vm.runtime))
    return vm


@pytest.fixture
def client(here: VmProcess) -> Iterator[VmClient]:
    with VmClient("vm") as client:
        yield client


Run = Callable[..., str]


@pytest.fixture
def run(here: VmProcess, capsys: pytest.CaptureFixture[str]) -> Run:
    """`sdeivirt registers vm WORDS`: what it prints if it succeeds, what it complains of if not."""

    def run(*words: str, code: int = 0) -> str:
        found = main(["registers", "vm", *words])
        output = capsys.readouterr()
        assert (found, "Traceback" in output.err) == (code, False), output.err
        assert output.err == "" if code == 0 else output.out == ""
        return output.err if code else output.out

    return run


pytestmark = pytest.mark.machine
process = pytest.mark.process


# -- the command line


@process
def test_the_list(run: Run) -> None:
    text = run()
    lines = text.splitlines()
    assert lines[0].split() == ["register", "vCPU", "id", "bits", "value", "state"]
    assert sum(line.startswith("SDEI_EVENT_REGISTERED ") for line in lines) == 2
    assert re.search(r"^SDEI_EVENT_ENABLED +1 +0x6030000000140009 +64 +0x1 +event 0x0$", text, re.MULTILINE)
    assert re.search(r"^SDEI_STATE.0x40000010 +- +0x6030000005d40001 +64 +0x3 +registered, enab", text, re.MULTILINE)
    assert run("list") == text
    rows = json.loads(run("list", "--vcpu", "1", "--json"))
    assert {row["vcpu"] for row in rows} == {1}
    state = {"id": "0x603000000014000d", "name": "SDEI_PE_STATE", "size": 64, "vcpu": 1, "value": "0x0"}
    assert state | {"text": "unmasked"} in rows


@process
def test_get(run: Run) -> None:
    text = run("get", "SDEI_EVENT_PENDING", hex(PENDING), "sdei_vcpus")
    pending = [f"SDEI_EVENT_PENDING (0x603000000014000b) of vCPU {vcpu} = 0x0: none" for vcpu in (0, 1)]
    assert text.splitlines() == [*pending, *pending, "SDEI_VCPUS (0x6030000005d00003) = 0x2: 2"]
    rows = json.loads(run("get", str(PENDING), "--vcpu", "1", "--json"))
    assert [(row["name"], row["vcpu"], row["value"]) for row in rows] == [("SDEI_EVENT_PENDING", 1, "0x0")]
    assert json.loads(run("get", f"{PENDING}@1", "--json")) == rows
    assert json.loads(run("get", "SDEI_EVENT_PENDING@1", "--vcpu", "1", "--json")) == rows


@process
@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["get"], 2, "get takes registers"),
        (["set"], 2, "set takes REGISTER=VALUE"),
        (["load"], 2, "load takes one file"),
        (["load", "a", "b"], 2, "load takes one file"),
        (["list", "a"], 2, "list takes nothing"),
        (["dump", "--vcpu", "1"], 2, "dump is about all vCPUs"),
        (["frob"], 2, "frob"),
        (["get", "SDEI_NOTHING"], 2, "there is no register 'SDEI_NOTHING'"),
        (["get", "SDEI_STATE.0x77"], 2, "no event 0x77 is defined"),
        (["get", "SDEI_PE_STATE", "--vcpu", "2"], 2, "there is no vCPU 2"),
        (["set", "SDEI_PE_STATE"], 2, "'SDEI_PE_STATE' sets no register"),
        (["set", "SDEI_PE_STATE@x=1"], 2, "sets no register"),
        (["set", "SDEI_PE_STATE=1"], 2, "each vCPU has a register SDEI_PE_STATE"),
        (["set", "SDEI_PE_STATE@0=x", "--pause"], 2, "'x' is no register's value"),
        (["set", "SDEI_PE_STATE@0=1"], 1, "registers of a VM that is running cannot be set"),
        (["set", "SDEI_PE_STATE@9=1", "--pause"], 2, "there is no vCPU 9"),
        (["set", "SDEI_LAYOUT@0=1", "--pause"], 2, "is one of the VM"),
        (["get", "SDEI_LAYOUT@0"], 2, "is one of the VM"),
        (["get", "SDEI_PE_STATE@"], 2, "'SDEI_PE_STATE@' is no register"),
        (["get", "SDEI_PE_STATE@9"], 2, "there is no vCPU 9"),
        (["get", "SDEI_PE_STATE@0", "--vcpu", "1"], 2, "is of vCPU 0, and --vcpu says 1"),
        (["set", "SDEI_PE_STATE@0=1", "--vcpu", "1", "--pause"], 2, "is of vCPU 0, and --vcpu says 1"),
        (["set", "SDEI_PE_STATE@0=1", "SDEI_PE_STATE@0=0"], 2, "SDEI_PE_STATE of vCPU 0 cannot be both '1' and '0'"),
        (["set", "SDEI_PE_STATE=1", "sdei_pe_state@1=0", "--vcpu", "1"], 2, "of vCPU 1 cannot be both '1' and '0'"),
        (["set", "SDEI_PE_STATE@0=1", "SDEI_PE_STATE@0=0x1"], 1, "of a VM that is running cannot be set"),
        (["set", "SDEI_EVENT_ENABLED=0x10", "--vcpu", "1", "--pause"], 2, "of vCPU 1: it has no bits 0x10"),
        (["set", "SDEI_EVENT_REGISTERED@0=0", "--pause"], 2, "event 0x0 is enabled, but not registered"),
        (["set", "SDEI_POWER@1=3", "SDEI_PE_STATE@1=1", "--pause"], 2, "vCPUs are turned on and off by the guest"),
        (["load", "/nonexistent"], 2, "cannot read /nonexistent"),
        (["load", "/dev/null"], 2, "it is a device"),
        (["load", __file__], 2, "test_registers_cli.py holds no JSON"),
    ],
)
def test_mistakes(run: Run, client: VmClient, words: list[str], code: int, message: str) -> None:
    before = client.dump_registers()
    assert message in run(*words, code=code)
    assert client.dump_registers() == before
    assert client.execute("query-status")["running"]


@process
def test_an_event_that_is_set_pending_is_handled(here: VmProcess, client: VmClient) -> None:
    """Of a vCPU and of the VM, in one go; the VM goes on, and stays paused where it was. A process of its own."""

    def delivered() -> list[int]:
        return [handler.delivered for event in client.status().events for handler in event.handlers]

    counts, before = delivered(), here.out.count("SDEI Event (CPU#")
    words = ["set", f"{PENDING}=1", f"SDEI_STATE.{SHARED:#x}=0xb", "--vcpu", "1", "--pause"]
    assert cli(here.runtime, "registers", "vm", *words).stdout == ""
    here.wait_out("SDEI Event (CPU#", before + 2)
    client.pause()
    cli(here.runtime, "registers", "vm", "set", "SDEI_EVENT_PENDING@0=1", "--pause")
    report = client.status()
    assert report.state == "paused"
    assert report.events[0].handlers[0].pending
    client.resume()
    here.wait_out("SDEI Event (CPU#", before + 3)
    assert [new - old for old, new in zip(counts, delivered(), strict=True)] == [1, 1, 1]


@process
def test_dump_and_load(run: Run, here: VmProcess, client: VmClient, tmp_path: Path) -> None:
    dump = run("dump")
    assert json.loads(run("set", "SDEI_PE_STATE@0=1", "SDEI_PE_STATE@1=1", "--pause", "--json")) == {"set": 2}
    assert [vcpu.masked for vcpu in client.status().vcpus] == [True, True]
    (tmp_path / "state.json").write_text(dump)
    assert run("load", str(tmp_path / "state.json"), "--pause") == ""
    assert [vcpu.masked for vcpu in client.status().vcpus] == [False, False]
    assert run("dump") == dump
    command = [sys.executable, "-m", "sdeivirt", "registers", "vm", "load", "-", "--pause", "--json"]
    for text, code, message in (
        (dump, 0, ""),
        (dump.replace('"vcpus"', '"cpus"'), 2, "this is no dump of registers"),
        ("", 2, "- holds no JSON"),
        ("[]", 2, "- holds no dump of registers"),
    ):
        done = subprocess.run(
            command, input=text, env=environment(here.runtime), capture_output=True, text=True, timeout=LIMIT
        )
        assert done.returncode == code, done.stderr
        assert message in done.stderr
    assert run("dump") == dump


@process
def test_the_service_bitmaps(run: Run, here: VmProcess) -> None:
    """KVM's: which services the guest finds. They are fixed once it has run, so only what they are can be set."""
    rows = {row["id"]: row for row in json.loads(run("list", "--json"))}
    assert rows["0x6030000000160000"] == {
        "id": "0x6030000000160000",
        "name": "STD_BMAP",
        "size": 64,
        "vcpu": None,
        "value": "0x3",
        "text": "std-trng, std-sdei",
    }
    assert [rows[f"0x603000000016000{i}"]["name"] for i in (1, 2)] == ["STD_HYP_BMAP", "VENDOR_HYP_BMAP"]
    assert "BMAP" not in run("list", "--vcpu", "0")
    for name in ("STD_BMAP", "std_bmap", "0x6030000000160000", str(0x6030_0000_0016_0000)):
        assert run("get", name) == "STD_BMAP (0x6030000000160000) = 0x3: std-trng, std-sdei\n"
    assert run("set", "STD_BMAP=0x3", "SDEI_PE_STATE@0=0", "--pause") == ""
    assert "BMAP" not in run("dump")
    with VmProcess(here.runtime, *GUEST, "--disable", "std-trng", name="other") as other:
        other.wait_out(READY[0])
        assert cli(here.runtime, "registers", "other", "get", "STD_BMAP").stdout.endswith("= 0x2: std-sdei\n")


# -- the commands


@process
def test_the_client(here: VmProcess, client: VmClient, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(client.list_registers(0)) < len(client.list_registers())
    assert [row["vcpu"] for row in client.get_register("SDEI_PE_STATE")] == [0, 1]
    with pytest.raises(UnknownVcpuError):
        client.get_register("SDEI_PE_STATE", 7)
    with pytest.raises(StateError, match="cannot be set"):
        client.load_registers(client.dump_registers())
    client.pause()
    try:
        dump = client.dump_registers()
        with pytest.raises(RegisterError, match=r"SDEI_PE_STATE \(0x603000000014000d\) of vCPU 0: it has no bits"):
            client.set_registers([{"register": "SDEI_PE_STATE", "vcpu": 0, "value": 2}])
        client.set_registers([{"register": 0x6030_0000_0014_000D, "vcpu": 0, "value": "0x1"}])
        assert client.dump_registers() != dump
        # One that is too long for a message goes through a file, of which nothing stays.
        monkeypatch.setattr(client_module, "_MAX_ARGUMENT", 0)
        files = sorted(here.path.iterdir())
        client.load_registers(dump)
        assert client.dump_registers() == dump
        with pytest.raises(RegisterError, match="this is no dump"):
            client.load_registers({"vm": 1})
        client.set_registers([{"register": "SDEI_PE_STATE", "vcpu": 0, "value": 1}])
        assert client.dump_registers() != dump
        client.load_registers(dump)
        assert sorted(here.path.iterdir()) == files
    finally:
        client.resume()


@process
@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        ("list-registers", {"vcpu": 9}, "there is no vCPU 9"),
        ("list-registers", {"vcpu": "x"}, "argument 'vcpu' must be a number"),
        ("get-register", {}, "argument 'register' is missing"),
        ("get-register", {"register": []}, "argument 'register' must be a number"),
        ("get-register", {"register": "0x1"}, "register 0x1: there is no such register"),
        ("set-registers", {"registers": {}}, "argument 'registers' must be an array"),
        ("set-registers", {"registers": [1]}, "this is no register's new value"),
        ("set-registers", {"registers": [{"register": "SDEI_PE_STATE"}]}, "this is no register's new value"),
        ("set-registers", {"registers": [{"register": 1, "value": 1, "x": 1}]}, "this is no register's new value"),
        ("set-registers", {"registers": [{"register": PENDING, "value": 0, "vcpu": "0"}]}, "index is a number"),
        ("set-registers", {"registers": [{"register": PENDING, "value": [], "vcpu": 0}]}, "is no register's value"),
        ("set-registers", {"registers": [{"register": PENDING, "value": 0}]}, "is one of each vCPU"),
        ("set-registers", {}, "give one of the two"),
        ("set-registers", {"registers": [], "file": "/x"}, "give one of the two"),
        ("set-registers", {"file": "/proc/self/environ"}, "holds no JSON"),
        ("set-registers", {"registers": [SWITCHED_OFF]}, "STD_BMAP (0x6030000000160000): it is 0x3, and cannot change"),
        ("set-registers", {"registers": [MASKED, SWITCHED_OFF]}, "cannot change after a vCPU has run"),
        ("set-registers", {"registers": [{"register": "STD_BMAP", "value": 7}]}, "it has no bits 0x4"),
        ("set-registers", {"registers": [{"register": "STD_BMAP", "value": 3, "vcpu": 0}]}, "is one of the VM"),
        ("load-registers", {}, "give one of the two"),
        ("load-registers", {"dump": {}, "file": "/x"}, "give one of the two"),
        ("load-registers", {"dump": []}, "argument 'dump' must be an object"),
        ("load-registers", {"dump": {}}, "this is no dump of registers"),
        ("load-registers", {"file": "x.json"}, "'x.json' is no absolute path"),
        ("load-registers", {"file": "/nonexistent"}, "cannot read /nonexistent"),
        ("load-registers", {"file": "/proc/self/environ"}, "holds no JSON"),
        ("load-registers", {"file": "/dev/zero"}, "it is a device"),
    ],
)
def test_commands_that_are_refused(here: VmProcess, command: str, arguments: dict[str, Any], message: str) -> None:
    with Qmp(here.socket) as qmp:
        before = qmp.execute("dump-registers")
        qmp.execute("stop")
        try:
            answer = qmp.execute(command, **arguments)
            assert message in answer["error"]["desc"], answer
            assert qmp.execute("dump-registers") == before
        finally:
            qmp.execute("cont")


# -- machines at hand


def started(kind: str, **more: Any) -> tuple[Any, Console, Until]:
    config = MachineConfig(
        vcpus=2,
        events=(EventDefinition(SHARED, shared=True),),
        bootargs=f"events=0,{SHARED:#x} idle=wfi",
        engine=engine(kind),
        **more,
    )
    machine = open_machine(kind, config)
    machine.load(guest_path("listen"))
    console, until = Console(machine), Until(machine)
    machine.start()
    for text in READY:
        console.shows(text)
    return machine, console, until


@pytest.mark.parametrize("kind", KINDS)
def test_vcpus_that_wait_look_when_the_machine_goes_on(kind: str) -> None:
    machine, _, until = started(kind)
    with machine:
        machine.pause()
        set_registers(
            machine,
            [
                {"register": "SDEI_EVENT_PENDING", "vcpu": 1, "value": 1},
                {"register": f"SDEI_STATE.{SHARED:#x}", "value": "0xb"},
            ],
        )
        assert [row["value"] for row in get_register(machine, "SDEI_EVENT_PENDING")] == ["0x0", "0x1"]
        assert until.completed == 0
        machine.resume()
        until.reaches(2)
        assert sorted(event for _, event in until.entered) == [0, SHARED]
        assert (1, 0) in until.entered
        machine.inject(0, 0)
        until.reaches(3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_that_is_loaded_where_it_comes_from_changes_nothing(kind: str) -> None:
    machine, _, until = started(kind)
    with machine:
        machine.pause()
        machine.inject(0, 1)
        dump = dump_registers(machine)
        load_registers(machine, json.loads(json.dumps(dump)))
        assert dump_registers(machine) == dump
        assert len(list_registers(machine, 0)) < len(list_registers(machine))
        machine.resume()
        until.reaches(1)
        for vcpu in (0, 1):
            machine.inject(0, vcpu)
        until.reaches(3)


def test_what_is_being_handed_over_is_not_set() -> None:
    class Detour:
        def inject(self, event: int, vcpu: int | None, affinity: int | None) -> Any:
            raise AssertionError

        cancel = inject

    machine, _, _ = started("unicorn")
    with machine:
        with pytest.raises(StateError, match="that is running cannot be set"):
            load_registers(machine, dump_registers(machine))
        machine.pause()
        machine.save_state(Detour())
        assert machine.leaving
        with pytest.raises(StateError, match="is being handed over"):
            load_registers(machine, dump_registers(machine))
        machine.keep_state()
        assert not machine.leaving
        load_registers(machine, dump_registers(machine))
        assert Registers(machine.firmware.sdei).dump().vcpus[1]
