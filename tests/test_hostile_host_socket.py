# SPDX-License-Identifier: Apache-2.0
"""The control socket against clients that mean harm: every byte, every bit, every type, without a process."""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sdeivirt.control import server as server_module
from sdeivirt.control.runtime import VmDirectory
from sdeivirt.machine import FaultReport

from .control_support import LIMIT, SHARED, Qmp, Served, wait_until

COMMANDS = [
    b'{"execute": "qmp_capabilities"}\n',
    b'{"execute": "query-status", "id": 1}\n',
    b'{"execute": "inject-event", "arguments": {"event": 0, "vcpu": 1}, "id": "\\u00fc"}\r\n',
    b'{"execute": "inject-event", "arguments": {"event": "0x%x"}}\n' % SHARED,
    b'{"execute": "cancel-event",\n "arguments": {"event": 0,\n "affinity": 1}}\n',
    b'{"execute": "stop"}{"execute": "cont", "id": [{}]}',
    b'{"execute": "no such \\" command", "id": {"a": null}}\n',
    b"nonsense\n",
    b'{"execute": "query-version"}\n',
]
SESSION = b"".join(COMMANDS)


def due(commands: list[bytes]) -> Iterator[int]:
    """After how many bytes of the session each answer is due."""
    at = 0
    for command in commands:
        if not command.startswith(b"{"):
            yield at + len(command)
        elif b"}{" in command:
            yield at + command.index(b"}{") + 1
            yield at + len(command.rstrip())
        else:
            yield at + len(command.rstrip())
        at += len(command)


