# SPDX-License-Identifier: Apache-2.0
"""`sdeivirt inject-error`, its commands on the control socket and its client, with a real guest in a real process."""

from __future__ import annotations

import base64
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sdeivirt.control.client import VmClient
from sdeivirt.errors import (
    BusyError,
    EnvironmentUnavailableError,
    NotRegisteredError,
    StateError,
    TimeLimitError,
    UnknownVmError,
    UsageError,
)
from sdeivirt.ras.cper import KINDS, Kind, Severity, make_block
from sdeivirt.ras.outcome import REASONS, Outcome

from .control_support import LIMIT, Qmp, VmProcess, cli, environment, wait_until
from .machine_support import NEEDS_QEMU
from .ras_support import ADDRESS, CORRECTED, FATAL

pytestmark = [pytest.mark.process, pytest.mark.machine, pytest.mark.qemu, NEEDS_QEMU]

MEMORY = ("memory", "--severity", "corrected", "--address", f"{ADDRESS:#x}")


def ghes(runtime: Path, *words: str, vcpus: int = 1) -> VmProcess:
    """A VM whose guest takes errors, and can be typed to."""
    vm = VmProcess(
        runtime,
        *("--machine", "qemu", "--firmware", "acpi", "--guest", "ghes", "--append", "victims=3"),
        *("--vcpus", str(vcpus), *words),
    )
    vm.wait_out("ready: CPU#0")
    return vm


def key(vm: VmProcess, name: str, answered: bool = True) -> None:
    """Type a key, and wait until the guest has done what it stands for."""
    before = vm.out.count(f"key: {name}")
    assert vm.process.stdin is not None
    vm.process.stdin.write(name.encode())
    vm.process.stdin.flush()
    if answered:
        vm.wait_out(f"key: {name}", before + 1)


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def vm(runtime: Path) -> Iterator[VmProcess]:
    with ghes(runtime) as one:
        yield one


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VmProcess]:
    with ghes(tmp_path_factory.mktemp("runtime")) as one:
        yield one


