# SPDX-License-Identifier: Apache-2.0
"""The control socket: QMP framing, commands, events, and clients that misbehave."""

from __future__ import annotations

import contextlib
import json
import os
import random
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sdeivirt import __version__
from sdeivirt.control import server as server_module
from sdeivirt.control.client import VmClient, status_from_json
from sdeivirt.control.commands import error_object
from sdeivirt.control.runtime import VmDirectory
from sdeivirt.errors import (
    EnvironmentUnavailableError,
    EventRunningError,
    NotRegisteredError,
    SdeivirtError,
    TimeLimitError,
    UnknownEventError,
    UnknownVcpuError,
    UnknownVmError,
    UsageError,
)
from sdeivirt.machine import ExitReason, FaultReport
from sdeivirt.sdei import Function
from sdeivirt.sdei.service import Injection

from .control_support import LIMIT, SHARED, Qmp, Served, wait_until


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with VmDirectory.acquire("vm") as directory:
        served = Served(directory)
        try:
            yield served
            assert served.errors == []
        finally:
            served.close()


@pytest.fixture
def qmp(served: Served) -> Iterator[Qmp]:
    with Qmp(served.path) as client:
        yield client


def error(answer: dict[str, Any]) -> str:
    assert set(answer) <= {"error", "id"}, answer
    assert {"class", "desc"} <= set(answer["error"])
    return str(answer["error"]["desc"])


# -- the protocol


def test_the_greeting_is_what_qmp_clients_expect(served: Served) -> None:
    with Qmp(served.path, negotiate=False) as client:
        version = client.greeting["QMP"]["version"]
        assert client.greeting["QMP"]["capabilities"] == []
        assert version["package"] == f"sdeivirt {__version__}"
        assert "{major}.{minor}.{micro}".format(**version["qemu"]) == __version__
    assert stat.S_IMODE(os.stat(served.path).st_mode) == 0o600


def test_nothing_goes_before_the_capabilities(served: Served) -> None:
    with Qmp(served.path, negotiate=False) as client:
        answer = client.execute("query-status")
        assert answer["error"]["class"] == "CommandNotFound"
        assert "qmp_capabilities" in error(answer)
        assert "no capabilities" in error(client.execute("qmp_capabilities", enable=["oob"]))
        assert client.execute("qmp_capabilities", enable=[]) == {"return": {}}
        assert "already complete" in error(client.execute("qmp_capabilities"))
        assert client.execute("query-status") == {"return": {"running": True, "status": "running"}}


@pytest.mark.parametrize("tag", [1, "x", None, [1, {"a": 2}], {"b": True}, 1.5, "\ud800"])
def test_the_id_comes_back_with_results_and_errors(qmp: Qmp, tag: object) -> None:
    for command in ("query-status", "no-such-command"):
        qmp.send(json.dumps({"execute": command, "id": tag}).encode())
        assert qmp.receive()["id"] == tag
    qmp.send(json.dumps({"execute": 5, "id": tag}).encode())
    assert qmp.receive()["id"] == tag


def test_no_id_no_id(qmp: Qmp) -> None:
    assert "id" not in qmp.execute("query-status")


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ("[]", "must be a JSON object"),
        ("5", "must be a JSON object"),
        ("{}", "lacks member 'execute'"),
        ('{"execute": 7}', "'execute' must be a string"),
        ('{"execute": "stop", "arguments": []}', "'arguments' must be an object"),
        ('{"execute": "stop", "else": 1}', "'else' is unexpected"),
        ('{"exec-oob": "stop"}', "'exec-oob' is unexpected"),
        ('{"execute": "stop"', None),
        ("{'execute': 'stop'}", "JSON parse error"),
        ('{"execute": "stop", "execute": "stop"}', "JSON parse error"),
        ('{"execute": "stop" "arguments": {}}', "JSON parse error"),
        ("nonsense", "JSON parse error"),
        ('{"execute": "quit}', "JSON parse error"),
        ('{"execute": "human-monitor-command"}', "The command human-monitor-command has not been found"),
    ],
)
def test_bad_requests_are_answered_and_the_connection_goes_on(
    served: Served, qmp: Qmp, request_: str, message: str | None
) -> None:
    if message is None:  # not complete yet: the next lines still belong to it
        request_ += ',\n "id":\n 3}'
        qmp.send(request_.encode() + b"\n")
        assert qmp.event("STOP")
        assert qmp.receive() == {"return": {}, "id": 3}
    else:
        qmp.send(request_.encode() + b"\n")
        assert message in error(qmp.receive())
        assert served.machine.pauses == 0
    assert "return" in qmp.execute("query-status")


