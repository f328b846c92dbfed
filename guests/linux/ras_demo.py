# SPDX-License-Identifier: Apache-2.0
"""`make ras-demo`: a hardware error in the page of a process, in an unmodified Debian kernel that boots by ACPI.

    python guests/linux/ras_demo.py [--kernel bookworm|newest] [--vcpus N] [--early]

Fetches what is missing, boots, has the guest start a process, reports an error in its page from outside as anybody
could, shows side by side what the process and the kernel say of it, and powers off.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:  # as a script
    sys.path.insert(0, str(ROOT))

from guests.linux.demo import Demo, interrupted, short  # noqa: E402
from guests.linux.fetch import KERNELS, FetchError, fetch  # noqa: E402

NAME = "ras-demo"
WAITS = b": page 0x"
OVER = b"RAS-DONE"
KERNEL = "kernel: "
WIDTH = 120
LEFT, RIGHT = 36, 81  # with what stands between them


class Story:
    """What the guest prints: passed on until its process waits; then kept, by who has said it."""

    def __init__(self) -> None:
        self._waits = self._over = False
        self._process: list[str] = []
        self._kernel: list[str] = []

    def line(self, data: bytes) -> None:
        """One line."""
        text = data.decode("utf-8", "replace").rstrip()
        if OVER in data or self._over:
            self._over = True
        elif not self._waits:
            print(text.removeprefix(KERNEL), flush=True)
            self._waits = WAITS in data
        elif text.startswith(KERNEL):
            self._kernel.append(text.removeprefix(KERNEL))
        else:
            self._process.append(text)

    @property
    def killed(self) -> bool:
        """Whether the process has been told."""
        return any("SIGBUS" in line for line in self._process)

    def rows(self) -> Iterator[str]:
        """Both columns."""
        columns = _wrapped(self._process, LEFT), _wrapped(self._kernel, RIGHT)
        yield f"{'the process':{LEFT}} | the kernel"
        yield f"{'-' * LEFT}-+-{'-' * RIGHT}"
        for left, right in zip_longest(*columns, fillvalue=""):
            yield f"{left:{LEFT}} | {right}".rstrip()


def _wrapped(lines: list[str], width: int) -> list[str]:
    return [row for line in lines for row in textwrap.wrap(line, width, subsequent_indent="  ")]


def _say(words: list[str]) -> None:
    """A command, on as many lines as it takes."""
    prompt = "[host]$ "
    rows = [prompt]
    for word in words:
        if len(rows[-1]) + len(word) > WIDTH - 2:  # what is quoted stays in one piece
            rows[-1] += "\\"
            rows.append(" " * len(prompt))
        rows[-1] += f"{word} "
    print("\n".join(rows).rstrip(), flush=True)


def _inject() -> None:
    words = ["sdeivirt", "inject-error", NAME, "memory", "--severity", "recoverable", "--process", "victim"]
    _say(words)
    done = subprocess.run([sys.executable, "-m", *words], stdout=subprocess.PIPE, text=True, check=False)
    print(textwrap.fill(done.stdout.strip(), WIDTH, subsequent_indent="  "), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="Report a hardware error in the page of a process.")
    parser.add_argument("--kernel", choices=KERNELS, default="bookworm")
    parser.add_argument("--vcpus", type=int, default=2)
    parser.add_argument("--early", action="store_true", help="the process wants to know before it uses the page")
    options = parser.parse_args()
    try:
        assets = fetch(options.kernel)
    except FetchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    words = [
        *("sdeivirt", "run", "--machine", "qemu", "--firmware", "acpi", "--name", NAME),
        *("--vcpus", str(options.vcpus), "--kernel", short(assets.image), "--initrd", short(assets.initrd)),
    ]
    append = f"console=ttyAMA0 quiet run=ras victim={'early' if options.early else 'late'}"
    _say([*words, "--append", f"'{append}'"])
    story = Story()
    demo = Demo([*words, "--append", append], story.line)
    if not demo.shows(WAITS):  # `run` has said why, or the guest has
        return demo.end() or 1
    _inject()
    demo.shows(OVER)
    code = demo.end()
    print()
    for row in story.rows():
        print(row)
    print(f"[host]$ # the VM has ended with exit code {code}")
    return code if story.killed else code or 1


if __name__ == "__main__":
    sys.exit(interrupted(main))
