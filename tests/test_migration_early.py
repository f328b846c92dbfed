# SPDX-License-Identifier: Apache-2.0
"""A guest comes to a place that does not stand yet: its RAM first, then what there is of its state, then the guest."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sdeivirt.errors import MigrationError, StreamError
from sdeivirt.guests import guest_path
from sdeivirt.machine import Machine, MachineConfig, open_machine
from sdeivirt.migration.channel import Listener, connect, parse_uri
from sdeivirt.migration.description import CONFIGURATION, Configuration
from sdeivirt.migration.destination import Incoming
from sdeivirt.migration.messages import Failure, Hello, Kind, Ready
from sdeivirt.migration.sections import Section, pack
from sdeivirt.migration.source import Outgoing, SourceOptions
from sdeivirt.migration.status import Progress
from sdeivirt.migration.wire import RefusedError, Wire

from .channel_support import background
from .control_support import LIMIT, VmProcess, wait_until
from .machine_support import NEEDS_QEMU, Console
from .source_support import moved

ON_QEMU = [NEEDS_QEMU, pytest.mark.qemu, pytest.mark.machine]
BEATS = "mib=1 rate=100"


def running(kind: str, **config: int) -> Machine:
    """A guest that writes memory, up and at its work."""
    machine = open_machine(kind, MachineConfig(vcpus=1, memory=config.get("memory", 64 << 20), bootargs=BEATS))
    console = Console(machine)
    machine.load(guest_path("writer"))
    machine.start()
    console.shows(" on\n")
    return machine


@pytest.mark.machine
def test_why_a_place_does_not_stand_is_heard_in_the_midst_of_a_pass(tmp_path: Path) -> None:
    """It says so and closes the connection while the source still sends."""

    def fail(wire: Wire) -> None:
        wire.say(Kind.READY, Ready(stands=False))
        assert wire.next().kind == b"PAGE"
        wire.say(Kind.FAILURE, Failure("there is no memory left"))

    with running("unicorn", memory=256 << 20) as machine:
        ram = machine.memory()
        noise = os.urandom(1 << 20)
        for at in range(32 << 20, len(ram), len(noise)):
            ram[at : at + len(noise)] = noise
        status = moved(machine, fail, tmp_path)
        assert status.status == "failed"
        assert "there is no memory left" in status.error
        assert machine.state == "running"


@pytest.mark.machine
def test_a_place_that_stands_takes_nothing_early(tmp_path: Path) -> None:
    """ERLY has its place only where the destination has asked for it."""
    with Listener(parse_uri(f"unix:{tmp_path}/there")) as listener:
        incoming = Incoming(listener)
        configuration = background(incoming.configuration)
        wire = Wire(connect(listener.uri, None, timeout=LIMIT), "the destination")
        wire.say(Kind.HELLO, Hello(bytes(16), "test"))
        described = pack(CONFIGURATION, Configuration.of("unicorn", MachineConfig()))
        wire.send(Kind.CONFIGURATION, described.data, version=described.version)
        found = configuration.result(LIMIT)
        with open_machine(found.machine, found.config("there", None, None)) as there:
            incoming.start(there, Progress())
            wire.expect(Kind.HELLO, Hello)
            assert wire.expect(Kind.READY, Ready).stands
            wire.send(Kind.EARLY)
            with pytest.raises(RefusedError, match=r"\(ERLY\) .* has no place there"):
                wire.next()
            wire.channel.close()
            with pytest.raises(MigrationError, match="the guest did not come"):
                there.wait()
            incoming.close()


@pytest.mark.parametrize("step", ["prepared", "stopped", "saved"])
@pytest.mark.parametrize("kind", [pytest.param("qemu", marks=ON_QEMU)])
def test_a_guest_that_stays_after_all_goes_on(kind: str, step: str) -> None:
    """QEMU has been asked for its state, has stopped the guest, has given all; and the next time it gives it again."""
    with running(kind) as machine:
        for _ in range(2):
            assert [section.name for section in machine.prepare_save(apart=True)][-1] == "qemu-devices"
            if step != "prepared":
                machine.pause_to_save()
                assert machine.state == "paused"
            if step == "saved":
                names = [section.name for section in machine._save_engine()]
                assert names[-1] == "qemu-devices"
            machine.keep_state()
            machine.resume()
            wait_until(lambda: machine.state == "running", "it does not go on")
            goes_on(machine)


def goes_on(machine: Machine) -> None:
    """The guest writes more."""
    machine.start_dirty_log()
    machine.collect_dirty()
    wait_until(lambda: machine.collect_dirty().count(1), "it writes nothing")
    machine.stop_dirty_log()


@pytest.mark.parametrize("kind", [pytest.param("qemu", marks=ON_QEMU)])
def test_early_state_of_another_machine_is_refused(kind: str) -> None:
    """... while the guest still runs where it was."""
    with running(kind) as here, open_machine(kind, MachineConfig(vcpus=1, memory=128 << 20)) as there:
        there.start_incoming()
        us = next(section for section in here.prepare_save(apart=True) if section.name == "qemu")
        with pytest.raises(StreamError, match="64 MiB of RAM, and this machine 128"):
            there.load_early(us)
        with pytest.raises(StreamError, match="has come early"):
            there.load_early(Section("qemu-gic", 0, 1, b""))
        here.keep_state()
        goes_on(here)


@pytest.mark.process
@pytest.mark.parametrize("kind", [pytest.param("qemu", marks=ON_QEMU)])
def test_a_qemu_that_does_not_start_there(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both sides say why, and the guest stays."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    uri = f"unix:{tmp_path}/there.sock"
    with running(kind) as machine:
        there = VmProcess(tmp_path, "--incoming", uri, "--", "-device", "no-such", name="there")
        with there:
            there.wait_err("waiting for a guest")
            progress = Progress()
            Outgoing(machine, parse_uri(uri), SourceOptions(stall=LIMIT), progress).run()
            assert progress.now.status == "failed"
            assert "QEMU did not start: " in progress.now.error
            assert "no-such" in progress.now.error
            assert there.wait() == 3
            assert "error: QEMU did not start: " in there.err
        assert machine.state == "running"
        goes_on(machine)
