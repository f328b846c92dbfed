# SPDX-License-Identifier: Apache-2.0
"""TLS with certificates on both sides: who is believed, and what both sides say where one is not."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import re
import shutil
import socket
import ssl
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from sdeivirt.errors import UsageError
from sdeivirt.migration.channel import (
    Channel,
    ChannelCancelledError,
    ChannelCutError,
    ChannelError,
    ChannelStalledError,
    Listener,
    TlsCredentials,
    Uri,
    connect,
    parse_uri,
)
from sdeivirt.migration.channel import listener as listening
from sdeivirt.migration.frames import MAGIC

from .channel_support import background, begins, child, finish_and_close, joined, read_all, read_exactly
from .control_support import LIMIT, wait_until
from .tls_support import Authority, lock_key, needs_openssl

pytestmark = needs_openssl

LOCAL = Uri("tcp", "127.0.0.1", 0)
MUCH = memoryview(bytes(32 << 20))


@dataclass
class Certificates:
    """An authority, a directory that it made, and the credentials in there."""

    authority: Authority
    directory: Path
    server: TlsCredentials
    client: TlsCredentials


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    place = tmp_path_factory.mktemp("tls")
    authority = Authority(place / "authority")
    directory = authority.credentials(place / "good")
    return Certificates(
        authority, directory, TlsCredentials.load(directory, True), TlsCredentials.load(directory, False)
    )


@pytest.fixture
def copied(certificates: Certificates, tmp_path: Path) -> Path:
    """Credentials to spoil."""
    return Path(shutil.copytree(certificates.directory, tmp_path / "copy"))


# -- what is sent arrives


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "localhost"])
def test_buffers_of_all_sizes_arrive_in_order(certificates: Certificates, host: str) -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    chance = random.Random(seed)
    sizes = [0, 1, 31, 4096, 2 << 20, *(chance.choice([0, 7, 32, 4096, 70_000]) for _ in range(500)), 5 << 20]
    buffers = [memoryview(chance.randbytes(size)) for size in sizes]
    with joined(f"tcp:{host}:0", certificates.server, certificates.client) as (near, far):
        answer = background(lambda: read_exactly(far, sum(sizes)))
        before = near.sent
        near.send(buffers)
        assert answer.result(LIMIT) == b"".join(buffers)
        assert near.sent - before == sum(sizes)
        far.send([b"thanks"])
        assert read_exactly(near, 6) == b"thanks"


def test_nothing_crosses_the_wire_in_the_clear(certificates: Certificates) -> None:
    seen = bytearray()
    with (
        socket.create_server(("127.0.0.1", 0)) as middle,
        Listener(LOCAL, certificates.server) as listener,
    ):

        def forward(source: socket.socket, target: socket.socket) -> None:
            while data := source.recv(1 << 16):
                seen.extend(data)
                target.sendall(data)

        accepted = background(listener.accept)
        connected = background(lambda: connect(Uri("tcp", "127.0.0.1", middle.getsockname()[1]), certificates.client))
        here, _ = middle.accept()
        there = socket.create_connection(("127.0.0.1", listener.uri.port))
        ways = [background(partial(forward, *way)) for way in ((here, there), (there, here))]
        with connected.result(LIMIT) as near, accepted.result(LIMIT) as far:
            near.send([MAGIC, b"the guest's memory"])
            assert read_exactly(far, 26).endswith(b"memory")
        for way in ways:
            with contextlib.suppress(OSError):
                way.result(LIMIT)
        here.close()
        there.close()
    assert len(seen) > 1000
    assert b"memory" not in seen
    assert MAGIC not in seen


def test_who_begins_to_send_waits_for_nobody(certificates: Certificates) -> None:
    with joined("tcp:127.0.0.1:0", certificates.server, certificates.client) as (near, far):
        begins(near, far)


def test_both_threads_of_a_side_use_the_connection_at_once(certificates: Certificates) -> None:
    size, rounds = 300_000, 40
    with joined("tcp:127.0.0.1:0", certificates.server, certificates.client) as (near, far):

        def send(number: int) -> None:
            for turn in range(rounds):
                (near, far)[number].send([bytes([turn]) * size])

        def receive(number: int) -> None:
            for turn in range(rounds):
                assert read_exactly((near, far)[number], size) == bytes([turn]) * size

        for future in [background(partial(does, number)) for number in range(2) for does in (send, receive)]:
            future.result(LIMIT)


def test_the_oldest_version_is_1_2_and_the_newest_is_taken(certificates: Certificates) -> None:
    for highest, chosen in ((ssl.TLSVersion.TLSv1_2, "TLSv1.2"), (ssl.TLSVersion.MAXIMUM_SUPPORTED, "TLSv1.3")):
        client = TlsCredentials.load(certificates.directory, False)
        client.context.maximum_version = highest
        with joined("tcp:127.0.0.1:0", certificates.server, client) as (near, far):
            assert near._socket.version() == far._socket.version() == chosen  # type: ignore[attr-defined]
            near.send([MUCH[:100_000]])
            assert len(read_exactly(far, 100_000)) == 100_000
    assert certificates.server.context.minimum_version == ssl.TLSVersion.TLSv1_2
    old = TlsCredentials.load(certificates.directory, False)
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.context.minimum_version = old.context.maximum_version = ssl.TLSVersion.TLSv1_1
    old.context.set_ciphers("DEFAULT:@SECLEVEL=0")  # without that OpenSSL would not even ask
    refused(certificates.server, old, "no version of TLS in common", "no version of TLS in common")


# -- the end


def test_the_end_is_told_and_a_missing_one_is_a_cut(certificates: Certificates) -> None:
    with joined("tcp:127.0.0.1:0", certificates.server, certificates.client) as (near, far):
        near.send([b"last"])
        near.close()
        assert read_all(far) == b"last"
        assert far.recv_into(bytearray(8)) == 0
    for turn in range(4):
        failing, swapped = turn & 1, turn & 2
        with joined("tcp:127.0.0.1:0", certificates.server, certificates.client) as ends:
            near, far = reversed(ends) if swapped else ends
            near.send([b"last"])
            if failing:
                with pytest.raises(ValueError, match="mine"), near:
                    raise ValueError("mine")
            else:
                near.abort()
                near.close()
            assert read_exactly(far, 4) == b"last"
            for _ in range(2):
                with pytest.raises(ChannelCutError, match="was cut"):
                    far.recv_into(bytearray(8))


def test_finish_lets_the_other_side_read_what_was_said_last(certificates: Certificates) -> None:
    with joined("tcp:127.0.0.1:0", certificates.server, certificates.client) as (near, far):

        def flood() -> None:
            while True:
                near.send([MUCH])

        def hear() -> bytes:
            word = read_all(near)
            near.abort()
            return word

        flooding, heard = background(flood), background(hear)
        wait_until(lambda: near.sent > len(MAGIC))
        far.send([b"no more"])
        finished = background(partial(finish_and_close, far))
        assert heard.result(LIMIT) == b"no more"
        with pytest.raises(ChannelCancelledError):
            flooding.result(LIMIT)
        near.close()
        finished.result(LIMIT)


def test_after_finish_nothing_is_received(certificates: Certificates) -> None:
    with joined("tcp:127.0.0.1:0", certificates.server, certificates.client) as (near, far):
        near.stall = far.stall = None
        far.send([b"unheard"])
        finished = [background(end.finish) for end in (near, far)]  # neither waits for the other to close
        for future in finished:
            future.result(LIMIT)
        assert far.recv_into(bytearray(8)) == near.recv_into(bytearray(8)) == 0


def test_what_has_come_is_given_without_waiting_for_more(certificates: Certificates) -> None:
    with joined("tcp:127.0.0.1:0", certificates.server, certificates.client) as (near, far):
        far.send([b"word"])
        assert near.recv_into(bytearray(100)) == 4


def test_stalls_and_aborts_end_what_waits(certificates: Certificates) -> None:
    with joined("tcp:127.0.0.1:0", certificates.server, certificates.client) as (near, far):
        near.stall = far.stall = 0.05
        with pytest.raises(ChannelStalledError, match="sent nothing"):
            near.recv_into(bytearray(8))
        with pytest.raises(ChannelStalledError, match="taken nothing"):
            near.send([MUCH])
        far.stall = None
        read_exactly(far, 1 << 20)
        far.stall = None
        sending = background(lambda: far.send([MUCH, MUCH]))
        wait_until(lambda: far.sent > 0)
        far.abort()
        with pytest.raises(ChannelCancelledError):
            sending.result(LIMIT)


@pytest.mark.process
def test_a_process_that_is_killed_has_cut_the_connection(certificates: Certificates) -> None:
    program = """if True:
        import sys
        from pathlib import Path
        from sdeivirt.migration.channel import TlsCredentials, connect, parse_uri
        channel = connect(parse_uri(sys.argv[1]), TlsCredentials.load(Path(sys.argv[2]), False))
        channel.send([b"SDEIVIRT"])
        sys.stdin.read()
    """
    with (
        Listener(LOCAL, certificates.server) as listener,
        child(program, str(listener.uri), str(certificates.directory)) as process,
    ):
        channel = listener.accept(LIMIT)
        assert channel is not None
        with channel:
            assert read_exactly(channel, 8) == MAGIC
            waiting = background(lambda: channel.recv_into(bytearray(8)))
            process.kill()
            with pytest.raises(ChannelCutError, match="was cut"):
                waiting.result(LIMIT)


# -- certificates that do not do


def refused(server: TlsCredentials, client: TlsCredentials, client_says: str, server_says: str) -> None:
    """The two do not come together, both sides say why, and the listener goes on."""
    good = server.context
    records: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("sdeivirt.migration.channel.listener")
    logger.addHandler(handler)
    try:
        with Listener(LOCAL, server) as listener:
            assert listener._tls is not None
            assert listener._tls.context is good
            waiting = background(lambda: listener.accept(LIMIT))
            with pytest.raises(ChannelError, match=client_says) as caught:
                connect(listener.uri, client, timeout=LIMIT).close()
            assert caught.value.hint
            wait_until(lambda: records, "the listener said nothing")
            assert not waiting.done()
            listener.close()
            with pytest.raises(ChannelCancelledError):
                waiting.result(LIMIT)
    finally:
        logger.removeHandler(handler)
    assert len(records) == 1
    assert re.search(server_says, records[0]), records[0]


def test_an_unknown_authority(certificates: Certificates, tmp_path: Path) -> None:
    other = Authority(tmp_path / "other", "Another authority").credentials(tmp_path / "theirs")
    refused(
        certificates.server,
        TlsCredentials.load(other, False),
        "certificate is refused: it is not signed by the CA in ca-cert.pem",
        "refuses our certificate: it is not signed by the CA in the other side's ca-cert.pem",
    )
    # A client that believes us, and whom we do not believe. In TLS 1.3 it would be done already.
    shutil.copy(certificates.directory / "ca-cert.pem", other)
    refused(
        certificates.server,
        TlsCredentials.load(other, False),
        "refuses our certificate: it is not signed by the CA in the other side's ca-cert.pem",
        "certificate is refused: it is not signed by the CA in ca-cert.pem",
    )


def test_certificates_out_of_their_time(certificates: Certificates, tmp_path: Path) -> None:
    old = certificates.authority.credentials(tmp_path / "old", end="20210101000000Z")
    new = certificates.authority.credentials(tmp_path / "new", start="20980101000000Z")
    refused(
        TlsCredentials.load(old, True), certificates.client, "it has expired", "refuses our certificate: it has expired"
    )
    refused(certificates.server, TlsCredentials.load(old, False), "refuses our certificate: it has expired", "expired")
    refused(TlsCredentials.load(new, True), certificates.client, "not valid yet", "refuses our certificate")


def test_a_certificate_of_the_wrong_role(certificates: Certificates, tmp_path: Path) -> None:
    wrong = certificates.authority.credentials(tmp_path / "wrong", "server", usage="clientAuth")
    certificates.authority.credentials(wrong, "client", usage="serverAuth")
    refused(TlsCredentials.load(wrong, True), certificates.client, "for the other role", "refuses our certificate")
    refused(certificates.server, TlsCredentials.load(wrong, False), "refuses our certificate", "for the other role")


def test_a_certificate_that_was_revoked(certificates: Certificates, tmp_path: Path) -> None:
    authority = Authority(tmp_path / "authority")
    bad, good = authority.credentials(tmp_path / "bad"), authority.credentials(tmp_path / "good")
    for role in ("server", "client"):
        authority.revoke(bad / f"{role}-cert.pem")
    authority.list_revoked(good / "ca-crl.pem")
    server, client = (TlsCredentials.load(good, role) for role in (True, False))
    with joined("tcp:127.0.0.1:0", server, client):
        pass
    refused(server, TlsCredentials.load(bad, False), "refuses our certificate: it has been revoked", "been revoked")
    refused(TlsCredentials.load(bad, True), client, "it has been revoked", "refuses our certificate: it has been")
    for rubbish in (b"", b"rubbish", (good / "ca-cert.pem").read_bytes()):
        (good / "ca-crl.pem").write_bytes(rubbish)
        with pytest.raises(UsageError, match=r"ca-crl\.pem (has no list|cannot be read)"):
            TlsCredentials.load(good, True)
    authority.list_revoked(good / "ca-cert.pem")
    with pytest.raises(UsageError, match=r"ca-cert\.pem has no certificate"):
        TlsCredentials.load(good, True)


def test_the_servers_name_has_to_be_the_host_or_the_one_that_is_given(
    certificates: Certificates, tmp_path: Path
) -> None:
    elsewhere = certificates.authority.credentials(tmp_path / "elsewhere", names="DNS:elsewhere.example.org")
    server = TlsCredentials.load(elsewhere, True)
    refused(server, certificates.client, "made out to another name: .*127.0.0.1", "refuses our certificate")
    named = TlsCredentials.load(certificates.directory, False, "elsewhere.example.org")
    with joined("tcp:127.0.0.1:0", server, named):
        pass
    refused(certificates.server, named, "another name: .*elsewhere.example.org", "refuses our certificate")
    for name in ("x\0y", "a b", "a/b"):
        with pytest.raises(UsageError, match="cannot be the name of a host"):
            TlsCredentials.load(certificates.directory, False, name)


def test_a_client_without_a_certificate(certificates: Certificates) -> None:
    bare = TlsCredentials(ssl.create_default_context(cafile=certificates.directory / "ca-cert.pem"), False, "")
    refused(
        certificates.server, bare, "refuses our certificate: there was none", "the other side has shown no certificate"
    )


# -- one side without TLS


def say_and_listen(channel: Channel, text: bytes | memoryview) -> None:
    channel.send([text])
    channel.recv_into(bytearray(100))


def test_a_plain_client_at_a_tls_listener(certificates: Certificates, caplog: pytest.LogCaptureFixture) -> None:
    with Listener(LOCAL, certificates.server) as listener, caplog.at_level(logging.WARNING):
        waiting = background(listener.accept)
        for much in (MAGIC, MUCH):  # it may wait for an answer, or learn it as it goes on sending
            with connect(listener.uri) as plain:
                plain.stall = LIMIT
                with pytest.raises(ChannelError, match="speaks TLS, and this side does not") as caught:
                    say_and_listen(plain, much)
                assert "--tls-creds" in caught.value.hint
        near = connect(listener.uri, certificates.client)
        with waiting.result(LIMIT) as far, near:
            near.send([MAGIC])
            assert read_exactly(far, 8) == MAGIC
    assert [record.getMessage().partition("away: ")[2] for record in caplog.records] == [
        "it speaks no TLS, and this side does"
    ] * 2


def test_a_tls_client_at_a_plain_listener(certificates: Certificates, caplog: pytest.LogCaptureFixture) -> None:
    with Listener(LOCAL) as listener, caplog.at_level(logging.WARNING):
        waiting = background(listener.accept)
        with pytest.raises(ChannelError, match="the other side speaks no TLS") as caught:
            connect(listener.uri, certificates.client)
        assert caught.value.hint
        near = connect(listener.uri)
        near.send([MAGIC])
        with waiting.result(LIMIT), near:
            pass
    assert "it speaks TLS, and this side does not" in caplog.text
    # One that does not wait for a first word notices later.
    with Listener(LOCAL, begins=b"") as listener:
        failing = background(lambda: connect(listener.uri, certificates.client))
        far = listener.accept(LIMIT)
        assert far is not None
        with far, pytest.raises(ChannelError, match="speaks TLS"):
            far.recv_into(bytearray(100))
        with pytest.raises(ChannelError, match=r"no TLS connection .* speaks no TLS"):
            failing.result(LIMIT)


def test_a_server_that_is_none_of_ours(certificates: Certificates) -> None:
    """It has a certificate that we believe, and then does not say what an sdeivirt says."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        connecting = background(lambda: connect(Uri("tcp", "127.0.0.1", server.getsockname()[1]), certificates.client))
        connection, _ = server.accept()
        with certificates.server.context.wrap_socket(connection, server_side=True) as secured:
            secured.sendall(b"220 ESMTP\r\n")
            with pytest.raises(ChannelError, match="something else than sdeivirt"):
                connecting.result(LIMIT)