DUE = list(due(COMMANDS))


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """A server that must be as it was before when the test is over: no client, descriptor or task more."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with VmDirectory.acquire("vm") as directory:
        served = Served(directory)
        try:
            for vcpu, event in ((0, SHARED), (0, 0), (1, 0)):
                served.machine.register(vcpu, event)
            Qmp(served.path).close()  # whatever is opened once only is open now
            wait_until(lambda: served.clients() == 0)
            before = (descriptors(), served.tasks())
            yield served
            wait_until(lambda: served.clients() == 0)
            # Fewer descriptors is well: the garbage of earlier tests has been collected meanwhile.
            wait_until(lambda: descriptors() <= before[0] and served.tasks() == before[1], f"{before}, {descriptors()}")
            with Qmp(served.path) as client:
                assert client.execute("query-status")["return"]
            assert served.errors == []
        finally:
            served.close()


def descriptors() -> int:
    return len(os.listdir("/dev/fd"))


def connect(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(os.fspath(path))  # waits where the server has not accepted those before us
    connection.settimeout(LIMIT)
    return connection


def talk(path: Path, data: bytes) -> list[dict[str, Any]]:
    """Send everything, close our half, and read to the end: the answers, greeting and events left out."""
    with connect(path) as connection:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
        received = bytearray()
        with contextlib.suppress(ConnectionResetError):  # it closed before it had read everything
            while more := connection.recv(1 << 16):
                received += more
    messages = [json.loads(line) for line in received.splitlines()]
    assert "QMP" in messages.pop(0)
    answers = [message for message in messages if "event" not in message]
    for answer in answers:
        check_answer(answer)
    return answers


def check_answer(answer: dict[str, Any]) -> None:
    assert ("return" in answer) != ("error" in answer)
    assert set(answer) <= {"return", "error", "id"}
    if "error" in answer:
        description = answer["error"]["desc"]
        assert isinstance(description, str)
        assert "internal error" not in description
        assert len(description) < 300


def injected(served: Served) -> int:
    """What the service has counted."""
    return sum(handler.injected for event in served.machine.status().events for handler in event.handlers)


# -- disconnects at every byte


def test_a_session_that_ends_after_any_byte_is_answered_up_to_there(served: Served) -> None:
    """Half-closed: the client has said all that it had to say, and still listens."""
    for length in range(len(SESSION) + 1):
        answers = talk(served.path, SESSION[:length])
        assert len(answers) == sum(end <= length for end in DUE), SESSION[:length]
    kinds = ["return" if "return" in answer else "error" for answer in answers]
    assert kinds == ["return"] * 7 + ["error"] * 2 + ["return"]


def test_leaving_after_any_byte_that_was_sent(served: Served) -> None:
    for length in range(len(SESSION) + 1):
        with connect(served.path) as connection:
            connection.sendall(SESSION[:length])


def test_leaving_after_any_byte_that_was_received(served: Served) -> None:
    with connect(served.path) as connection:
        connection.sendall(SESSION)
        connection.shutdown(socket.SHUT_WR)
        whole = 0
        while data := connection.recv(1 << 16):
            whole += len(data)
    assert whole > 500
    for length in range(whole + 1):  # timestamps and counts make it differ by some bytes
        with connect(served.path) as connection:
            connection.sendall(SESSION)
            connection.shutdown(socket.SHUT_WR)
            left = length
            while left and (data := connection.recv(left)):
                left -= len(data)


def flip(served: Served, bits: range, chance: random.Random) -> None:
    """The session with one bit of each byte wrong, or with every bit that is asked for."""
    for position in range(len(SESSION)):
        for bit in bits if len(bits) > 1 else [chance.randrange(8)]:
            damaged = bytearray(SESSION)
            damaged[position] ^= 1 << bit
            talk(served.path, bytes(damaged))


def test_a_wrong_bit_in_any_byte_of_a_session(served: Served) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    flip(served, range(1), random.Random(seed))


@pytest.mark.campaign
def test_every_wrong_bit_of_a_session(served: Served) -> None:
    flip(served, range(8), random.Random(0))


# -- wrong in every other way


@pytest.mark.parametrize(
    "text",
    [
        b'{"execute": "stop", "id": ' + b"9" * 5000 + b"}",
        b'{"execute": "stop", "id": NaN}',
        b'{"execute": "stop", "id": Infinity}',
        b'{"execute": "stop", "id": 1e999}',
        b'{"execute": "stop", "id": 01}',
        b'{"execute": "stop", "execute": "quit"}',
        b'{"execute": "stop", "arguments": {"a": 1, "a": 1}}',
        b'{"execute": "st\xffop"}',
        b'{"execute": "\xed\xa0\x80"}',  # a surrogate in UTF-8
        b'{"execute": "\xc0\xaf"}',  # an overlong slash
        b'{"execute": "st\x00op"}',
        b'{"execute": "stop"\x00}',
        b'\xef\xbb\xbf{"execute": "stop"}',
        b'\xff\xfe{\x00"\x00',
        b'{"execute": "stop",}',
        b'{"execute": "stop" // comment\n}',
        b"{'execute': 'stop'}",
        b'{"execute": stop}',
        b'{"execute": "\\x"}',
        b'{"execute": "\\u12"}',
        b"{]",
        b"[}",
        b"\x00",
        b"]" * 100,
        b'{"a":' * 60 + b"}" * 60,
    ],
    ids=lambda text: repr(text[:30]),
)
def test_malformed_json_is_an_error_and_the_next_line_is_read(served: Served, text: bytes) -> None:
    answers = talk(served.path, COMMANDS[0] + text + b'\n{"execute": "query-status"}')
    assert answers[0] == {"return": {}}
    assert answers[1:-1]
    assert all("JSON parse error" in answer["error"]["desc"] for answer in answers[1:-1])
    assert answers[-1]["return"]["status"] == "running"
    assert served.machine.pauses == 0


VALUES: list[object] = [
    *(None, True, False, 0, -1, 1, 3, 1 << 31, (1 << 64) - 1, 1 << 64, -(1 << 63), 10**4200),
    *(0.0, -0.0, 1.5, 1e308, -1e-308),
    *("", "0", "0x0", "0x", "0xg", "0x" + "f" * 16, "0x" + "f" * 17, "9" * 20, "-1", "+1", " 1", "1 ", "1_0", "٣"),
    *("zero", "\ud800", "\udfff\ud800", "\0", "\x7f\n\r", "x" * 5000, "quit\0"),
    *([], [0], [[]], {}, {"event": 0}, {"": {}}, [None] * 1000),
]


@pytest.mark.parametrize("field", ["execute", "arguments", "id", "event", "vcpu", "affinity", "other", "\ud800"])
def test_every_type_in_every_field_of_every_command(served: Served, field: str) -> None:
    with Qmp(served.path) as client:
        names = [command["name"] for command in client.execute("query-commands")["return"]]
        before, accepted = injected(served), 0
        for name in names:
            for value in VALUES:
                message: dict[str, Any] = {"execute": name, "arguments": {}, "id": [name, 1]}
                if name in ("inject-event", "cancel-event"):
                    message["arguments"] = {"event": 0}
                if field in message or field == "other":
                    message[field] = value
                else:
                    message["arguments"] = {"event": 0} | {field: value}
                client.send(json.dumps(message).encode())
                while "event" in (answer := client.receive()):
                    pass
                check_answer(answer)
                assert answer["id"] == message["id"]
                if field == "other":
                    assert "'other' is unexpected" in answer["error"]["desc"]
                accepted += name == "inject-event" and "return" in answer
        assert injected(served) - before == accepted
        if field in ("id", "event"):
            assert accepted


@pytest.mark.parametrize("open_", [b"[", b'{"execute": "query-status", "id": [', b'{"execute": "', b"", b'"'])
def test_a_million_elements_end_the_connection_with_a_reason(served: Served, open_: bytes) -> None:
    with Qmp(served.path) as client:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            client.send(open_ + b"1," * 1_000_000)
        answer = client.receive()
        assert answer["error"]["desc"] == "JSON parse error, a message of more than 64 KiB"
        with pytest.raises((EOFError, ConnectionResetError)):
            client.receive()


def test_deep_nesting_ends_the_connection_with_a_reason(served: Served) -> None:
    for text in (b"[" * 100_000, b'{"a":' * 10_000):
        answers = talk(served.path, text)
        assert [answer["error"]["desc"] for answer in answers] == ["JSON parse error, JSON nested more than 64 deep"]


# -- clients that stay


def test_a_half_closed_client_that_does_not_read_is_not_kept_for_ever(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its last answers fitted into our buffer, so that nobody waited for them: its descriptor stayed open."""
    monkeypatch.setattr(server_module, "REPLY_PATIENCE", 0.05)
    served.machine.found.append(FaultReport(0, "x" * 8000, 0, {}, []))
    before = descriptors()
    with contextlib.ExitStack() as stack:
        deaf = [stack.enter_context(connect(served.path)) for _ in range(40)]
        for i, connection in enumerate(deaf):
            assert connection.recv(1)  # of the greeting: it has been accepted
            connection.sendall(COMMANDS[0] + b'{"execute": "query-vm"}' * (10 + i))
            connection.shutdown(socket.SHUT_WR)
        wait_until(lambda: served.clients() == 0)
        wait_until(lambda: descriptors() == before + len(deaf), "descriptors are left of clients that have been served")