def test_several_requests_in_one_write_are_answered_in_order(qmp: Qmp) -> None:
    qmp.send(b"".join(b'{"execute":"query-version","id":%d}' % i for i in range(50)))
    assert [qmp.receive()["id"] for _ in range(50)] == list(range(50))


@pytest.mark.parametrize("data", [b"x" * (65 << 10), b'{"execute": "' + b"x" * (65 << 10), b"[" * 100])
def test_a_message_without_end_ends_the_connection(served: Served, qmp: Qmp, data: bytes) -> None:
    with contextlib.suppress(OSError):
        qmp.send(data + b"\n")
    assert "JSON parse error" in error(qmp.receive())
    with pytest.raises((EOFError, OSError)):
        qmp.receive()
    wait_until(lambda: served.clients() == 0)


# -- commands


def test_query_commands_names_all(qmp: Qmp) -> None:
    names = [command["name"] for command in qmp.execute("query-commands")["return"]]
    assert names == [
        *("qmp_capabilities", "query-version", "query-commands", "query-status", "query-vm"),
        *("inject-event", "cancel-event", "inject-error", "withdraw-error", "find-victims", "stop", "cont"),
        *("migrate", "query-migrate", "migrate-cancel", "migrate-recover", "migrate-take-back"),
        *("list-registers", "get-register", "dump-registers", "set-registers", "load-registers", "quit"),
    ]


def test_stop_and_cont_tell_everybody(served: Served, qmp: Qmp) -> None:
    with Qmp(served.path) as other:
        assert qmp.execute("cont") == {"return": {}}  # it runs: nothing happens
        assert qmp.execute("stop") == {"return": {}}
        assert qmp.execute("stop") == {"return": {}}
        assert served.machine.pauses == 1
        assert qmp.execute("query-status")["return"] == {"running": False, "status": "paused"}
        assert qmp.execute("cont") == {"return": {}}
        for name in ("STOP", "RESUME"):
            event = other.receive()
            assert event["event"] == name
            assert event["data"] == {}
            assert event["timestamp"]["seconds"] > 1_600_000_000
            assert 0 <= event["timestamp"]["microseconds"] < 1_000_000
    served.machine.end(ExitReason.POWER_OFF)
    assert qmp.execute("query-status")["return"] == {"running": False, "status": "shutdown"}
    for command in ("stop", "cont"):
        assert "ended" in error(qmp.execute(command))


def test_quit_asks_the_host(served: Served, qmp: Qmp) -> None:
    assert qmp.execute("quit") == {"return": {}}
    assert served.quits == 1


def test_inject_and_cancel(served: Served, qmp: Qmp) -> None:
    served.machine.register(1)
    expected = {"event": 0, "vcpu": 1, "waits": "masked", "coalesced": False}
    assert qmp.execute("inject-event", event=0, vcpu=1) == {"return": expected}
    assert qmp.execute("inject-event", event="0x0", affinity=1) == {"return": expected | {"coalesced": True}}
    assert qmp.execute("cancel-event", event=0, vcpu=1) == {"return": {"cancelled": True}}
    assert qmp.execute("cancel-event", event=0, vcpu=1) == {"return": {"cancelled": False}}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "'event' is missing"),
        ({"vcpu": 1}, "'event' is missing"),
        ({"event": "zero"}, "'event' must be a number"),
        ({"event": "0xg"}, "'event' must be a number"),
        ({"event": None}, "'event' must be a number"),
        ({"event": True}, "'event' must be a number"),
        ({"event": 1.0}, "'event' must be a number"),
        ({"event": [0]}, "'event' must be a number"),
        ({"event": -1}, "'event' must be 0 to"),
        ({"event": 1 << 64}, "'event' must be 0 to"),
        ({"event": 10**4000}, "'event' must be 0 to"),
        ({"event": 0, "vcpu": "one"}, "'vcpu' must be a number"),
        ({"event": 0, "cpu": 1}, "'cpu' is unexpected"),
        ({"event": 0, "vcpu": 1, "affinity": 1}, "both named"),
        ({"event": 5}, "no event 0x5 is defined"),
        ({"event": 0, "vcpu": 3}, "no vCPU 3"),
        ({"event": 0, "affinity": 0x300}, "affinity 0x300"),
        ({"event": 0, "vcpu": 2}, "no handler registered"),
        ({"event": SHARED, "vcpu": 2}, "is shared"),
    ],
)
@pytest.mark.parametrize("command", ["inject-event", "cancel-event"])
def test_arguments_are_checked(qmp: Qmp, command: str, arguments: dict[str, Any], message: str) -> None:
    assert message in error(qmp.execute(command, **arguments))


