# SPDX-License-Identifier: Apache-2.0
"""`make linux-demo`: an event for a CPU that has masked everything, in an unmodified Debian kernel.

    python guests/linux/demo.py [--kernel bookworm|newest] [--vcpus N]

Fetches what is missing, boots, has the guest register event 0 and a user-defined one and spin on CPU 1 with interrupts
off, injects both from outside as anybody could, shows the guest's reports, and powers off.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:  # as a script
    sys.path.insert(0, str(ROOT))

from guests.linux.fetch import KERNELS, FetchError, fetch  # noqa: E402

NAME = "linux-demo"
EVENT = 0x4000_0010
SPINNING = b"SPINNING with interrupts off for"
SPUN = b"spun with interrupts off"
SECONDS = 120


def short(path: Path) -> str:
    """The path as one would type it here."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _say(words: list[str]) -> None:
    print(f"[host]$ {' '.join(words)}", flush=True)


def _pass_on(line: bytes) -> None:
    sys.stdout.buffer.write(line)
    sys.stdout.flush()


class Demo:
    """The VM in a process of its own; what it prints goes on to standard output, or to `show`, a line at a time."""

    def __init__(self, command: list[str], show: Callable[[bytes], None] = _pass_on) -> None:
        self._show = show
        self._process = subprocess.Popen(
            [sys.executable, "-m", *command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
        )
        self._text = b""
        self._over = False
        self._changed = threading.Condition()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._show(line)
            with self._changed:
                self._text += line
                self._changed.notify_all()
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def shows(self, text: bytes) -> bool:
        """Whether the guest prints a text in time."""
        with self._changed:
            self._changed.wait_for(lambda: text in self._text or self._over, SECONDS)
            return text in self._text

    def end(self) -> int:
        try:
            return self._process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            self._process.terminate()
            return 1


def _inject(event: int) -> None:
    words = ["sdeivirt", "inject", NAME, f"{event:#x}", "--vcpu", "1"]
    _say(words)
    subprocess.run([sys.executable, "-m", *words], check=False)


def interrupted(demo: Callable[[], int]) -> int:
    """Run a demo; Ctrl-C, which its VM gets as well, ends it without a traceback."""
    try:
        return demo()
    except KeyboardInterrupt:
        return 130


def main() -> int:
    parser = argparse.ArgumentParser(description="Inject an event into a CPU that has masked everything.")
    parser.add_argument("--kernel", choices=KERNELS, default="bookworm")
    parser.add_argument("--vcpus", type=int, default=2)
    options = parser.parse_args()
    try:
        assets = fetch(options.kernel)
    except FetchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    words = [
        *("sdeivirt", "run", "--machine", "qemu", "--name", NAME, "--vcpus", str(options.vcpus)),
        *("--kernel", short(assets.image), "--initrd", short(assets.initrd), "--event", f"{EVENT:#x}"),
    ]
    append = f"console=ttyAMA0 quiet loglevel=6 run=demo client.events=0,{EVENT:#x}"
    _say([*words, "--append", f"'{append}'"])
    demo = Demo([*words, "--append", append])
    if demo.shows(SPINNING):
        _inject(0)
        if demo.shows(SPUN):
            _inject(EVENT)
    code = demo.end()
    print(f"[host]$ # the VM has ended with exit code {code}")
    return code


if __name__ == "__main__":
    sys.exit(interrupted(main))
