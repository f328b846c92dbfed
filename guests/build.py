# SPDX-License-Identifier: Apache-2.0
"""Builds the AArch64 guests, and the EL2 monitor, with the C compiler of the ziglang package.

    python guests/build.py [--out DIR] [--force]

Every *.c file next to this one is a guest; NAME_asm.S and all of lib/ are linked into it. Any other *.S file is
a guest by itself.
conform/ is the conformance suite, hostile/ a guest that attacks, mover/ one that is moved, tasks/ one with tasks;
monitor/ the program under which guests run on QEMU, image/ the head of an arm64 Image around a guest.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

DEFAULT_OUT = Path("src") / "sdeivirt" / "guests" / "bin"

FLAGS = [
    # The architecture's base level: no LSE atomics, and no floating point registers behind our back.
    *("-target", "aarch64-freestanding-none", "-mcpu=generic-neon-fp_armv8", "-mgeneral-regs-only"),
    # The MMU stays off, so that unaligned accesses fault.
    "-mstrict-align",
    *("-std=c11", "-O2", "-ffreestanding", "-fno-builtin", "-fno-stack-protector", "-fno-sanitize=all"),
    *("-fno-pic", "-fno-unwind-tables", "-fno-asynchronous-unwind-tables", "-fno-strict-aliasing"),
    *("-Wall", "-Wextra", "-Werror", "-Wno-unused-command-line-argument"),
]
LINK_FLAGS = ["-nostdlib", "-static", "-Wl,--build-id=none", "-Wl,-z,max-page-size=4096", "-g0"]


# Guests with a folder of their own.
_OF_MANY_FILES = ("conform", "hostile", "mover", "tasks")
_INPUTS = {".c", ".h", ".S", ".ld", ".py"}


class BuildError(Exception):
    """The guests could not be built; the text says what to do about it."""


@dataclass(frozen=True)
class _Program:
    """What goes into one ELF file."""

    name: str
    sources: list[Path]
    script: Path


def _programs(guests: Path) -> list[_Program]:
    def of(folder: str) -> list[Path]:
        return sorted([*(guests / folder).glob("*.S"), *(guests / folder).glob("*.c")])

    programs = [
        _Program("monitor", of("monitor"), guests / "monitor" / "monitor.ld"),
        _Program("image", of("image"), guests / "image" / "image.ld"),
    ]
    for main in sorted(guests.glob("*.c")):
        extra = guests / f"{main.stem}_asm.S"
        sources = [*of("lib"), *([extra] if extra.exists() else []), main]
        programs.append(_Program(main.stem, sources, guests / "lib" / "link.ld"))
    programs += [_Program(name, [*of("lib"), *of(name)], guests / "lib" / "link.ld") for name in _OF_MANY_FILES]
    plain = [path for path in sorted(guests.glob("*.S")) if not path.stem.endswith("_asm")]
    programs += [_Program(path.stem, [path], guests / "lib" / "link.ld") for path in plain]
    return programs


def _up_to_date(target: Path, inputs: list[Path]) -> bool:
    return target.exists() and target.stat().st_mtime >= max(path.stat().st_mtime for path in inputs)


def _compile(guests: Path, program: _Program, target: Path, cache: str) -> None:
    env = dict(os.environ)
    # Zig insists on a cache; keep it out of the source tree and away from a HOME that may be read-only.
    env.setdefault("ZIG_GLOBAL_CACHE_DIR", cache)
    env.setdefault("ZIG_LOCAL_CACHE_DIR", cache)
    # Paths relative to guests/ keep the output the same wherever the tree stands.
    script, *sources = (path.relative_to(guests).as_posix() for path in (program.script, *program.sources))
    partial = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    command = [sys.executable, "-m", "ziglang", "cc", *FLAGS, *LINK_FLAGS]
    command += ["-I.", "-Ilib", f"-Wl,-T,{script}", *sources, "-o", str(partial.resolve())]
    try:
        done = subprocess.run(command, cwd=guests, env=env, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BuildError(f"building {program.name!r} failed:\n{done.stderr.strip()}")
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def build(root: Path, out: Path, *, force: bool = False) -> list[Path]:
    """Builds every program of the source tree `root` into `out`; returns the ELF files."""
    guests = root / "guests"
    programs = _programs(guests)
    folders = (
        guests,
        guests / "lib",
        guests / "monitor",
        guests / "image",
        *(guests / name for name in _OF_MANY_FILES),
    )
    everything = [path for folder in folders for path in folder.iterdir() if path.suffix in _INPUTS]
    targets = {program.name: out / f"{program.name}.elf" for program in programs}
    stale = [program for program in programs if force or not _up_to_date(targets[program.name], everything)]
    if stale and importlib.util.find_spec("ziglang") is None:
        raise BuildError("building the guests needs the Python package ziglang: pip install ziglang")
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="guests-") as cache, ThreadPoolExecutor() as pool:
        for _ in pool.map(lambda program: _compile(guests, program, targets[program.name], cache), stale):
            pass
    return list(targets.values())


def main() -> int:
    root = Path(__file__).resolve().parent.parent
    parser = argparse.ArgumentParser(description="Build the AArch64 test guests.")
    parser.add_argument("--out", type=Path, default=root / DEFAULT_OUT, help="directory for the ELF files")
    parser.add_argument("--force", action="store_true", help="build even what is newer than its sources")
    options = parser.parse_args()
    try:
        for path in build(root, options.out, force=options.force):
            print(path)
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