@pytest.mark.parametrize("command", ["query-version", "query-status", "query-vm", "stop", "quit"])
def test_arguments_where_there_are_none(served: Served, qmp: Qmp, command: str) -> None:
    assert "'a' is unexpected" in error(qmp.execute(command, a=1))
    assert (served.quits, served.machine.pauses) == (0, 0)


def test_query_vm_is_the_whole_status(served: Served, qmp: Qmp) -> None:
    served.machine.register(1)
    served.machine.inject(0, 1)
    served.machine.found.append(FaultReport(2, "undefined", 0x4000_0000, {"x0": 1, "pc": 2}, ["=> udf #0"]))
    data = qmp.execute("query-vm")["return"]
    assert status_from_json(data) == served.machine.status()
    assert status_from_json(data | {"from_the_future": 1}) == served.machine.status()


def test_a_defect_in_a_command_is_an_error_and_not_the_end(
    served: Served, qmp: Qmp, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(served.machine, "status", broken)
    assert "internal error: ZeroDivisionError" in error(qmp.execute("query-vm"))
    assert "oops" in caplog.text
    assert "return" in qmp.execute("query-status")


# -- clients that misbehave


def test_a_hundred_clients_at_once(served: Served) -> None:
    served.machine.register(0)
    clients = [Qmp(served.path) for _ in range(100)]
    for client in clients:
        client.send(b'{"execute": "inject-event", "arguments": {"event": 0}}')
    assert [client.receive()["return"]["event"] for client in clients] == [0] * 100
    assert clients[0].execute("stop") == {"return": {}}
    assert all(client.event("STOP") for client in clients[1:])
    for client in clients:
        client.close()
    wait_until(lambda: served.clients() == 0)


def test_too_many_clients_are_turned_away(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "MAX_CLIENTS", 2)
    with Qmp(served.path) as one, Qmp(served.path) as two:
        with Qmp(served.path, negotiate=False) as three:
            assert "are enough" in error(three.greeting)
        assert all("return" in client.execute("query-status") for client in (one, two))


def test_leaving_at_any_byte(served: Served) -> None:
    script = b'{"execute": "qmp_capabilities"}\n{"execute": "query-vm", "id": "\\u00fc"}\n{"execute": "stop"}\n'
    for length in range(len(script)):
        client = Qmp(served.path, negotiate=False)
        client.send(script[:length])
        client.close()  # with unread data, which resets the connection
    wait_until(lambda: served.clients() == 0)
    with Qmp(served.path) as client:
        assert "return" in client.execute("query-status")


def test_noise(served: Served) -> None:
    noise = random.Random(1)
    words = [b'{"execute": "query-vm"}', b"{", b"}", b'"', b"\n", b"\\", b"\x00", b"\xff", b"[", b"null", b"1e9"]
    for _ in range(100):
        with Qmp(served.path, negotiate=bool(noise.getrandbits(1))) as client, contextlib.suppress(OSError):
            for _ in range(noise.randrange(10)):
                client.send(b"".join(noise.choices(words, k=20)))
    with Qmp(served.path) as client:
        assert "return" in client.execute("query-status")
    assert served.machine.state == "running"


def test_a_client_that_never_reads_is_dropped_and_hinders_nobody(served: Served, qmp: Qmp) -> None:
    with Qmp(served.path) as deaf:
        wait_until(lambda: served.clients() == 2)
        data = {"padding": "x" * 1000}
        count = 0
        while served.clients() == 2:
            served.call(served.server.emit, "VCPU_FAULT", data)
            qmp.event("VCPU_FAULT")
            count += 1
            assert count * 1000 < 4 * server_module.MAX_UNREAD + (1 << 20), "its events are kept for ever"
        assert "return" in qmp.execute("query-status")
        with pytest.raises((EOFError, OSError)):
            deaf.event("none of that name: read to the end")


def test_a_client_that_sends_without_reading_waits_for_itself_only(served: Served, qmp: Qmp) -> None:
    with Qmp(served.path) as deaf:
        deaf.socket.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:  # until the server stops reading, because its answers are not taken
                deaf.send(b'{"execute": "query-vm"}' * 100)
        for _ in range(10):
            assert "return" in qmp.execute("query-status")


def test_a_client_that_does_not_take_its_reply_is_dropped(
    served: Served, qmp: Qmp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "REPLY_PATIENCE", 0.05)
    with Qmp(served.path) as deaf:
        deaf.socket.setblocking(False)

        def dropped() -> bool:
            with contextlib.suppress(OSError):
                deaf.send(b'{"execute": "query-vm"}' * 100)
            return served.clients() == 1

        wait_until(dropped)
    assert "return" in qmp.execute("query-status")


def test_an_event_does_not_cut_a_long_reply_in_two(served: Served) -> None:
    served.machine.found.append(FaultReport(0, "x" * 3_000_000, 0, {}, []))
    with Qmp(served.path) as client:
        client.send(b'{"execute": "query-vm"}')
        # In the middle of it: what the socket does not take is in the buffer.
        wait_until(lambda: any(one._writer.transport.get_write_buffer_size() for one in served.server._clients))
        served.call(served.server.emit, "STOP", {})
        assert len(client.receive()["return"]["faults"][0]["reason"]) == 3_000_000
        assert client.receive()["event"] == "STOP"


def test_events_come_only_after_the_capabilities(served: Served) -> None:
    with Qmp(served.path, negotiate=False) as client:
        served.call(served.server.emit, "STOP", {})
        assert client.execute("qmp_capabilities") == {"return": {}}
        served.call(served.server.emit, "RESUME", {})
        assert client.receive()["event"] == "RESUME"


# -- the typed client


@pytest.fixture
def client(served: Served) -> Iterator[VmClient]:
    with VmClient("vm") as client:
        yield client


def test_the_client_returns_what_the_machine_does(served: Served, client: VmClient) -> None:
    served.machine.register(1)
    assert client.inject(0, vcpu=1) == Injection(0, 1, "masked", False)
    assert client.inject(0, affinity=1) == Injection(0, 1, "masked", True)
    assert client.status() == served.machine.status()
    assert client.cancel(0, 1) is True
    assert client.cancel(0, 1) is False
    client.pause()
    assert served.machine.state == "paused"
    assert client.wait_event("STOP", LIMIT) == {}
    client.resume()
    assert served.machine.state == "running"
    client.quit()
    assert served.quits == 1
    with pytest.raises(TimeLimitError, match="SHUTDOWN"):
        client.wait_event("SHUTDOWN", 0.01)
    client.close()


def test_the_client_raises_what_the_machine_does(served: Served, client: VmClient) -> None:
    for kind, code, call in (
        (UnknownEventError, 2, lambda: client.inject(5)),
        (UnknownVcpuError, 2, lambda: client.inject(0, vcpu=9)),
        (UnknownVcpuError, 2, lambda: client.inject(0, affinity=9)),
        (NotRegisteredError, 1, lambda: client.inject(0)),
        (UsageError, 2, lambda: client.inject(SHARED, vcpu=0)),
        (SdeivirtError, 1, lambda: client.execute("no-such-command")),
    ):
        with pytest.raises(kind) as caught:
            call()
        assert type(caught.value) is kind
        assert caught.value.exit_code == code
    with pytest.raises(UnknownEventError) as there:
        served.machine.inject(5)
    with pytest.raises(UnknownEventError) as here:
        client.inject(5)
    assert (here.value.message, here.value.hint) == (there.value.message, there.value.hint)


def test_an_event_that_runs_cannot_be_cancelled(served: Served, client: VmClient) -> None:
    served.machine.register(0)
    client.inject(0)
    assert served.machine.call(0, Function.PE_UNMASK) == 0
    with pytest.raises(EventRunningError, match="too late"):
        client.cancel(0)


def test_errors_of_any_kind_keep_their_exit_code() -> None:
    for kind in (EventRunningError, UnknownVcpuError, UsageError, EnvironmentUnavailableError):
        assert error_object(kind("what", "do this")) == {
            "class": "GenericError",
            "desc": "what (do this)",
            "type": kind.__name__,
            "hint": "do this",
            "exit-code": kind.exit_code,
        }


def test_the_vm_ends_under_the_client(served: Served, client: VmClient) -> None:
    served.run(served.server.close())
    with pytest.raises(UnknownVmError, match="ended before it answered"):
        client.status()


def test_a_vm_that_does_not_answer(served: Served) -> None:
    served.run(served.server.close())  # the lock is held, but nobody listens
    with pytest.raises(EnvironmentUnavailableError, match=rf"'vm' \(pid {os.getpid()}\) does not answer"):
        VmClient("vm", patience=0.05)


def test_no_such_vm(served: Served) -> None:
    with pytest.raises(UnknownVmError, match="running: vm"):
        VmClient("other")
