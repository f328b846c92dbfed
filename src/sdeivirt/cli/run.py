# SPDX-License-Identifier: Apache-2.0
"""`sdeivirt run`."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from ..asyncpf import AsyncPfSettings
from ..control.host import run_vm
from ..control.runtime import VmDirectory
from ..control.terminal import Terminal
from ..errors import UsageError
from ..guests import GUESTS, guest_path
from ..machine import MachineConfig, open_machine
from ..migration.wants import PREFETCH
from ..ras.definitions import load_definitions, parse_error_source, settle, standard
from ..ras.sources import ErrorSource
from ..sdei.events import EVENT_0, EventDefinition, parse_event
from ..smccc.ids import Conduit
from .completion import complete_guests
from .options import (
    MachineOptions,
    Number,
    OptionalSize,
    PlaceOptions,
    Seconds,
    complete_uris,
    disable_services,
    policy_named,
)
from .receive import receive
from .session import finish, log_to_stderr, signals_end_us

__all__ = ["run"]

_GUEST_MEMORY = 64 << 20
_KERNEL_MEMORY = 1 << 30  # for a kernel on machine qemu: an operating system's


def run(
    *arguments: Annotated[str, Parameter(show=False)],
    guest: Annotated[str | None, Parameter(completer=complete_guests)] = None,
    kernel: Path | None = None,
    name: str = "vm",
    options: MachineOptions = MachineOptions(),  # noqa: B008 (frozen)
    memory: OptionalSize = None,
    append: str = "",
    event: list[str] | None = None,
    events: Path | None = None,
    error_source: list[str] | None = None,
    private_slots: Number | None = None,
    shared_slots: Number | None = None,
    disable: list[str] | None = None,
    async_pf: Literal["both", "sdei", "ppi", "off"] = "both",
    watchdog: Seconds | None = None,
    timeout: Seconds | None = None,
    initrd: Path | None = None,
    firmware: Literal["dt", "acpi", "uefi"] = "dt",
    uefi: Path | None = None,
    console: Path | None = None,
    on_reset: Literal["restart", "end"] | None = None,
    gdb: bool = False,
    dry_run: bool = False,
    incoming: Annotated[str | None, Parameter(completer=complete_uris)] = None,
    tls_creds: Path | None = None,
    insecure: bool = False,
    prefetch: Number = PREFETCH,
) -> int:
    """Run a guest on this terminal, open to injections from others.

    On a terminal every key goes to the guest, Ctrl-C too; Ctrl-] ends the VM.
    Exit codes: 0 the guest powered off, was reset, or somebody ended the VM;
    1 a vCPU could not go on, or the guest's kernel panicked; 3 QEMU cannot
    run or was killed; 124 time-out. With --machine qemu, arguments after --
    are given to QEMU: sdeivirt run ... -- -device virtio-net-pci.

    Parameters
    ----------
    arguments
        For QEMU, after --.
    guest
        An ELF file, or one of the guests that come with sdeivirt: selftest,
        hypercalls, listen, bench, hostile, mover, tasks, writer; interrupts and reach on machine qemu, ghes with
        --firmware acpi.
    kernel
        An arm64 Image instead; with --firmware uefi any EFI program. Without either, UEFI boots from a disk.
    name
        The name by which inject and status find the VM.
    memory
        How much RAM, such as 64M or 1G; by default 64M, or 1G for a kernel on machine qemu.
    append
        Boot arguments.
    event
        Define an event, such as 0x40000010:shared,critical,interrupt=40; any
        number of times.
    events
        Define the events and the sources of errors of a TOML file.
    error_source
        Define a source of hardware errors by its event, such as 0x324:shared,critical,ghes=1; any
        number of times. It defines the event as well, unless that has been defined. With
        --firmware acpi or uefi; events 0x324 (normal) and 0x325 (critical) where none is defined.
    private_slots
        How many PPIs the guest can bind, instead of the policy's number.
    shared_slots
        How many SPIs the guest can bind, instead of the policy's number.
    disable
        A service to switch off: std-trng, std-sdei, vendor-hyp or async-pf;
        any number of times, or several with commas.
    async_pf
        How the guest may be told that a page is not here yet: by an SDEI event,
        by a PPI alone, as it likes, or not at all.
    watchdog
        Seconds that one SDEI handler may run before its vCPU counts as stuck,
        unless it masks its PE.
    timeout
        Seconds that the guest may run; with --incoming they count from when one begins to come.
    initrd
        An initial RAM disk (machine qemu).
    firmware
        What tells the guest of its machine: a device tree, ACPI tables, or UEFI firmware with ACPI
        tables (machine qemu). With acpi and uefi there are sources of hardware errors, for inject-error.
    uefi
        The UEFI firmware, an EDK2 build for QEMU's virt board; by default that of the package qemu-efi-aarch64.
    console
        A file for what the guest prints, instead of the terminal, which is
        then left alone: no key reaches the guest, and Ctrl-C ends the VM.
    on_reset
        What a reset by the guest does: restart it, or end the run. By default
        it ends a VM of machine qemu and restarts one of machine unicorn.
    gdb
        Have QEMU listen for gdb, and print how to connect (machine qemu).
    dry_run
        Print QEMU's command line instead of running it (machine qemu).
    incoming
        Take over a guest that `sdeivirt migrate` sends, instead of starting one: tcp:HOST:PORT or
        unix:PATH to listen at, or file:FILE of `sdeivirt save`. What the guest can see of its machine
        comes with it; with --machine, only a guest of that machine is taken.
    tls_creds
        A directory with ca-cert.pem, server-cert.pem and server-key.pem for tcp:; the source needs
        credentials of the same CA.
    insecure
        Let tcp: be reached from other hosts without TLS.
    prefetch
        How many pages to ask for where one is needed, when a guest comes before its pages (`migrate --postcopy`).
    """
    if arguments and not arguments[0].startswith("-"):
        raise UsageError(f"unexpected argument {arguments[0]!r}", "arguments for QEMU stand after -- and begin with -")
    log_to_stderr()
    if incoming is not None:
        if dry_run:
            raise UsageError("what QEMU would be given comes with the guest", "leave --dry-run out")
        for given, what in (
            (guest, "--guest"), (kernel, "--kernel"), (append, "--append"), (event, "--event"), (events, "--events"),
            (error_source, "--error-source"),
            (private_slots is not None, "--private-slots"), (shared_slots is not None, "--shared-slots"),
            (disable, "--disable"), (initrd, "--initrd"), (memory is not None, "--memory"), (on_reset, "--on-reset"),
            (firmware != "dt", "--firmware"), (uefi, "--uefi"),
            (watchdog, "--watchdog"), (async_pf != "both", "--async-pf"), (options.policy != "kvm", "--policy"),
            (options.seed is not None, "--seed"), (options.cpu is not None, "--cpu"),
            (options.vcpus is not None, "--vcpus"), (options.conduit != "hvc", "--conduit"),
        ):  # fmt: skip
            if given:
                raise UsageError(f"a guest that comes in brings its own {what}", f"leave {what} out")
        return receive(
            incoming,
            name,
            PlaceOptions(machine=options.machine, qemu=options.qemu, poll=options.poll),
            timeout,
            console,
            arguments=arguments,
            gdb=gdb,
            tls=tls_creds,
            insecure=insecure,
            prefetch=prefetch,
        )
    if tls_creds is not None or insecure or prefetch != PREFETCH:
        raise UsageError("--tls-creds, --insecure and --prefetch are for a guest that comes in", "add --incoming URI")
    from_disk = firmware == "uefi" and guest is None and kernel is None
    image = None if from_disk else _image(guest, kernel)
    policy = policy_named(options.policy)
    if memory is None:
        system = (kernel is not None and options.kind == "qemu") or from_disk
        memory = _KERNEL_MEMORY if system else _GUEST_MEMORY
    defined, sources = _events(events, event or [], error_source or [], firmware)
    config = MachineConfig(
        name=name,
        vcpus=options.vcpu_count,
        memory=memory,
        policy=replace(
            policy,
            private_slots=policy.private_slots if private_slots is None else private_slots,
            shared_slots=policy.shared_slots if shared_slots is None else shared_slots,
        ),
        events=defined,
        error_sources=sources,
        conduit=Conduit(options.conduit),
        bootargs=append,
        seed=options.seed,
        watchdog=watchdog,
        restart=on_reset == "restart" if on_reset else options.kind != "qemu",
        engine=options.engine(initrd=initrd, **_firmware(firmware, uefi), arguments=arguments, gdb=gdb),
        async_pf=AsyncPfSettings.of(async_pf),
    )
    if dry_run:
        return _show_command(config, kernel=not from_disk)
    with (
        signals_end_us(),
        VmDirectory.acquire(name) as directory,
        open_machine(options.kind, replace(config, directory=directory.path)) as machine,
        Terminal(console) as terminal,
    ):
        disable_services(machine, disable or ())
        if image is not None:
            machine.load(image)

        def ready() -> None:
            terminal.say(f"VM {name!r}: control directory {directory.path}")
            first = config.events[0] if config.events else EVENT_0
            fifo = "" if first.shared else f" or `echo {first.number:#x} > {directory.fifo(0)}`"
            if config.error_sources and first.number == config.error_sources[0].event:
                terminal.say(f"report errors with `sdeivirt inject-error {name} memory --severity corrected`")
            else:
                terminal.say(f"inject with `sdeivirt inject {name} {first.number:#x}`{fifo}")
            for line in machine.hints():
                terminal.say(line)
            if console is not None:
                terminal.say(f"the guest's console is {console}; Ctrl-C ends the VM")
            elif terminal.interactive:
                terminal.say("Ctrl-] ends the VM")
            if kernel is not None and options.kind == "unicorn":
                terminal.say("an Image on machine unicorn: for a Linux kernel add --machine qemu")

        return finish(name, run_vm(machine, directory, terminal, timeout, ready), terminal, timeout)


def _events(
    file: Path | None, events: list[str], sources: list[str], firmware: str
) -> tuple[tuple[EventDefinition, ...], tuple[ErrorSource, ...]]:
    """The events and the sources of errors of a machine. Raises EventFileError, UsageError."""
    from_file, sources_from_file = load_definitions(file) if file is not None else ([], [])
    defined = (*from_file, *map(parse_event, events))
    given = [*sources_from_file, *map(parse_error_source, sources)]
    if firmware == "dt" and given:
        raise UsageError("a device tree tells the guest of no sources of errors", "add --firmware acpi")
    if firmware == "dt" or given:
        return settle(defined, given)
    return standard(defined)


def _firmware(firmware: str, uefi: Path | None) -> dict[str, Any]:
    """The options of the engine that say how the guest boots: none for a device tree."""
    if uefi is not None and firmware != "uefi":
        raise UsageError("--uefi is for a guest that boots by UEFI", "add --firmware uefi")
    return {} if firmware == "dt" else {"firmware": firmware, "uefi": uefi}


def _show_command(config: MachineConfig, *, kernel: bool) -> int:
    """`--dry-run`; the descriptors in it are those that this process would hand down."""
    if config.engine is None:
        raise UsageError("machine unicorn starts no other program to show", "add --machine qemu")
    from ..machine.qemu import show_command

    print(show_command(config, kernel=kernel))
    return 0


def _image(guest: str | None, kernel: Path | None) -> Path:
    if (guest is None) == (kernel is None):
        raise UsageError(
            "name either a guest or a kernel", f"--guest ELF or one of {', '.join(GUESTS)}; --kernel IMAGE"
        )
    if kernel is not None:
        return kernel
    assert guest is not None
    if guest in GUESTS:
        return guest_path(guest)
    if not os.path.isfile(guest):  # unlike Path.is_file(), it takes any name, and directories that are closed to us
        raise UsageError(f"there is no guest {guest!r}", f"give the path of an ELF file, or one of {', '.join(GUESTS)}")
    return Path(guest)
