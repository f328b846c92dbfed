# SPDX-License-Identifier: Apache-2.0
"""Fetches what a Linux guest needs: a Debian kernel, modules of ours for it, and a file system in memory.

    python guests/linux/fetch.py --kernel bookworm|newest [--out DIR] [--update]

    Image             the kernel, unpacked
    sdei_client.ko    an SDEI client
    sdei_async_pf.ko  asynchronous page faults
    initrd.cpio.gz    busybox, both modules, the kernel's own for virtio, the programs in user/, /init
    release           what `uname -r` says in the guest

The packages are kept in build/linux/cache, so that only --update and the first time need a network.
"""

from __future__ import annotations

import argparse
import fcntl
import gzip
import hashlib
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:  # as a script
    sys.path.insert(0, str(ROOT))

from guests.linux import cpio, modules, toolchain  # noqa: E402
from guests.linux.debian import Apt, FetchError, Stanza, progress, read_member  # noqa: E402

__all__ = ["KERNELS", "FetchError", "LinuxAssets", "fetch", "plain_image"]

SOURCE = Path(__file__).resolve().parent
DEFAULT_OUT = ROOT / "build" / "linux"

# Every suite that may have a kernel; the ones a mirror does not carry are skipped.
SUITES = [
    *("bookworm", "bookworm-updates", "bookworm-security", "bookworm-backports"),
    *("trixie", "trixie-updates", "trixie-security", "trixie-backports"),
]
# Our modules, and where in SOURCE each is.
MODULES = {"sdei_client": ".", "sdei_async_pf": "async_pf"}

# How the kernel's version begins.
KERNELS = {"bookworm": "6.1.", "newest": ""}

_IMAGE_MAGIC = b"ARM\x64"  # at offset 56: Documentation/arch/arm64/booting.rst in Linux
_STAMP = "stamp.json"


@dataclass(frozen=True)
class LinuxAssets:
    """A kernel and what goes with it, as files; `module` is the client; `release` is what `uname -r` says."""

    image: Path
    initrd: Path
    module: Path
    release: str


@dataclass(frozen=True)
class Packages:
    """The packages of one kernel, by their files' names in the cache."""

    release: str
    image: list[str]
    headers: list[str]
    busybox: str
    libc: str | None = None
    modules: list[str] | None = None

    def files(self) -> list[str]:
        return [*self.image, *(self.modules or []), *self.headers, self.busybox, *([self.libc] if self.libc else [])]


def fetch(which: str, out: Path | None = None, *, cache: Path | None = None, update: bool = False) -> LinuxAssets:
    """Gets the kernel `which` ("bookworm", "newest") into `out`, by default build/linux/<which>.

    What is there already is used if it was built from the present sources. `update` asks the mirror for newer packages.
    Raises FetchError, with a hint, when there is no mirror, no compiler, or no such package.
    """
    if which not in KERNELS:
        raise FetchError(f"no kernel is called {which!r}; hint: {' or '.join(KERNELS)}")
    out = (out or DEFAULT_OUT / which).resolve()
    cache = (cache or DEFAULT_OUT / "cache").resolve()
    assets = None if update else _complete(out)
    if assets:
        return assets
    with _locked(cache):
        # Another process may have been faster.
        return (None if update else _complete(out)) or _build(which, out, cache, update)


@contextmanager
def _locked(cache: Path) -> Iterator[None]:
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


# --------------------------------------------------------------------------------------------- what is there already


