# SPDX-License-Identifier: Apache-2.0
"""`sdeivirt run --incoming` and `sdeivirt restore`: a VM whose guest has been running elsewhere."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ..control.host import run_vm
from ..control.runtime import VmDirectory
from ..control.terminal import Terminal
from ..errors import SdeivirtError, UsageError
from ..machine import open_machine
from ..machine.base import EngineOptions
from ..migration.channel import Listener, TlsCredentials, Uri, open_file, parse_uri
from ..migration.description import Configuration
from ..migration.destination import Incoming
from .options import EngineChoice, MachineOptions, Seconds
from .session import finish, log_to_stderr, signals_end_us

__all__ = ["receive", "restore"]


def restore(
    file: Path,
    /,
    *arguments: Annotated[str, Parameter(show=False)],
    name: str | None = None,
    options: EngineChoice = EngineChoice(),  # noqa: B008 (frozen)
    timeout: Seconds | None = None,
    console: Path | None = None,
    gdb: bool = False,
) -> int:
    """Let a guest go on that `sdeivirt save` has written to a file.

    The file stays; a guest that goes on twice from the same state may find
    that confusing, and so may those it talks to. What the guest can see of its
    machine comes with it. Arguments after -- are given to QEMU, and have to be
    those that the saved VM had.

    Parameters
    ----------
    file
        What `sdeivirt save` wrote.
    name
        The name by which inject and status find the VM; by default the one that it had.
    timeout
        Seconds that the guest may run.
    console
        A file for what the guest prints, instead of the terminal.
    gdb
        Have QEMU listen for gdb, and print how to connect (machine qemu).
    """
    log_to_stderr()
    return receive(f"file:{os.path.abspath(file)}", name, options, timeout, console, arguments=arguments, gdb=gdb)


def receive(
    uri: str,
    name: str | None,
    options: EngineChoice,
    timeout: float | None,
    console: Path | None,
    *,
    arguments: Sequence[str] = (),
    gdb: bool = False,
    tls: Path | None = None,
    insecure: bool = False,
) -> int:
    """Wait for a guest, and run it; the exit code. `name` is that of the VM that it comes from where None."""
    target = parse_uri(uri)
    credentials = TlsCredentials.load(tls, server=True) if tls is not None else None
    with signals_end_us(), closing(_source(target, credentials, insecure)) as incoming:
        configuration = incoming.configuration()  # Ctrl-C still ends us
        name = name if name is not None else configuration.name
        try:
            with VmDirectory.acquire(name) as directory:
                engine = _engine(configuration, options, arguments, gdb)
                config = configuration.config(name, directory.path, engine)
                with open_machine(configuration.machine, config) as machine, Terminal(console) as terminal:

                    def ready() -> None:
                        terminal.say(f"VM {name!r}: control directory {directory.path}")
                        for line in machine.hints():
                            terminal.say(line)
                        if console is None and terminal.interactive:
                            terminal.say("Ctrl-] ends the VM")

                    incoming.arrived = lambda: terminal.say("the guest has come, and goes on here")
                    return finish(
                        name, run_vm(machine, directory, terminal, timeout, ready, incoming), terminal, timeout
                    )
        except SdeivirtError as error:
            incoming.refuse(error)  # unless it has come already
            raise


def _source(target: Uri, credentials: TlsCredentials | None, insecure: bool) -> Incoming:
    if target.scheme == "file":
        return Incoming(None, open_file(target))
    listener = Listener(target, credentials, insecure)
    print(f"waiting for a guest at {listener.uri}; `sdeivirt migrate VM {listener.uri}` sends one", file=sys.stderr)
    return Incoming(listener)


def _engine(
    configuration: Configuration, options: EngineChoice, arguments: Sequence[str], gdb: bool
) -> EngineOptions | None:
    """What the destination says for itself, if it fits the machine that comes."""
    if options.machine not in ("unicorn", configuration.machine):
        raise UsageError(
            f"the guest comes from a machine {configuration.machine}", f"leave --machine {options.machine} out"
        )
    if options.seed is not None or options.policy != "kvm" or options.cpu is not None:
        raise UsageError("a guest that comes in brings its own seed, policy and CPU", "leave these options out")
    if isinstance(options, MachineOptions) and options != MachineOptions(
        machine=options.machine, qemu=options.qemu, poll=options.poll
    ):
        raise UsageError("a guest that comes in brings its own vCPUs and conduit", "leave these options out")
    chosen = EngineChoice(machine=configuration.machine, qemu=options.qemu, poll=options.poll)
    return chosen.engine(arguments=tuple(arguments), gdb=gdb)
