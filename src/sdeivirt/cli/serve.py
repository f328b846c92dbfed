# SPDX-License-Identifier: Apache-2.0
"""`sdeivirt serve`: the pages of a guest that was saved, for `sdeivirt restore --lazy`."""

from __future__ import annotations

import sys
from contextlib import closing, suppress
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ..errors import UsageError
from ..migration.channel import Listener, Pace, TlsCredentials, parse_uri
from ..migration.index import FileIndex
from ..migration.pageserver import ServerOptions
from ..migration.served import FileServer
from ..migration.slow import SlowLink
from .completion import complete_listeners
from .options import Number, OptionalSize
from .session import log_to_stderr, signals_end_us

__all__ = ["serve"]


def serve(
    file: Path,
    uri: Annotated[str, Parameter(completer=complete_listeners)],
    /,
    *,
    max_bandwidth: OptionalSize = None,
    demand_only: bool = False,
    delay: Number = 0,
    bandwidth: OptionalSize = None,
    tls_creds: Path | None = None,
    insecure: bool = False,
) -> int:
    """Serve the pages of a guest that `sdeivirt save` has written to a file, until Ctrl-C, which is no failure.

    `sdeivirt restore --lazy URI` lets the guest go on from there, any number
    of times, one after the other or at once. The file stays as it is.

    Parameters
    ----------
    file
        What `sdeivirt save` wrote.
    uri
        Where to listen: tcp:HOST:PORT or unix:PATH.
    max_bandwidth
        The most to send in a second of what nobody has asked for, such as 100M.
    demand_only
        Send nothing but what is asked for.
    delay
        Milliseconds by which each answer is later than it could be, for experiments.
    bandwidth
        The most to send in a second of everything, for experiments.
    tls_creds
        A directory with ca-cert.pem, server-cert.pem and server-key.pem for tcp:; who fetches needs
        credentials of the same CA.
    insecure
        Let tcp: be reached from other hosts without TLS.
    """
    log_to_stderr()
    tls = TlsCredentials.load(tls_creds, server=True) if tls_creds is not None else None
    pace = Pace(max_bandwidth) if max_bandwidth is not None else None
    SlowLink(delay / 1000, bandwidth)  # raises UsageError
    if not uri.startswith(("tcp:", "unix:")):
        raise UsageError(f"{uri!r} is no address to listen at", "write tcp:HOST:PORT or unix:PATH")

    def tell(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    with signals_end_us(), closing(FileIndex(file)) as index, Listener(parse_uri(uri), tls, insecure) as listener:
        server = FileServer(
            index,
            listener,
            ServerOptions(pace=pace, rest=not demand_only),
            lambda: SlowLink(delay / 1000, bandwidth),
            tell,
        )
        with closing(server):
            tell(f"serving {file} at {listener.uri}; `sdeivirt restore --lazy {listener.uri}` fetches it")
            with suppress(KeyboardInterrupt):
                server.run()
    return 0