def test_a_server_that_does_not_answer(certificates: Certificates) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        uri = Uri("tcp", "127.0.0.1", server.getsockname()[1])
        with pytest.raises(ChannelStalledError, match=r"has not answered for 0\.05 s"):
            connect(uri, certificates.client, timeout=0.05)


def test_callers_that_begin_a_handshake_and_stop_hinder_nobody(
    certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        certificates.client.context.wrap_bio(incoming, outgoing, server_hostname="localhost").do_handshake()
    hello = outgoing.read()
    with Listener(LOCAL, certificates.server) as listener, contextlib.ExitStack() as stack:
        waiting = background(listener.accept)
        for part in (b"", hello[:1], hello[:50], hello):
            caller = stack.enter_context(socket.create_connection(("127.0.0.1", listener.uri.port)))
            caller.sendall(part)
        near = stack.enter_context(connect(listener.uri, certificates.client, timeout=LIMIT))
        far = stack.enter_context(waiting.result(LIMIT))
        near.send([MAGIC])
        assert read_exactly(far, 8) == MAGIC
        assert len(listener._callers) == 4
        # They are let go in the end.
        with caplog.at_level(logging.WARNING):
            listener._send_away_the_silent(float("inf"))
        assert len(caplog.records) == 4
        assert listening.PATIENCE > 1


# -- directories


def test_credentials_are_of_one_role(certificates: Certificates, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="credentials of a client"):
        connect(Uri("tcp", "127.0.0.1", 1), certificates.server)
    with pytest.raises(UsageError, match="credentials of a server"):
        Listener(LOCAL, certificates.client)
    for function, credentials in ((connect, certificates.client), (Listener, certificates.server)):
        with pytest.raises(UsageError, match="TLS is for tcp"):
            function(parse_uri(f"unix:{tmp_path}/s"), credentials)


@pytest.mark.parametrize("name", ["ca-cert.pem", "server-cert.pem", "server-key.pem"])
def test_a_file_that_is_missing_or_is_no_pem(copied: Path, name: str) -> None:
    (copied / name).write_text("rubbish")
    with pytest.raises(UsageError, match=name):
        TlsCredentials.load(copied, True)
    (copied / name).write_bytes(b"")
    with pytest.raises(UsageError, match=name):
        TlsCredentials.load(copied, True)
    (copied / name).unlink()
    with pytest.raises(UsageError, match=f"cannot read .*{name}: No such file") as caught:
        TlsCredentials.load(copied, True)
    assert "server-cert.pem" in caught.value.hint
    os.mkfifo(copied / name, 0o600)  # nobody waits for its writer
    with pytest.raises(UsageError, match="it is a FIFO"):
        TlsCredentials.load(copied, True)


def test_each_role_needs_its_own_files_alone(copied: Path) -> None:
    for name in ("server-cert.pem", "server-key.pem"):
        (copied / name).unlink()
    TlsCredentials.load(copied, False)
    with pytest.raises(UsageError, match="server-cert"):
        TlsCredentials.load(copied, True)
    with pytest.raises(UsageError, match="cannot read"):
        TlsCredentials.load(copied / "nowhere", False)


def test_a_key_has_to_be_private_and_to_fit(certificates: Certificates, copied: Path) -> None:
    key = copied / "client-key.pem"
    for mode in (0o640, 0o604, 0o620):
        key.chmod(mode)
        with pytest.raises(UsageError, match=f"open to other users .mode {mode:04o}") as caught:
            TlsCredentials.load(copied, False)
        assert caught.value.hint == f"run `chmod 600 {key}`"
    key.chmod(0o400)
    TlsCredentials.load(copied, False)
    shutil.copy(copied / "server-key.pem", key)
    key.chmod(0o600)
    with pytest.raises(UsageError, match=r"client-key\.pem is not the key of .*client-cert\.pem"):
        TlsCredentials.load(copied, False)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a file to another user")
def test_a_key_of_another_user_is_refused(copied: Path) -> None:
    os.chown(copied / "client-key.pem", 54322, 54322)
    with pytest.raises(UsageError, match="belongs to user 54322"):
        TlsCredentials.load(copied, False)


def test_a_key_with_a_password_asks_nobody(copied: Path) -> None:
    lock_key(copied / "server-key.pem")
    with pytest.raises(UsageError, match="has a password") as caught:
        TlsCredentials.load(copied, True)
    assert "openssl pkey" in caught.value.hint
