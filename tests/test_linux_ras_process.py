# SPDX-License-Identifier: Apache-2.0
"""Hardware errors in Linux as a user meets them: by the command, from another process, and in the demo."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from guests.linux.fetch import fetch

from sdeivirt.benchmarks.shell import Shell

from .control_support import cli, environment
from .linux_ras_support import NEEDS_UEFI
from .linux_support import linux_marks
from .test_linux_move import FedProcess

pytestmark = [*linux_marks, pytest.mark.process]

ROOT = Path(__file__).parents[1]
SECONDS = 120


class RasProcess(FedProcess):
    """`sdeivirt run` of a kernel that boots by ACPI, and its shell."""

    def __init__(self, runtime: Path, kernel: str, firmware: str) -> None:
        assets = fetch(kernel)
        self.shell = Shell(self._type_in, lambda: self.process.poll() is not None)
        super().__init__(
            self.shell,
            runtime,
            *("--machine", "qemu", "--firmware", firmware, "--memory", "512M", "--vcpus", "1"),
            *("--kernel", str(assets.image), "--initrd", str(assets.initrd)),
            *("--append", "console=ttyAMA0 quiet run=serve serve.loglevel=4"),
            name="linux",
        )

    def _type_in(self, data: bytes) -> int:
        stdin = self.process.stdin
        assert stdin is not None
        stdin.write(data)
        stdin.flush()
        return len(data)


@pytest.mark.parametrize(
    ("kernel", "firmware", "source"),
    [
        pytest.param("bookworm", "acpi", 1, marks=pytest.mark.linux),
        pytest.param("newest", "acpi", 0, marks=pytest.mark.linux_full),
        pytest.param("bookworm", "uefi", 0, marks=[pytest.mark.linux_full, NEEDS_UEFI]),
        pytest.param("newest", "uefi", 1, marks=[pytest.mark.linux_full, NEEDS_UEFI]),
    ],
)
def test_a_process_is_killed_and_then_the_kernel_dies(tmp_path: Path, kernel: str, firmware: str, source: int) -> None:
    vm = RasProcess(tmp_path, kernel, firmware)
    with vm:
        vm.shell.wait_ready(SECONDS)
        vm.shell.run("(victim name=target; echo ended $?) & true")
        vm.shell.wait_for(", late\n", SECONDS)
        done = cli(tmp_path, "inject-error", "linux", "memory", "--severity", "recoverable", "--process", "targ*")
        assert re.search(r"the page of process \d+ \(target\)", done.stdout), done.stdout
        vm.shell.wait_for("ended 135\n", SECONDS)
        page = re.search(r"target\[(\d+)\]: page (0x[0-9a-f]+), late\n", vm.out)
        assert page
        assert f"target[{page[1]}]: SIGBUS, code 4, at {page[2]}\n" in vm.out
        cli(tmp_path, "inject-error", "linux", "memory", "--severity", "fatal", "--source", str(source))
        assert vm.wait() == 1
        assert "Kernel panic - not syncing: GHES: Fatal hardware error" in vm.out
        assert f"Hardware error from APEI Generic Hardware Error Source: {source}" in vm.out


@pytest.mark.linux
def test_the_demo(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "guests" / "linux" / "ras_demo.py")],
        cwd=ROOT,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, (done.stdout, done.stderr)
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 120
    (where,) = re.findall(r"the error at (0x[0-9a-f]+), the page of process", done.stdout.replace("\n ", ""))
    (page,) = re.findall(r"page (0x[0-9a-f]+), late", done.stdout)
    columns = [line.split(" | ") for line in lines if " | " in line]
    process = " ".join(left.strip() for left, _ in columns if left.strip())
    kernel = " ".join(right.strip() for _, right in columns)
    assert f"SIGBUS, code 4, at {page} the exit code is 135" in process
    assert f"physical_address: {int(where, 16):#018x}" in kernel
    assert f"Memory failure: {int(where, 16) >> 12:#x}: recovery action for dirty LRU page: Recovered" in kernel
    assert kernel.endswith("HardwareCorrupted:     4 kB")
    assert lines[-1] == "[host]$ # the VM has ended with exit code 0"
