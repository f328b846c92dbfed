# SPDX-License-Identifier: Apache-2.0
"""The measurements run and say what they are; how fast anything is, is not for a test to judge."""

from __future__ import annotations

import array

import pytest

from sdeivirt.benchmarks import Row, core, qemu, render, unicorn
from sdeivirt.benchmarks.shell import Shell, ShellError

from .machine_support import NEEDS_QEMU


@pytest.mark.machine
def test_every_loop_of_the_bench_guest_is_measured() -> None:
    for loop in ("version", "status", "enable", "signal"):
        assert unicorn.guest_loop(loop, 50) > 0
    assert unicorn.guest_loop("signal", 50, vcpus=512, events=1000) > 0
    assert unicorn.bare_exit()(50) > 0


@pytest.mark.machine
def test_injection_latency_is_measured_for_every_injection() -> None:
    latencies = unicorn.injection_latencies(20)
    assert len(latencies) == 20
    assert all(latency > 0 for latency in latencies)


@pytest.mark.machine
@pytest.mark.qemu
@NEEDS_QEMU
def test_calls_on_machine_qemu_are_measured_however_they_are_served() -> None:
    for loop, options in (
        ("context", {}),
        ("context", {"contexts": False}),
        ("version", {"poll": True}),
        ("signal", {}),
    ):
        assert qemu.call_seconds(loop, 50, **options) > 0, loop


def test_a_shell_in_a_guest_tells_output_from_exit_codes() -> None:
    typed = bytearray()

    def take(data: bytes) -> int:
        typed.extend(data[:3])
        return len(data[:3])

    shell = Shell(take)
    shell.feed(b"noise\nSERVE-READY\n")
    shell.wait_ready(1)
    shell.begin("echo hello")
    assert typed == b"echo hello\n"
    assert shell.busy
    shell.feed(b"hello\n<<<EX")
    shell.feed(b"IT 0>>>\n")
    assert shell.end(1) == (0, "hello\n")
    shell.begin("false")
    shell.feed(b"<<<EXIT 1>>>\n")
    with pytest.raises(ShellError, match="ended with 1"):
        shell.run("false", 1)
    with pytest.raises(ShellError, match="no never"):
        shell.wait_for("never", 0.01)


def test_the_client_s_life_is_served_without_an_error() -> None:
    """What the core benchmark counts are calls that succeed, not cheap refusals."""
    from sdeivirt.firmware import Firmware

    firmware = Firmware(2, core.NoPower())
    firmware.freeze()
    for pe in firmware.pes:
        firmware.sdei.pe_on(pe)
    view = core.MemoryView()
    for _ in range(2):
        for call in core.CYCLE:
            view.x[: len(call)] = memoryview(array.array("Q", call))
            firmware.hypercall(firmware.pes[0], view)
            assert view.x[0] >> 63 == 0, call


def test_rows_say_whether_a_target_is_met() -> None:
    assert Row("a", 1.0, "x", 1, 1, target=2).met
    assert Row("a", 3.0, "x", 1, 1, target=2).met is False
    assert Row("a", 3.0, "x", 1, 1, target=2, at_least=True).met
    assert Row("a", 3.0, "x", 1, 1).met is None
    assert "MISSED" in render([Row("a", 3.0, "x", 1, 1, target=2)])
    assert render([Row("a", 3.0, "x", 1, 4, remark="why not")]).endswith("why not")


def test_ranges_can_be_read_below_zero_and_of_one_round() -> None:
    assert "-5.68 to 1.00" in render([Row("a", -2.0, "%", -5.68, 1.0)])
    assert render([Row("a", -5.68, "%", -5.68, -5.68)]).splitlines()[1].split() == ["a", "-5.68", "%"]
