# SPDX-License-Identifier: Apache-2.0
"""Compiles what runs in the Linux guest: modules against a Debian kernel's headers, and the programs."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
from collections.abc import Sequence
from pathlib import Path

from guests.linux.debian import FetchError, progress, unpack

__all__ = [
    "PROGRAMS",
    "build_module",
    "build_program",
    "foreign_tools",
    "need_compiler",
    "prepare_headers",
    "wrap_tools",
]

CROSS = "aarch64-linux-gnu-"
PROGRAMS = ("regcheck", "forkbench", "cpubench", "kexec", "pagework", "victim")

_PROGRAM_FLAGS = [
    *("-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-ffreestanding", "-fno-builtin", "-fno-stack-protector"),
    # Floating point registers belong to regcheck's assembly; the compiler keeps out of them.
    *("-mgeneral-regs-only", "-mno-outline-atomics", "-fno-pic", "-no-pie", "-nostdlib", "-static"),
    *("-Wl,--build-id=none", "-s"),
]

# The kernel's own compiler may be newer than this one. What the option asks for, older compilers spell otherwise.
_COMPILER = f"""#!/bin/sh
for arg; do
    shift
    case $arg in
        -fmin-function-alignment=*) arg=-falign-functions=${{arg#*=}} ;;
    esac
    set -- "$@" "$arg"
done
exec {CROSS}gcc "$@"
"""


def need_compiler() -> None:
    """Sees to it that make and an AArch64 compiler are there; installs them when that is allowed."""
    wanted = {"make": "make", f"{CROSS}gcc": "gcc-aarch64-linux-gnu"}
    missing = [package for command, package in wanted.items() if shutil.which(command) is None]
    if not missing:
        return
    install = ["apt-get", "install", "--yes", "--no-install-recommends", *missing]
    if os.geteuid() == 0:
        progress(f"installing {' '.join(missing)}")
        env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(install, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    if any(shutil.which(command) is None for command in wanted):
        raise FetchError(f"{' and '.join(missing)} needed to build the module; hint: sudo {' '.join(install)}")


# ------------------------------------------------------------------------------------------------------------- headers


def prepare_headers(packages: Sequence[Path], tree: Path, release: str) -> Path:
    """Unpacks the header and kbuild packages below `tree`; returns the directory to build modules against."""
    for package in packages:
        unpack(package, tree)
    headers = tree / "usr/src" / f"linux-headers-{release}"
    makefile = headers / "Makefile"
    # The package expects to be installed: its Makefile names the common headers by absolute paths.
    makefile.write_text(re.sub(r"(?<![\w.])/usr/src/", f"{tree}/usr/src/", makefile.read_text("utf-8")), "utf-8")
    return headers


def foreign_tools(tree: Path) -> list[Path]:
    """kbuild's programs that want a newer C library than this machine's."""
    programs = [path for path in tree.glob("usr/lib/linux-kbuild-*/scripts/**/*") if _is_elf(path)]
    return [program for program in programs if not _runs_here(program)]


def _is_elf(path: Path) -> bool:
    if not stat.S_ISREG(path.lstat().st_mode):
        return False
    with path.open("rb") as stream:
        return stream.read(4) == b"\x7fELF"


def _runs_here(program: Path) -> bool:
    """Asks the loader, which says what it misses, with exit code 0, and does not start the program."""
    env = {**os.environ, "LD_TRACE_LOADED_OBJECTS": "1", "LC_ALL": "C"}
    done = subprocess.run([program], env=env, capture_output=True, text=True, check=False)
    return "version `GLIBC_" not in done.stderr


def wrap_tools(programs: Sequence[Path], libc: Path, tree: Path) -> None:
    """Makes the programs use the C library of the package `libc`, loader and all."""
    unpack(libc, tree)
    loaders = [path for path in tree.glob("**/ld-linux*.so.*") if path.is_file()]
    if not loaders:
        raise FetchError(f"{libc.name} has no loader; hint: delete it and try again")
    loader = loaders[0].resolve()
    for program in programs:
        real = program.with_name(f"{program.name}.real")
        program.rename(real)
        program.write_text(f'#!/bin/sh\nexec "{loader}" --library-path "{loader.parent}" "{real}" "$@"\n', "utf-8")
        program.chmod(0o755)


# ---------------------------------------------------------------------------------------------------------- compiling


def build_module(source: Path, name: str, headers: Path, work: Path) -> bytes:
    """NAME.ko out of NAME.c and Kbuild in `source`, for the kernel whose headers these are; `work` is scratch."""
    work.mkdir(parents=True)
    for file in ("Kbuild", f"{name}.c"):
        shutil.copy(source / file, work)
    compiler = work / "gcc"
    compiler.write_text(_COMPILER, "utf-8")
    compiler.chmod(0o755)
    # Type information for BPF would take pahole and the kernel itself, and the module is loaded without.
    command = ["make", "-C", str(headers), f"M={work}", "ARCH=arm64", f"CROSS_COMPILE={CROSS}", f"CC={compiler}"]
    module = work / f"{name}.ko"
    _compile([*command, "CONFIG_DEBUG_INFO_BTF_MODULES=", "modules"], module.name)
    _compile([f"{CROSS}strip", "--strip-debug", str(module)], module.name)
    return module.read_bytes()


def build_program(source: Path, name: str, work: Path) -> bytes:
    """One of PROGRAMS, as a static executable."""
    extra = source / "user" / f"{name}_asm.S"
    sources = [source / "user" / "start.S", source / "user" / f"{name}.c", *([extra] if extra.exists() else [])]
    target = work / name
    _compile([f"{CROSS}gcc", *_PROGRAM_FLAGS, *map(str, sources), "-o", str(target)], name)
    return target.read_bytes()


def _compile(command: Sequence[str], what: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "LC_ALL": "C"})
    if done.returncode:
        raise FetchError(f"building {what} failed:\n{done.stderr.strip()}")