def _sources() -> str:
    """A digest of all that goes into the files besides packages."""
    digest = hashlib.sha256()
    for path in sorted(SOURCE.rglob("*")):
        if path.suffix in {".c", ".h", ".S", ".py", ".sh"} or path.name == "Kbuild":
            digest.update(path.relative_to(SOURCE).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _stamp(out: Path) -> tuple[str, Packages] | None:
    """What the files were made of; the stamp is removed before they change and written after."""
    try:
        stamp = json.loads((out / _STAMP).read_text("utf-8"))
        return stamp["sources"], Packages(**stamp["packages"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _assets(out: Path, release: str) -> LinuxAssets:
    return LinuxAssets(out / "Image", out / "initrd.cpio.gz", out / "sdei_client.ko", release)


def _complete(out: Path) -> LinuxAssets | None:
    stamp = _stamp(out)
    if stamp is None or stamp[0] != _sources():
        return None
    assets = _assets(out, stamp[1].release)
    return assets if all(path.exists() for path in (assets.image, assets.initrd, assets.module)) else None


# ------------------------------------------------------------------------------------------------------------ packages


def _build(which: str, out: Path, cache: Path, update: bool) -> LinuxAssets:
    toolchain.need_compiler()
    debs = cache / "packages"
    apt = Apt(cache / "apt", SUITES)
    stamp = _stamp(out)
    known = stamp[1] if stamp else None
    if update or known is None or known.modules is None or not all((debs / name).exists() for name in known.files()):
        apt.update()
        known = _download(apt, which, debs)
    # Kbuild cannot take a path with a space in it: not below `out`, which may have one.
    with tempfile.TemporaryDirectory(prefix="sdeivirt-linux-") as scratch:
        known, files = _make(apt, known, debs, Path(scratch))
    _replace(out, files, {"sources": _sources(), "packages": asdict(known)})
    progress(f"Linux {known.release} is in {out}")
    return _assets(out, known.release)


def kernel_release(depends: Sequence[str]) -> str | None:
    """The release that the metapackage linux-image-arm64 stands for, by the names of what it depends on."""
    names = (re.fullmatch(r"linux-image-(\d.*-arm64)", name) for name in depends)
    return next((name[1] for name in names if name and not re.search(r"-(rt|cloud|16k|dbg)\b", name[1])), None)


def _find_kernel(apt: Apt, prefix: str) -> tuple[str, Stanza]:
    for meta in apt.show("linux-image-arm64"):
        release = kernel_release([name for name, _ in meta.depends()])
        if release and meta["Version"].startswith(prefix):
            return release, apt.find(f"linux-image-{release}", dict(meta.depends())[f"linux-image-{release}"])
    raise FetchError(
        f"no Debian suite that can be reached has a kernel {prefix or 'for arm64'}; hint: see the messages of apt above"
    )


def _download(apt: Apt, which: str, debs: Path) -> Packages:
    release, image = _find_kernel(apt, KERNELS[which])
    progress(f"{which}: Linux {release}, version {image['Version']}")
    # Newer packagings have the kernel itself, and its modules, in packages that the image package depends on.
    depends = dict(image.depends())
    kernel, own = (
        apt.find(name, depends[name]) if name in depends else image
        for name in (f"linux-binary-{release}", f"linux-modules-{release}")
    )

    headers = apt.find(f"linux-headers-{release}", image["Version"])
    needed = [headers]
    for name, version in headers.depends():
        if name.startswith("linux-headers-"):
            needed.append(apt.find(name, version))
        elif name.startswith("linux-kbuild-"):
            needed.append(_kbuild(apt, name, image["Version"]))
    busybox = apt.find("busybox-static")
    return Packages(
        release=release,
        image=[apt.download(kernel, debs).name],
        modules=[apt.download(own, debs).name],
        headers=[apt.download(stanza, debs).name for stanza in needed],
        busybox=apt.download(busybox, debs).name,
    )


def _kbuild(apt: Apt, name: str, version: str) -> Stanza:
    """The build tools are of this machine's architecture; the kernel's own version of them if there is one."""
    offered = apt.show(f"{name}:{apt.host}")
    same = [stanza for stanza in offered if stanza["Version"] == version]
    return (same or offered or [apt.find(f"{name}:{apt.host}")])[0]


# ------------------------------------------------------------------------------------------------------------ the files


def _make(apt: Apt, packages: Packages, debs: Path, scratch: Path) -> tuple[Packages, dict[str, bytes]]:
    image = _kernel_image([debs / name for name in packages.image], packages.release)
    progress(f"building {' and '.join(MODULES)}")
    tree = scratch / "headers"
    headers = toolchain.prepare_headers([debs / name for name in packages.headers], tree, packages.release)
    foreign = toolchain.foreign_tools(tree)
    if foreign:
        # The cache may have it from last time; else it has to be fetched.
        libc = packages.libc or apt.download(apt.find(f"libc6:{apt.host}"), debs).name
        packages = Packages(**{**asdict(packages), "libc": libc})
        toolchain.wrap_tools(foreign, debs / libc, scratch / "libc")
    ours = {
        f"{name}.ko": toolchain.build_module(SOURCE / folder, name, headers, scratch / name)
        for name, folder in MODULES.items()
    }
    programs = {name: toolchain.build_program(SOURCE, name, scratch) for name in toolchain.PROGRAMS}
    busybox = read_member(debs / packages.busybox, r"(usr/)?bin/busybox")
    if busybox is None:
        raise FetchError(f"{packages.busybox} has no busybox in it")
    theirs = modules.find_modules([debs / name for name in packages.modules or []], packages.release)
    files = [*_file_system(busybox, ours, programs), *modules.entries(theirs, packages.release)]
    initrd = gzip.compress(cpio.archive(files), 6, mtime=0)
    return packages, {
        "Image": image,
        **ours,
        "initrd.cpio.gz": initrd,
        "release": f"{packages.release}\n".encode(),
    }


def _kernel_image(packages: Sequence[Path], release: str) -> bytes:
    pattern = rf"boot/vmlinuz-{re.escape(release)}|(usr/)?lib/modules/{re.escape(release)}/vmlinuz"
    for package in packages:
        data = read_member(package, pattern)
        if data is not None:
            return plain_image(data)
    raise FetchError(f"{' and '.join(package.name for package in packages)}: no kernel in there")


def plain_image(data: bytes) -> bytes:
    """The arm64 Image in what Debian calls vmlinuz: itself, compressed by gzip, or compressed in an EFI stub."""
    if data[4:8] == b"zimg":  # drivers/firmware/efi/libstub/zboot-header.S: offset, size, and the method's name
        start, size = int.from_bytes(data[8:12], "little"), int.from_bytes(data[12:16], "little")
        method = data[24:56].split(b"\0")[0].decode("ascii", "replace")
        if method != "gzip":
            raise FetchError(f"the kernel is compressed by {method}, which is not supported")
        data = data[start : start + size]
    if data[:2] == b"\x1f\x8b":
        data = gzip.decompress(data)
    if data[56:60] != _IMAGE_MAGIC:
        raise FetchError("the kernel package has no arm64 Image in it")
    return data


def _file_system(busybox: bytes, ours: dict[str, bytes], programs: dict[str, bytes]) -> Iterator[cpio.Entry]:
    for name in ("bin", "dev", "lib", "proc", "root", "run", "sys", "tmp"):
        yield cpio.directory(name)
    yield cpio.symlink("sbin", "bin")
    # The kernel opens it for init, before anything is mounted.
    yield cpio.device("dev/console", 5, 1)
    yield cpio.device("dev/null", 1, 3)
    yield cpio.file("init", (SOURCE / "init.sh").read_bytes(), 0o755)
    yield cpio.file("bin/busybox", busybox, 0o755)
    yield cpio.symlink("bin/sh", "busybox")
    for name, data in ours.items():
        yield cpio.file(f"lib/{name}", data)
    for name, data in programs.items():
        yield cpio.file(f"bin/{name}", data, 0o755)


def _replace(out: Path, files: dict[str, bytes], stamp: dict[str, object]) -> None:
    """Each file is whole at any time; all of them belong together while the stamp is there."""
    out.mkdir(parents=True, exist_ok=True)
    (out / _STAMP).unlink(missing_ok=True)
    everything = {**files, _STAMP: json.dumps(stamp, indent=2).encode() + b"\n"}
    for name, data in everything.items():
        partial = out / f".{name}.{os.getpid()}.tmp"
        try:
            partial.write_bytes(data)
            partial.replace(out / name)
        finally:
            partial.unlink(missing_ok=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="Fetch a Debian arm64 kernel, with an SDEI client and a file system.")
    parser.add_argument("--kernel", choices=list(KERNELS), default="bookworm", help="which one (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="directory for the files (default: build/linux/KERNEL)")
    parser.add_argument("--update", action="store_true", help="look for newer packages on the mirror")
    options = parser.parse_args()
    try:
        assets = fetch(options.kernel, options.out, update=options.update)
    except FetchError as error:
        print(error, file=sys.stderr)
        return 1
    for path in (assets.image, assets.module, assets.initrd):
        print(path)
    print(assets.release)
    return 0


if __name__ == "__main__":
    sys.exit(main())
