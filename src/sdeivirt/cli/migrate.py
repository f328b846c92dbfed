# SPDX-License-Identifier: Apache-2.0
"""`sdeivirt migrate` and `sdeivirt save`."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from ..control.client import VmClient
from ..errors import MigrationError, SdeivirtError, StateError, UsageError
from ..migration.channel import ChannelError, parse_uri
from ..migration.channel.connect import check_network, resolve
from ..migration.source import SourceOptions
from ..migration.status import MigrationStatus
from .options import Json, Number, OptionalSize, VmName, complete_uris
from .output import folded
from .progress import ProgressLine, counted, in_bytes
from .session import signals_noted

__all__ = ["migrate", "save"]

_LEVEL = 3  # of zstd: what its makers chose
_PAGE = 4096


def migrate(
    vm: VmName | None = None,
    uri: Annotated[str | None, Parameter(completer=complete_uris)] = None,
    /,
    *,
    downtime_limit: Annotated[Number | None, Parameter(metavar="MS")] = None,
    max_bandwidth: OptionalSize = None,
    compress: bool = False,
    overwrite: bool = False,
    tls_creds: Path | None = None,
    tls_hostname: str | None = None,
    insecure: bool = False,
    status: bool = False,
    cancel: bool = False,
    take_back: bool = False,
    postcopy: bool = False,
    postcopy_after: Number | None = None,
    recover: bool = False,
    analyze: Path | None = None,
    json_: Json = False,
) -> int:
    """Move a running guest to another process or host, while it runs.

    Start the destination first: `sdeivirt run --incoming URI`. Then
    `sdeivirt migrate VM URI`; or `migrate VM --status`, --cancel, --recover or
    --take-back; or `migrate --analyze FILE`. Ctrl-C cancels, and so do SIGTERM
    and a hang-up of the terminal: until the destination has said that the
    guest runs there, it goes on here, whatever happens.

    Parameters
    ----------
    vm
        The VM's name.
    uri
        Where to: tcp:HOST:PORT or unix:PATH; or file:FILE, to write it to a file while it runs, and end the VM
        then. `sdeivirt save VM FILE --stay` lets it go on afterwards.
    downtime_limit
        Milliseconds that the guest may stand still, by default 300.
    max_bandwidth
        The most to send in a second, such as 100M (bytes), more than 0; by default all that the link carries, and
        with --recover as much as before. With post-copy it is for pages that the guest does not wait for.
    compress
        Compress pages.
    overwrite
        Take the place of a file that is there (with file:FILE).
    tls_creds
        A directory with ca-cert.pem, client-cert.pem and client-key.pem, as QEMU has it.
    tls_hostname
        Whom the destination's certificate has to be made out to, where that is not the host in the URI.
    insecure
        Send the guest to another host without TLS.
    status
        Tell how far a migration is instead of beginning one.
    cancel
        End the migration that is under way, and wait until it has ended; the guest stays.
    take_back
        The connection broke during the hand-over, and you know that the guest does not run at
        the destination, and never will: let it go on here.
    postcopy
        Post-copy: let the guest go on there at once, and send its pages then, those first that it needs.
    postcopy_after
        The same after so many passes over its memory.
    recover
        The connection broke while pages were sent after the guest: connect again, to URI if there is one, with
        the credentials of before if there is none. Ctrl-C ends the attempt.
    analyze
        Show what is in a file of `sdeivirt save` or `migrate VM file:FILE`.
    """
    chosen = [status, cancel, take_back, recover, analyze is not None, uri is not None and not recover]
    if sum(chosen) != 1:
        raise UsageError(
            "say one thing to do", "a URI to move to, or --status, --cancel, --take-back, --recover or --analyze FILE"
        )
    if postcopy and postcopy_after is not None:
        raise UsageError("post-copy at once, or after some passes?", "leave out --postcopy or --postcopy-after")
    if analyze is not None:
        return _analyze(analyze, json_)
    if vm is None:
        raise UsageError("which VM?", "`sdeivirt status` lists them")
    if overwrite and not (uri or "").startswith("file:"):
        raise UsageError("--overwrite is for files", "leave it out, or say file:FILE")
    if max_bandwidth is not None:
        _check_bandwidth(max_bandwidth)
    if uri is None or recover:
        for given, what in (
            (postcopy, "--postcopy"),
            (postcopy_after is not None, "--postcopy-after"),
            (downtime_limit is not None, "--downtime-limit"),
            (compress, "--compress"),
            (max_bandwidth is not None and not recover, "--max-bandwidth"),
        ):
            if given:
                raise UsageError(f"{what} is for a guest that sets out", f"leave {what} out")
    if uri is not None:
        uri = _checked(uri, tls_creds, tls_hostname, insecure)
    with VmClient(vm) as client:
        if status:
            return _show(MigrationStatus(**client.execute("query-migrate")), json_)
        if cancel or take_back:
            client.execute("migrate-cancel" if cancel else "migrate-take-back")
            return _stays(client, vm, "cancelled" if cancel else "taken back", json_)
        arguments: dict[str, Any] = {
            "uri": uri,
            "tls-creds": os.path.abspath(tls_creds) if tls_creds is not None else None,
            "tls-hostname": tls_hostname,
            "insecure": insecure,
            "max-bandwidth": max_bandwidth,
        }
        if recover:
            return _follow(client, vm, "migrate-recover", arguments, json_)
        arguments |= {
            "downtime-limit": downtime_limit,
            "compress": _LEVEL if compress else 0,
            "postcopy": 0 if postcopy else postcopy_after,
            "overwrite": overwrite or None,
        }
        return _follow(client, vm, "migrate", arguments, json_)


def save(
    vm: VmName,
    file: Path,
    /,
    *,
    stay: bool = False,
    compress: Annotated[bool, Parameter(negative="--no-compress")] = True,
    overwrite: bool = False,
    json_: Json = False,
) -> int:
    """Write a guest and all its state to a file, and end the VM; `sdeivirt restore FILE` lets it go on.

    The file is there when it is complete, and not before; the VM ends then,
    and not before. Ctrl-C cancels, and so do SIGTERM and a hang-up.

    Parameters
    ----------
    vm
        The VM's name.
    file
        Where to.
    stay
        Let the guest go on afterwards: the file is a copy.
    compress
        Compress pages.
    overwrite
        Take the place of a file that is there.
    """
    arguments = {
        "compress": _LEVEL if compress else 0,
        "stop-first": True,
        "stay": stay,
        "overwrite": overwrite,
    }
    with VmClient(vm) as client:
        path = os.path.abspath(str(file).removeprefix("file:"))  # as `migrate` has it
        return _follow(client, vm, "migrate", {"uri": f"file:{path}", **arguments}, json_)


def _checked(uri: str, tls_creds: Path | None, tls_hostname: str | None, insecure: bool) -> str:
    """The address as the VM's process understands it, which has another working directory. Raises UsageError.

    What nobody could ever connect to is found out here, before anything begins.
    """
    target = parse_uri(uri).absolute()
    tls = SourceOptions(tls=tls_creds, tls_hostname=tls_hostname or "", insecure=insecure).credentials()
    if target.scheme == "tcp":
        if not target.port:
            raise UsageError(f"nobody listens at port 0 of {target.host}", "name the port that the destination printed")
        check_network(target, resolve(target, ChannelError), tls is not None, insecure)
    return str(target)


def _check_bandwidth(rate: int) -> None:
    """Raises UsageError; warns where it is hardly more than nothing."""
    if not rate:
        raise UsageError("0 bytes a second would take for ever", "leave --max-bandwidth out for no limit")
    if rate < _PAGE:
        print(f"warning: at {rate} bytes a second each page takes {_PAGE / rate:,.1f} s", file=sys.stderr)


def _follow(client: VmClient, vm: str, command: str, arguments: dict[str, Any], as_json: bool) -> int:
    """Begin, and tell of it to the end. Whatever ends this process cancels it, as long as that can be."""
    line = ProgressLine(sys.stderr)
    status = MigrationStatus(status="setup")
    left = command == "migrate-recover"  # the guest has, and its pages follow
    answered = 0  # signals
    with signals_noted() as caught:
        caught.wake = client.wake
        try:
            client.execute(command, **arguments)
            while status.active:
                with contextlib.suppress(InterruptedError):
                    status = client.wait_migration()
                    line.show(status)
                    left = left or status.status.startswith("postcopy")
                while answered < caught.count and status.active:
                    answered += 1
                    if answered > 1:
                        line.say(f"it goes on without this: `sdeivirt migrate {vm} --status` tells how")
                        return 128 + caught.number
                    line.say(_cancel(client, left))
        finally:
            line.end()
    if status.status == "completed":
        return _show(status, as_json)
    if as_json:
        print(json.dumps(asdict(status), indent=2))
    if answered and status.status == "cancelled":
        line.say(f"cancelled: the guest stays in VM {vm!r}")
        return 128 + caught.number
    if status.status == "postcopy-paused":
        lost = MigrationError(f"the guest has gone to {status.uri} without all its pages: {status.error}", status.hint)
        if not answered:
            raise lost
        line.say(f"{lost.message}\nhint: {lost.hint}")
        return 128 + caught.number
    if left:
        raise MigrationError(status.error, status.hint)
    what = "was not saved" if status.uri.startswith("file:") else "has not moved"
    hint = status.hint or ("" if _is_over(client) else "its guest stays there")
    raise MigrationError(f"VM {vm!r} {what}: {status.error}", hint)


def _cancel(client: VmClient, left: bool) -> str:
    """Somebody has interrupted us: call it off; what to say of that."""
    try:
        client.execute("migrate-cancel")
        return "cancelling: no connection is to be made" if left else "cancelling: the guest is to stay"
    except SdeivirtError as error:
        return f"{error}; once more leaves it to itself"


def _is_over(client: VmClient) -> bool:
    """Whether the VM has ended, or is about to."""
    try:
        return bool(client.execute("query-status")["status"] == "shutdown")
    except SdeivirtError:
        return True


def _stays(client: VmClient, vm: str, word: str, as_json: bool) -> int:
    """Wait until a migration that is to end has ended. Raises StateError where the guest has gone after all."""
    status = MigrationStatus(**client.execute("query-migrate"))
    while status.active:
        status = client.wait_migration()
    if as_json:
        print(json.dumps(asdict(status), indent=2))
    if status.status == "completed":
        raise StateError(f"it was too late: the guest of VM {vm!r} is at {status.uri}")
    if status.status.startswith("postcopy"):
        if not as_json:
            print(f"cancelled: nobody connects again for the guest's pages\nhint: {status.hint}")
    elif not as_json:
        print(f"{word}: the guest stays in VM {vm!r}")
    return 0


def _show(status: MigrationStatus, as_json: bool) -> int:
    if as_json:
        print(json.dumps(asdict(status), indent=2))
        return 0
    if status.status == "none":
        print("no migration has been asked for")
        return 0
    file = status.uri.removeprefix("file:")
    where = f"to {status.uri}" if status.role == "source" else f"at {status.uri}"
    print(f"{status.status}: {where if file == status.uri else f'the file {file}'}")
    print(f"  passes      {status.passes}")
    print(f"  pages       {status.plain:,} with content, {status.duplicate:,} alike, {status.zero:,} of zeroes")
    what = "sent    " if status.role == "source" else "received"
    print(f"  {what}    {in_bytes(status.bytes)} in {status.elapsed:.2f} s, {in_bytes(status.rate, 1000)}/s")
    if status.status.startswith("postcopy"):
        print(f"  left        {status.remaining:,} of {counted(status.total, 'page')}")
    elif status.active:
        print(
            f"  left        {counted(status.remaining, 'page')} of this pass, {status.dirty:,} written since the last"
        )
        if status.role == "source":
            print(f"  downtime    {status.expected_downtime * 1e3:.0f} ms if it were now{_allowed(status)}")
    elif status.role == "source":
        print(f"  downtime    {status.downtime * 1e3:.0f} ms")
    if status.faults:
        print(
            f"  faults      {status.faults:,}, median {status.fault_median * 1e3:.2f} ms, "
            f"99 % within {status.fault_slowest * 1e3:.2f} ms"
        )
    if status.unneeded:
        print(f"  not sent    {counted(status.unneeded, 'page')}: the guest has ended there, or was reset")
    if status.limit is not None:
        print(f"  held up     to {counted(status.limit, 'new page')} a second")
    if status.error:
        print(f"  why         {status.error}")
    if status.hint:
        print(f"  hint        {status.hint}")
    return 0


def _allowed(status: MigrationStatus) -> str:
    return f", {status.downtime_limit * 1e3:.0f} ms are allowed" if status.downtime_limit is not None else ""


def _analyze(path: Path, as_json: bool) -> int:
    from ..migration.analysis import analyze, render

    analysis = analyze(path)
    print(json.dumps(asdict(analysis), indent=2) if as_json else folded(render(analysis)))
    return 0 if analysis.complete else 1