def test_clients_that_say_nothing_do_not_keep_others_out(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "MAX_CLIENTS", 5)
    with Qmp(served.path) as first, contextlib.ExitStack() as stack:
        silent = [stack.enter_context(Qmp(served.path, negotiate=False)) for _ in range(20)]
        with Qmp(served.path) as last:
            assert last.execute("query-status")["return"]
            assert first.execute("query-status")["return"]
        with pytest.raises((EOFError, ConnectionResetError)):
            silent[0].receive()  # the oldest had to go
        silent[-1].send(COMMANDS[0])
        assert silent[-1].receive() == {"return": {}}
        wait_until(lambda: served.clients() <= 5)


def test_people_are_told_why_a_client_was_dropped(
    served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    who = f"a client of the control socket (pid {os.getpid()}) was dropped: "
    with Qmp(served.path) as client:
        wait_until(lambda: served.clients() == 1)
        while served.clients():
            served.call(served.server.emit, "STOP", {"padding": "x" * 10_000})
        assert caplog.messages == [who + "it has not read 256 KiB of events"]
        with contextlib.suppress(EOFError, ConnectionResetError):
            while True:  # what had been sent is still there to read, and no half message counts as one
                client.receive()
    caplog.clear()
    monkeypatch.setattr(server_module, "REPLY_PATIENCE", 0.05)
    served.machine.found.append(FaultReport(0, "x" * 3_000_000, 0, {}, []))
    with Qmp(served.path) as client:
        client.send(b'{"execute": "query-vm"}')
        wait_until(lambda: served.clients() == 0)
    assert caplog.messages == [who + "it has not taken a reply for 0.05 s"]


def test_a_socket_that_was_replaced_does_not_disturb_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with VmDirectory.acquire("vm") as directory:
        served = Served(directory)
        with Qmp(served.path) as client:
            directory.control_socket.unlink()
            directory.control_socket.mkdir()
            served.close()
            with pytest.raises(EOFError):
                client.receive()