@pytest.fixture
def shared(running: VmProcess, monkeypatch: pytest.MonkeyPatch) -> Iterator[VmProcess]:
    """A VM for tests that leave it as it is, but for a report that has not been acknowledged."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(running.runtime))
    yield running
    for name in ("a", "A"):
        key(running, name)
    with VmClient("vm") as client:
        assert [client.inject_error(CORRECTED, source).outcome for source in (0, 1)] == ["acknowledged"] * 2


def inject(vm: VmProcess, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    return cli(vm.runtime, "inject-error", "vm", *words, code=code)


# -- one report


def test_an_error_is_reported_and_acknowledged(shared: VmProcess) -> None:
    vm = shared
    said = inject(vm, *MEMORY).stdout
    assert said.startswith(f"source 0 (event 0x324): the error at {ADDRESS:#x} was reported and acknowledged, handled")
    outcome = json.loads(inject(vm, *MEMORY, "--source", "1", "--json").stdout)
    assert outcome.pop("seconds") > 0
    assert outcome == {"source": 1, "event": 805, "outcome": "acknowledged", "vcpu": 0, "address": ADDRESS}
    for source in (0, 1):
        vm.wait_out(f"GHES {source}: severity 2, 152 bytes, address {ADDRESS:#x}, CPU#0")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_and_severity_arrives(shared: VmProcess, kind: Kind) -> None:
    for severity in (Severity.CORRECTED, Severity.RECOVERABLE, Severity.INFORMATIONAL):
        expected = make_block(kind, severity, threshold_exceeded=True).encode()
        line = f"GHES 0: severity {severity.value}, {int.from_bytes(expected[12:16], 'little')} bytes"
        before = shared.out.count(line)
        inject(shared, kind, "--severity", severity.name.lower(), "--threshold-exceeded")
        shared.wait_out(line, before + 1)


def test_a_record_is_reported_as_it_is(shared: VmProcess, tmp_path: Path) -> None:
    vm, record = shared, tmp_path / "block"
    record.write_bytes(make_block("memory", Severity.RECOVERABLE, address=0x1234_5000).encode())
    assert "acknowledged" in inject(vm, "--record", str(record)).stdout
    vm.wait_out("severity 0, 152 bytes, address 0x12345000")
    record.write_bytes(bytes(100))
    assert "holds no error" in inject(vm, "--record", str(record), code=2).stderr
    record.write_bytes(bytes(4097))
    assert "at most" in inject(vm, "--record", str(record), code=2).stderr
    assert "cannot read" in inject(vm, "--record", str(tmp_path / "none"), code=2).stderr
    assert "itself" in inject(vm, "memory", "--severity", "fatal", "--record", str(record), code=2).stderr


def test_a_record_comes_from_standard_input_too(shared: VmProcess) -> None:
    def send(block: bytes) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [sys.executable, "-m", "sdeivirt", "inject-error", "vm", "--record", "-"],
            env=environment(shared.runtime),
            input=block,
            capture_output=True,
            timeout=LIMIT,
            check=True,
        )

    block = make_block("memory", Severity.RECOVERABLE, address=0x2345_6000).encode()
    assert send(block).stderr == b""
    shared.wait_out("severity 0, 152 bytes, address 0x23456000")
    assert b"8 bytes behind the error status block" in send(block + bytes(8)).stderr
    cut = send(block[:-1])
    assert b"no valid error status block" in cut.stderr
    assert b"acknowledged" in cut.stdout


def test_an_error_of_the_processor_names_the_one_that_is_told(runtime: Path) -> None:
    with ghes(runtime, "--error-source", "0x330:private", vcpus=2) as vm:
        vm.wait_out("ready: CPU#1")
        for vcpu in (0, 1):
            inject(vm, "processor", "--severity", "corrected", "--vcpu", str(vcpu))
            # Where a memory error has its address, one of the processor has MPIDR.
            vm.wait_out(f"address {0x8000_0000 + vcpu:#x}, CPU#{vcpu}")


def test_the_page_of_a_process_is_found(shared: VmProcess) -> None:
    vm = shared
    with VmClient("vm") as client:
        victims = client.find_victims()
        assert [(victim.pid, victim.name) for victim in victims] == [(100 + i, f"victim-{i}") for i in range(3)]
        assert [victim.address for victim in client.find_victims("*-1")] == [victims[1].address]
    for pattern, victim in (("101", victims[1]), ("*-2", victims[2])):
        said = inject(vm, "memory", "--severity", "recoverable", "--process", pattern).stdout
        assert f"at {victim.address:#x}, the page of process {victim.pid} ({victim.name})" in said
        vm.wait_out(f"address {victim.address:#x}")
    found = json.loads(inject(vm, "memory", "--severity", "recoverable", "--process", "100", "--json").stdout)
    assert (found["process"]["pid"], found["address"]) == (100, victims[0].address)
    many = inject(vm, "memory", "--severity", "recoverable", "--process", "victim*", code=2).stderr
    assert "3 processes match" in many
    assert "102 (victim-2)" in many
    none = inject(vm, "memory", "--severity", "recoverable", "--process", "init", code=2).stderr
    assert "no process 'init'" in none
    assert "100 (victim-0)" in none


def test_words_complete_by_what_the_vm_has(shared: VmProcess) -> None:
    def complete(*words: str) -> set[str]:
        return {line.split("\t")[0] for line in cli(shared.runtime, "__complete", *words).stdout.splitlines()}

    assert {"0", "1"} <= complete("inject-error", "vm", "memory", "--source", "")
    assert {"victim-0", "100", "102"} <= complete("inject-error", "vm", "memory", "--process", "")
    assert "victim-0" not in complete("inject-error", "none", "memory", "--process", "")


# -- many


def test_many_reports_are_counted(shared: VmProcess) -> None:
    vm = shared
    before = json.loads(inject(vm, "--list-sources", "--json").stdout)[0]["reported"]
    said = inject(vm, *MEMORY, "--count", "30").stdout
    assert said.startswith("source 0: of 30 reports 30 acknowledged; handled in ")
    whole = json.loads(inject(vm, *MEMORY, "--count", "5", "--interval", "20", "--json").stdout)
    assert (whole["count"], whole["acknowledged"], whole["refused"], len(whole["reports"])) == (5, 5, 0, 5)
    (source, _) = json.loads(inject(vm, "--list-sources", "--json").stdout)
    assert source["reported"] == source["acknowledged"] == before + 35


def test_a_series_ends_with_the_first_that_is_not_taken(shared: VmProcess) -> None:
    vm = shared
    key(vm, "l")
    done = inject(vm, *MEMORY, "--count", "5", "--timeout", "0.2", code=124)
    assert "none was made" in done.stdout
    assert REASONS["unread"] in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_a_series_and_says_how_far_it_got(shared: VmProcess, number: signal.Signals) -> None:
    vm = shared
    series = subprocess.Popen(
        [sys.executable, "-m", "sdeivirt", "inject-error", "vm", *MEMORY, "--count", "100000", "--interval", "5"],
        env=environment(vm.runtime),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    vm.wait_out("GHES 0", vm.out.count("GHES 0") + 3)
    series.send_signal(number)
    out, err = series.communicate(timeout=LIMIT)
    assert series.returncode == 128 + number, err
    assert out.startswith("source 0: of 100,000 reports ")
    assert "acknowledged" in out
    assert "Traceback" not in err
    assert "acknowledged" in inject(vm, *MEMORY).stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_calls_off_a_report_that_waits(shared: VmProcess, number: signal.Signals) -> None:
    with VmClient("vm") as client:
        client.pause()
        before = client.status().error_sources[0].reported
        waiting = subprocess.Popen(
            [sys.executable, "-m", "sdeivirt", "inject-error", "vm", *MEMORY],
            env=environment(shared.runtime),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        wait_until(lambda: client.status().error_sources[0].queued == 1)
        waiting.send_signal(number)
        said = "interrupted: the report was taken back: the guest has not been told of it\n"
        assert waiting.communicate(timeout=LIMIT) == ("", said)
        assert waiting.returncode == 128 + number
        assert client.status().error_sources[0].queued == 0
        client.resume()
        assert client.status().error_sources[0].reported == before


def test_a_report_is_called_off_by_its_tag(shared: VmProcess) -> None:
    block = base64.b64encode(CORRECTED).decode()
    with Qmp(shared.socket) as first, VmClient("vm") as second:
        assert second.execute("withdraw-error", tag="mine") == {"withdrawn": False}
        second.pause()
        first.send(json.dumps({"execute": "inject-error", "arguments": {"block": block, "tag": "mine"}}).encode())
        wait_until(lambda: second.status().error_sources[0].queued == 1)
        assert second.execute("withdraw-error", tag="mine") == {"withdrawn": True}
        second.resume()
        while "event" in (answer := first.receive()):
            pass
        assert "called off" in answer["error"]["desc"]
        assert first.execute("inject-error", block=block, tag="mine")["return"]["outcome"] == "acknowledged"
        assert second.execute("withdraw-error", tag="mine") == {"withdrawn": False}


def test_a_client_that_dies_calls_its_report_off(shared: VmProcess) -> None:
    with VmClient("vm") as client:
        client.pause()
        before = client.status().error_sources[0].reported
        waiting = subprocess.Popen(
            [sys.executable, "-m", "sdeivirt", "inject-error", "vm", *MEMORY],
            env=environment(shared.runtime),
        )
        wait_until(lambda: client.status().error_sources[0].queued == 1)
        waiting.kill()
        waiting.wait(LIMIT)
        wait_until(lambda: client.status().error_sources[0].queued == 0)
        client.resume()
        assert client.status().error_sources[0].reported == before


def test_a_client_that_has_said_all_it_had_to_say_is_answered(shared: VmProcess) -> None:
    with VmClient("vm") as other, Qmp(shared.socket) as client:
        other.pause()
        block = base64.b64encode(CORRECTED).decode()
        client.send(json.dumps({"execute": "inject-error", "arguments": {"block": block}}).encode())
        client.socket.shutdown(socket.SHUT_WR)
        wait_until(lambda: other.status().error_sources[0].queued == 1)
        other.resume()
        while "event" in (answer := client.receive()):
            pass
        assert answer["return"]["outcome"] == "acknowledged"


def test_a_client_that_waits_in_vain_calls_its_report_off(shared: VmProcess) -> None:
    with VmClient("vm") as other, VmClient("vm") as client:
        other.pause()
        before = other.status().error_sources[0].reported
        client._patience = 0.5 - 30  # it gives up before the VM has to answer
        with pytest.raises(EnvironmentUnavailableError):
            client.inject_error(CORRECTED, limit=30)
        wait_until(lambda: other.status().error_sources[0].queued == 0)
        other.resume()
        assert other.status().error_sources[0].reported == before


# -- a source that is busy


def test_a_busy_source_is_waited_for_or_not(vm: VmProcess) -> None:
    key(vm, "h")
    late = inject(vm, *MEMORY, "--timeout", "0.3", code=124).stderr
    assert "not acknowledged the report of source 0 within 0.3 s: its handler runs" in late
    busy = inject(vm, *MEMORY, "--when-busy", "fail", code=1).stderr
    assert "source 0 is busy" in busy
    assert "--when-busy" in busy
    refused = inject(vm, *MEMORY, "--when-busy", "fail", "--count", "3", code=1).stdout
    assert "3 refused because the source was busy" in refused
    assert "was not free within 0.3 s" in inject(vm, *MEMORY, "--timeout", "0.3", code=124).stderr
    assert "is queued" in inject(vm, *MEMORY, "--when-busy", "queue").stdout
    listed = inject(vm, "--list-sources").stdout.splitlines()
    assert listed[1].split() == [
        "0",
        "0x324",
        "shared",
        "normal",
        "version",
        "2",
        "1",
        "0",
        "0",
        "1",
        *["its", "handler", "runs"],
    ]
    assert "its handler runs" in cli(vm.runtime, "status", "vm").stdout
    key(vm, "g", answered=False)
    vm.wait_out("number 2\n")
    with VmClient("vm") as client:
        wait_until(lambda: client.status().error_sources[0].acknowledged == 2)
    assert inject(vm, "--list-sources").stdout.splitlines()[1].endswith("free")


@pytest.mark.parametrize(("name", "back", "reason"), [("m", "u", "masked"), ("d", "e", "disabled")])
def test_what_cannot_be_delivered_says_why(shared: VmProcess, name: str, back: str, reason: str) -> None:
    vm = shared
    key(vm, name)
    assert REASONS[reason] in inject(vm, *MEMORY, "--timeout", "0.2", code=124).stderr
    key(vm, back)


def test_what_nobody_has_registered_cannot_be_delivered(shared: VmProcess) -> None:
    vm = shared
    key(vm, "x")
    refused = inject(vm, *MEMORY, code=1).stderr
    assert "no handler registered for event 0x324" in refused
    assert REASONS["unregistered"] in inject(vm, "--list-sources").stdout
    (source, _) = json.loads(inject(vm, "--list-sources", "--json").stdout)
    assert (source["state"], source["type"], source["priority"]) == ("unregistered", "shared", "normal")
    key(vm, "y")
    assert json.loads(cli(vm.runtime, "status", "vm", "--json").stdout)["error_sources"][1]["state"] == "free"


def test_a_guest_that_is_not_ready_is_waited_for_where_that_is_asked(shared: VmProcess) -> None:
    key(shared, "x")
    late = inject(shared, *MEMORY, "--wait-ready", "--timeout", "0.2", code=124).stderr
    assert f"nothing could be reported by source 0 within 0.2 s: {REASONS['unregistered']}" in late
    with Qmp(shared.socket) as first, VmClient("vm") as second:
        block = base64.b64encode(CORRECTED).decode()
        asked = {"block": block, "wait-ready": True, "time-limit": 60_000}
        first.send(json.dumps({"execute": "inject-error", "arguments": asked}).encode())
        wait_until(lambda: second.status().error_sources[0].queued == 1)
        key(shared, "y")
        assert first.receive()["return"]["outcome"] == "acknowledged"


def test_a_paused_vm_says_so(shared: VmProcess) -> None:
    vm = shared
    with VmClient("vm") as client:
        client.pause()
        assert REASONS["paused"] in inject(vm, *MEMORY, "--timeout", "0.2", code=124).stderr
        at_once = inject(vm, *MEMORY, "--when-busy", "fail", "--timeout", "1000", code=1).stderr
        assert "source 0 cannot report just now: the VM is paused" in at_once
        process = inject(vm, "memory", "--severity", "corrected", "--process", "100", code=1).stderr
        assert "the VM is paused" in process
        client.resume()
    assert "acknowledged" in inject(vm, *MEMORY).stdout


# -- the end


@pytest.mark.parametrize("as_json", [False, True])
def test_a_panic_is_answered_although_the_vm_ends_with_it(vm: VmProcess, as_json: bool) -> None:
    fatal = ("memory", "--severity", "fatal", *(["--json"] if as_json else []))
    said = inject(vm, *fatal).stdout
    if as_json:
        assert json.loads(said)["outcome"] == "panicked"
    else:
        assert "was reported, and the guest's kernel has panicked on vCPU 0" in said
    assert vm.wait() == 1
    assert "no VM 'vm' is running" in inject(vm, *MEMORY, code=3).stderr


def test_a_fatal_record_is_to_panic_too(vm: VmProcess, tmp_path: Path) -> None:
    record = tmp_path / "block"
    record.write_bytes(FATAL)
    assert "of 3 reports 1 panicked" in inject(vm, "--record", str(record), "--count", "3").stdout
    assert vm.wait() == 1


def test_a_vm_that_is_ended_answers_first(vm: VmProcess) -> None:
    key(vm, "h")
    waiting = subprocess.Popen(
        [sys.executable, "-m", "sdeivirt", "inject-error", "vm", *MEMORY],
        env=environment(vm.runtime),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    vm.wait_out("holding")
    with VmClient("vm") as client:
        client.quit()
    _, err = waiting.communicate(timeout=LIMIT)
    assert waiting.returncode == 1
    assert "the VM has ended before the guest had read the report" in err
    assert vm.wait() == 0


def test_a_guest_that_resets_is_told_of(runtime: Path) -> None:
    with ghes(runtime, "--on-reset", "restart") as vm, VmClient("vm") as client:
        key(vm, "h")
        client.inject_error(CORRECTED, when_busy="queue")
        vm.wait_out("holding")
        client.inject_error(CORRECTED, when_busy="queue")
        key(vm, "r", answered=False)
        vm.wait_err("an error that was queued for source 0: the guest was reset before the error was reported")
        vm.wait_out("ready: CPU#0", 2)
        (source, _) = client.status().error_sources
        assert (source.reported, source.lost, source.queued) == (1, 2, 0)
        assert client.inject_error(CORRECTED).outcome == "acknowledged"


# -- from Python, and by the socket alone


def test_the_client_raises_what_the_machine_would(shared: VmProcess) -> None:
    vm = shared
    with VmClient("vm") as client:
        outcome = client.inject_error(make_block("memory", Severity.CORRECTED), 1)
        assert isinstance(outcome, Outcome)
        assert (outcome.source, outcome.outcome) == (1, "acknowledged")
        with pytest.raises(UsageError, match="no error source 9"):
            client.inject_error(CORRECTED, 9)
        key(vm, "l")
        with pytest.raises(TimeLimitError):
            client.inject_error(CORRECTED, limit=0.2)
        with pytest.raises(BusyError):
            client.inject_error(CORRECTED, when_busy="fail")
        key(vm, "x")
        with pytest.raises(NotRegisteredError):
            client.inject_error(CORRECTED)
    key(vm, "y")


def test_one_client_that_waits_does_not_hold_up_another(shared: VmProcess) -> None:
    vm = shared
    key(vm, "h")
    with Qmp(vm.socket) as first, VmClient("vm") as second:
        block = base64.b64encode(CORRECTED).decode()
        first.send(json.dumps({"execute": "inject-error", "arguments": {"block": block}}).encode())
        wait_until(lambda: second.status().error_sources[0].state == "delivered")
        key(vm, "g", answered=False)
        assert first.receive()["return"]["outcome"] == "acknowledged"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({}, "nothing is said of the error"),
        ({"kind": "memory"}, "nothing is said of the error"),
        ({"kind": "tape", "severity": "fatal"}, "no errors of kind 'tape'"),
        ({"kind": "memory", "severity": "bad"}, "no severity 'bad'"),
        ({"kind": "memory", "severity": "fatal", "address": "x"}, "must be a number"),
        ({"kind": "memory", "severity": "corrected", "time-limit": 0}, "cannot wait for 0 seconds"),
        ({"kind": "memory", "severity": "corrected", "when-busy": "never"}, "no way 'never'"),
        ({"kind": "memory", "severity": "corrected", "source": 64}, "no error source 64"),
        ({"kind": "memory", "severity": "corrected", "vcpu": 0}, "is shared"),
        ({"kind": "memory", "severity": "corrected", "address": 1, "process": "1"}, "address as well"),
        ({"kind": "memory", "severity": "corrected", "threshold-exceeded": 1}, "must be true or false"),
        ({"block": "AAAA", "kind": "memory"}, "a block says itself"),
        ({"block": "!"}, "not in base64"),
        ({"kind": "memory", "severity": "corrected", "device": "00:01.0"}, "not in a PCIe device"),
        ({"kind": "pcie", "severity": "corrected", "device": "1"}, "no PCIe device is at '1'"),
        ({"kind": "pcie", "severity": "corrected", "aer": "ecrc"}, "no correctable error of PCIe is called 'ecrc'"),
        ({"kind": "memory", "severity": "corrected", "aer": "ecrc"}, "not in a PCIe device"),
        ({"kind": "memory", "severity": "corrected", "when-busy": "fail", "wait-ready": True}, "do not go together"),
        ({"kind": "processor", "severity": "corrected", "vcpu": 1}, "no vCPU 1"),
        ({"block": "AAAA"}, "3 bytes are no error status block"),
        ({"block": base64.b64encode(bytes(4097)).decode()}, "4097 bytes are no error status block"),
    ],
)
def test_wrong_arguments_are_named(shared: VmProcess, arguments: dict[str, object], complaint: str) -> None:
    def reported(client: Qmp) -> list[int]:
        return [source["reported"] for source in client.execute("query-vm")["return"]["error_sources"]]

    with Qmp(shared.socket) as client:
        before = reported(client)
        answer = client.execute("inject-error", **arguments)
        assert complaint in answer["error"]["desc"], answer
        assert reported(client) == before


# -- sources that were defined


def test_a_guest_finds_the_sources_that_run_was_told_of(runtime: Path) -> None:
    events = runtime / "events.toml"
    events.write_text("[[event]]\nnumber = 0x331\ntype = 'shared'\n\n[[error-source]]\nevent = 0x331\nghes = 1\n")
    words = ("--events", str(events), "--error-source", "0x330:private,critical,number=9")
    with ghes(runtime, *words, vcpus=2) as vm:
        vm.wait_out("ready: CPU#0, 2 sources")
        vm.wait_out("ready: CPU#1")
        listed = [line.split()[:6] for line in inject(vm, "--list-sources").stdout.splitlines()[1:]]
        assert listed == [
            ["0", "0x331", "shared", "normal", "version", "1"],
            ["9", "0x330", "private", "critical", "version", "2"],
        ]
        outcome = json.loads(inject(vm, *MEMORY, "--source", "9", "--vcpu", "1", "--json").stdout)
        assert (outcome["event"], outcome["vcpu"]) == (0x330, 1)
        assert "acknowledged" in inject(vm, *MEMORY).stdout
        assert "it has 0, 9" in inject(vm, *MEMORY, "--source", "1", code=2).stderr
        status = cli(runtime, "status", "vm").stdout.splitlines()
        rows = [line.split() for line in status[status.index("Error sources") + 2 :]]
        assert rows[:2] == [
            ["0", "0x331", "shared", "normal", "version", "1", "1", "1", "0", "0", "free"],
            ["9", "0x330", "private", "critical", "version", "2", "1", "1", "0", "0", "free"],
        ]


# -- usage


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ((), "nothing is said of the error"),
        (("memory",), "--severity"),
        ((*MEMORY, "--timeout", "1e300"), "cannot wait for 1e+300 seconds"),
        ((*MEMORY, "--device", "00:01.0"), "--device"),
        ((*MEMORY, "--aer", "bad-tlp"), "--aer"),
        ((*MEMORY, "--list-sources"), "reports no error"),
        (("--list-sources", "--count", "2"), "reports no error"),
        ((*MEMORY, "--wait-ready", "--when-busy", "fail"), "do not go together"),
        ((*MEMORY[:-1], "0x1ffffffffffffffff"), "no address 0x1ffffffffffffffff"),
        ((*MEMORY, "--source", str(1 << 64)), "no source"),
        ((*MEMORY, "--interval", str(1 << 60)), "no interval"),
        (("disk", "--severity", "fatal"), "disk"),
        (("memory", "--severity", "bad"), "bad"),
        ((*MEMORY, "--process", "1"), "both named"),
        ((*MEMORY, "--count", "0"), "--count"),
        ((*MEMORY, "--timeout", "0"), "no time"),
        ((*MEMORY, "--when-busy", "never"), "never"),
    ],
)
def test_what_makes_no_sense_is_a_usage_error(tmp_path: Path, words: tuple[str, ...], complaint: str) -> None:
    assert complaint in cli(tmp_path, "inject-error", "vm", *words, code=2).stderr


def test_a_vm_without_sources_says_how_to_get_them(runtime: Path) -> None:
    with VmProcess(runtime, "--guest", "listen", "--vcpus", "1") as vm:
        vm.wait_out("listening")
        assert "--firmware acpi" in inject(vm, *MEMORY, code=2).stderr
        assert "--firmware acpi" in inject(vm, "--list-sources").stdout
        assert json.loads(inject(vm, "--list-sources", "--json").stdout) == []
        with VmClient("vm") as client:
            assert client.find_victims() == []


def test_a_vm_that_is_gone(runtime: Path) -> None:
    with ghes(runtime) as vm:
        client = VmClient("vm")
        vm.process.kill()
        with pytest.raises((UnknownVmError, StateError)):
            client.inject_error(CORRECTED)
        client.close()
