# SPDX-License-Identifier: Apache-2.0
"""`sdeivirt run --incoming` and `sdeivirt restore`: a VM whose guest has been running elsewhere."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from ..control.host import run_vm
from ..control.runtime import VmDirectory
from ..control.terminal import Terminal
from ..errors import SdeivirtError, UsageError
from ..machine import open_machine
from ..machine.base import EngineOptions
from ..migration.channel import Listener, TlsCredentials, Uri, open_file, parse_uri
from ..migration.description import Configuration
from ..migration.destination import Incoming, import_machines
from ..migration.lazy import FetchedGuest, LazyFile
from ..migration.wants import PREFETCH, check_prefetch
from .options import Number, PlaceOptions, Seconds
from .session import finish, log_to_stderr, signals_end_us

__all__ = ["receive", "restore"]


def restore(
    file: Path,
    /,
    *arguments: Annotated[str, Parameter(show=False)],
    name: str | None = None,
    options: PlaceOptions = PlaceOptions(),  # noqa: B008 (frozen)
    timeout: Seconds | None = None,
    console: Path | None = None,
    gdb: bool = False,
    lazy: bool = False,
    prefetch: Annotated[Number | None, Parameter(show_default=lambda _: str(PREFETCH))] = None,
    tls_creds: Path | None = None,
    tls_hostname: str | None = None,
    insecure: bool = False,
) -> int:
    """Let a guest go on that `sdeivirt save` has written to a file.

    The file stays; a guest that goes on twice from the same state may find
    that confusing, and so may those it talks to. What the guest can see of its
    machine comes with it. Arguments after -- are given to QEMU, and have to make
    the devices that the saved VM had.

    Parameters
    ----------
    file
        What `sdeivirt save` wrote; with --lazy also the address of one that `sdeivirt serve` serves,
        tcp:HOST:PORT or unix:PATH.
    name
        The name by which inject and status find the VM; by default the one that it had.
    timeout
        Seconds that the guest may run here.
    console
        A file for what the guest prints, instead of the terminal.
    gdb
        Have QEMU listen for gdb, and print how to connect (machine qemu).
    lazy
        Let the guest go on at once, and read the pages that it needs first.
    prefetch
        How many pages to read where one is needed (with --lazy).
    tls_creds
        A directory with ca-cert.pem, client-cert.pem and client-key.pem, for tcp:.
    tls_hostname
        Whom the server's certificate has to be made out to, where that is not the host in the address.
    insecure
        Fetch the guest from another host without TLS.
    """
    log_to_stderr()
    uri = str(file).removeprefix("file:")  # as `migrate` has it
    elsewhere = uri.startswith(("tcp:", "unix:"))
    if prefetch is not None and not lazy:
        raise UsageError("--prefetch is for a guest that goes on before its pages were read", "add --lazy")
    if elsewhere and not lazy:
        raise UsageError(f"{uri} is where a page server may be", "add --lazy")
    if not elsewhere and (tls_creds is not None or tls_hostname is not None or insecure):
        raise UsageError("--tls-creds, --tls-hostname and --insecure are for a page server", "leave them out")
    if not elsewhere:
        uri = f"file:{os.path.abspath(uri)}"
    source: Callable[[], Incoming] | None = None
    if lazy:
        target = parse_uri(uri)
        many = PREFETCH if prefetch is None else prefetch

        def source() -> Incoming:
            if target.scheme == "file":
                return LazyFile(target.path, many)
            tls = TlsCredentials.load(tls_creds, server=False, hostname=tls_hostname or "") if tls_creds else None
            return FetchedGuest(target, tls, insecure, many)

    return receive(uri, name, options, timeout, console, arguments=arguments, gdb=gdb, source=source)


def receive(
    uri: str,
    name: str | None,
    options: PlaceOptions,
    timeout: float | None,
    console: Path | None,
    *,
    arguments: Sequence[str] = (),
    gdb: bool = False,
    tls: Path | None = None,
    insecure: bool = False,
    prefetch: int = PREFETCH,
    source: Callable[[], Incoming] | None = None,
) -> int:
    """Wait for a guest, and run it; the exit code. `name` is that of the VM that it comes from where None.

    `source` makes what it comes from, in place of a listener or a file.
    """
    more: dict[str, Any] = {"arguments": tuple(arguments), "gdb": gdb}
    options.check(**more)
    target = parse_uri(uri)
    check_prefetch(prefetch)
    if prefetch != PREFETCH and target.scheme == "file":
        raise UsageError("out of a file all pages come before the guest goes on", "leave --prefetch out")
    credentials = TlsCredentials.load(tls, server=True) if tls is not None else None
    with ExitStack() as stack:
        stack.enter_context(signals_end_us())
        # The name is taken from the beginning: it would be too late to find that out when the guest is here.
        directory = stack.enter_context(VmDirectory.acquire(name)) if name is not None else None
        incoming = source() if source else _source(target, credentials, insecure, prefetch, directory)
        stack.enter_context(closing(incoming))
        configuration = incoming.configuration()  # Ctrl-C still ends us
        try:
            engine = options.engine(configuration.machine, **more)
            if directory is None:
                directory = stack.enter_context(VmDirectory.acquire(configuration.name))
            came = f"the guest of {uri}" if target.scheme == "file" or source else "the guest has come, and"
            return _run(configuration, directory, engine, incoming, timeout, console, came)
        except SdeivirtError as error:
            incoming.refuse(error)  # unless it has come already
            raise


def _run(
    configuration: Configuration,
    directory: VmDirectory,
    engine: EngineOptions | None,
    incoming: Incoming,
    timeout: float | None,
    console: Path | None,
    came: str,
) -> int:
    name = directory.name
    config = configuration.config(name, directory.path, engine)
    with open_machine(configuration.machine, config) as machine, Terminal(console) as terminal:

        def ready() -> None:
            terminal.say(f"VM {name!r}: control directory {directory.path}")
            for line in machine.hints():
                terminal.say(line)
            if console is None and terminal.interactive:
                terminal.say("Ctrl-] ends the VM")

        def arrived() -> None:
            if machine.state == "paused":
                terminal.say("the guest has come, and is paused, as it was")
            else:
                terminal.say(f"{came} goes on here")

        incoming.arrived = arrived
        return finish(name, run_vm(machine, directory, terminal, timeout, ready, incoming), terminal, timeout)


def _source(
    target: Uri, credentials: TlsCredentials | None, insecure: bool, prefetch: int, directory: VmDirectory | None
) -> Incoming:
    if target.scheme == "file":
        return Incoming(None, open_file(target))
    listener = Listener(target, credentials, insecure)
    import_machines()
    if directory is not None:
        directory.wait_at(str(listener.uri.absolute()))
    command = f"sdeivirt migrate VM {listener.uri}" + (" --tls-creds DIR" if credentials is not None else "")
    print(f"waiting for a guest at {listener.uri}; `{command}` sends one, Ctrl-C ends this", file=sys.stderr)
    return Incoming(listener, prefetch=prefetch)
