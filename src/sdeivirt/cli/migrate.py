# SPDX-License-Identifier: Apache-2.0
"""`sdeivirt migrate` and `sdeivirt save`."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..control.client import VmClient
from ..errors import MigrationError, SdeivirtError, UsageError
from ..migration.status import MigrationStatus
from . import INTERRUPTED
from .options import Json, Number, OptionalSize, VmName
from .progress import ProgressLine

__all__ = ["migrate", "save"]

_LEVEL = 3  # of zstd: what its makers chose


def migrate(
    vm: VmName | None = None,
    uri: str | None = None,
    /,
    *,
    downtime_limit: Number = 300,
    max_bandwidth: OptionalSize = None,
    compress: bool = False,
    tls_creds: Path | None = None,
    insecure: bool = False,
    status: bool = False,
    cancel: bool = False,
    take_back: bool = False,
    analyze: Path | None = None,
    json_: Json = False,
) -> int:
    """Move a running guest to another process or host, while it runs.

    Start the destination first: `sdeivirt run --incoming URI`. Ctrl-C
    cancels: until the destination has said that the guest runs there, it goes
    on here, whatever happens.

    Parameters
    ----------
    vm
        The VM's name.
    uri
        Where to: tcp:HOST:PORT, unix:PATH, or file:FILE to save it while it runs.
    downtime_limit
        Milliseconds that the guest may stand still.
    max_bandwidth
        The most to send in a second, such as 100M; by default all that the link carries.
    compress
        Compress pages.
    tls_creds
        A directory with ca-cert.pem, client-cert.pem and client-key.pem, as QEMU has it.
    insecure
        Send the guest to another host without TLS.
    status
        Tell how far a migration is instead of beginning one.
    cancel
        End the migration that is under way; the guest stays.
    take_back
        The connection broke during the hand-over, and you know that the guest does not run at
        the destination, and never will: let it go on here.
    analyze
        Show what is in a file of `sdeivirt save` or `migrate VM file:FILE`.
    """
    chosen = [status, cancel, take_back, analyze is not None, uri is not None]
    if sum(chosen) != 1:
        raise UsageError(
            "say one thing to do", "a URI to move to, or --status, --cancel, --take-back or --analyze FILE"
        )
    if analyze is not None:
        return _analyze(analyze, json_)
    if vm is None:
        raise UsageError("which VM?", "`sdeivirt status` lists them")
    with VmClient(vm) as client:
        if status:
            return _show(MigrationStatus(**client.execute("query-migrate")), json_)
        if cancel:
            client.execute("migrate-cancel")
            return 0
        if take_back:
            client.execute("migrate-take-back")
            return 0
        assert uri is not None
        arguments: dict[str, Any] = {
            "downtime-limit": downtime_limit,
            "max-bandwidth": max_bandwidth,
            "compress": _LEVEL if compress else 0,
            "tls-creds": os.path.abspath(tls_creds) if tls_creds is not None else None,
            "insecure": insecure,
        }
        return _follow(client, vm, _absolute(uri), arguments, json_)


def save(
    vm: VmName,
    file: Path,
    /,
    *,
    stay: bool = False,
    compress: bool = True,
    overwrite: bool = False,
    json_: Json = False,
) -> int:
    """Write a guest and all its state to a file, and end the VM; `sdeivirt restore FILE` lets it go on.

    The file is there when it is complete, and not before; the VM ends then, and not before.

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
        return _follow(client, vm, f"file:{os.path.abspath(file)}", arguments, json_)


def _absolute(uri: str) -> str:
    """The VM's process has another working directory."""
    scheme, colon, path = uri.partition(":")
    return f"{scheme}:{os.path.abspath(path)}" if colon and path and scheme in ("unix", "file") else uri


def _follow(client: VmClient, vm: str, uri: str, arguments: dict[str, Any], as_json: bool) -> int:
    """Begin, and tell of it to the end."""
    client.execute("migrate", uri=uri, **arguments)
    line = ProgressLine(sys.stderr)
    interrupted = False
    status = MigrationStatus(status="setup", uri=uri)
    while status.active:
        try:
            status = client.wait_migration()
            line.show(status)
        except KeyboardInterrupt:
            if interrupted:
                raise
            interrupted = True
            line.say("cancelling; the guest stays")
            try:
                client.execute("migrate-cancel")
            except SdeivirtError as error:
                line.say(str(error))
    line.end()
    if status.status == "completed":
        return _show(status, as_json)
    if as_json:
        print(json.dumps(asdict(status), indent=2))
    if status.status == "cancelled":
        return INTERRUPTED if interrupted else 1
    raise MigrationError(f"VM {vm!r} has not moved: {status.error}", status.hint)


def _show(status: MigrationStatus, as_json: bool) -> int:
    if as_json:
        print(json.dumps(asdict(status), indent=2))
        return 0
    if status.status == "none":
        print("no migration has been asked for")
        return 0
    mebibytes = status.bytes / (1 << 20)
    print(f"{status.status}: {'to' if status.role == 'source' else 'at'} {status.uri}")
    print(f"  passes      {status.passes}")
    print(f"  pages       {status.plain:,} with content, {status.duplicate:,} alike, {status.zero:,} of zeroes")
    print(f"  sent        {mebibytes:,.1f} MiB in {status.elapsed:.2f} s, {status.rate / 1e6:,.0f} MB/s")
    if status.active:
        print(f"  left        {status.remaining:,} pages of this pass, {status.dirty:,} written since the last")
        print(f"  downtime    {status.expected_downtime * 1e3:.0f} ms if it were now")
    elif status.role == "source":
        print(f"  downtime    {status.downtime * 1e3:.0f} ms")
    if status.limit is not None:
        print(f"  held up     to {status.limit:,} new pages a second")
    if status.error:
        print(f"  why         {status.error}")
    return 0


def _analyze(path: Path, as_json: bool) -> int:
    from ..migration.analysis import analyze, render

    analysis = analyze(path)
    print(json.dumps(asdict(analysis), indent=2) if as_json else render(analysis))
    return 0 if analysis.complete else 1
