# SPDX-License-Identifier: Apache-2.0
"""The kernel's own modules that the initial file system carries, and the files by which modprobe finds them.

Debian's packages leave depmod to the machine that they are installed on; what is needed of it is done here. The forms:
modprobe.d(5), depmod(8) and modules.dep(5).
"""

from __future__ import annotations

import gzip
import lzma
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from guests.linux import cpio
from guests.linux.debian import FetchError, read_members

__all__ = ["MODULES", "entries", "find_modules", "names_needed", "plain_module"]

# Disks and network cards of virtio. The second line is what they need: named as well, all come in one reading of the
# package. Whatever else they turn out to need is read after that.
MODULES = (
    *("virtio_pci", "virtio_blk", "virtio_net"),
    *("virtio", "virtio_ring", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "net_failover", "failover"),
)


def find_modules(packages: Sequence[Path], release: str) -> dict[str, bytes]:
    """MODULES and all that they need: path below lib/modules/RELEASE -> the module, not compressed.

    What no package has is part of the kernel itself.
    """
    found: dict[str, bytes] = {}
    asked: set[str] = set()
    wanted = set(MODULES)
    while wanted:
        either = "|".join(re.escape(name).replace("_", "[_-]") for name in sorted(wanted))
        pattern = rf"(?:usr/)?lib/modules/{re.escape(release)}/(kernel/.*/(?:{either})\.ko)(\.\w+)?"
        for package in packages:
            for match, data in read_members(package, pattern):
                found[match[1]] = plain_module(data, match[2] or "")
        asked |= wanted
        wanted = {name for data in found.values() for name in names_needed(data)} - asked
    return found


def plain_module(data: bytes, suffix: str) -> bytes:
    """The module in a file that ends in .ko and `suffix`."""
    if suffix == ".xz":
        return lzma.decompress(data)
    if suffix == ".gz":
        return gzip.decompress(data)
    if suffix == ".zst":
        try:
            return subprocess.run(["zstd", "-dc"], input=data, capture_output=True, check=True).stdout
        except (FileNotFoundError, subprocess.CalledProcessError) as error:
            raise FetchError(f"a kernel module cannot be unpacked ({error}); hint: apt-get install zstd") from None
    if suffix:
        raise FetchError(f"the kernel's modules are compressed by {suffix[1:]}, which is not supported")
    return data


def names_needed(module: bytes) -> list[str]:
    """Which modules a module says it needs, in its section .modinfo."""
    found = re.search(rb"\0depends=([\w,-]*)\0", module)
    return [name.replace("-", "_") for name in found[1].decode().split(",") if name] if found else []


def entries(modules: Mapping[str, bytes], release: str) -> Iterator[cpio.Entry]:
    """The modules as files below lib/modules, with modules.dep and modules.builtin."""
    root = f"lib/modules/{release}"
    directories = {root}
    for path in modules:
        directories |= {f"{root}/{parent}" for parent in Path(path).parents if parent.name}
    for name in ("lib/modules", *sorted(directories)):  # one that is in another comes after it
        yield cpio.directory(name)
    for path, data in modules.items():
        yield cpio.file(f"{root}/{path}", data)
    built_in = [name for name in MODULES if name not in map(_name, modules)]
    yield cpio.file(f"{root}/modules.dep", _modules_dep(modules).encode())
    yield cpio.file(f"{root}/modules.builtin", "".join(f"kernel/{name}.ko\n" for name in built_in).encode())


def _name(path: str) -> str:
    return Path(path).name.removesuffix(".ko").replace("-", "_")


def _modules_dep(modules: Mapping[str, bytes]) -> str:
    """A line for each: all that it needs, directly or not, in the reverse of the order of loading."""
    paths = {_name(path): path for path in modules}

    def needed(path: str) -> list[str]:
        order: list[str] = []
        for name in names_needed(modules[path]):
            if name in paths:  # else built in
                order += [paths[name], *needed(paths[name])]
        return order

    lines = []
    for path in modules:
        order = needed(path)
        # Of several mentions the last counts: what is needed by two is loaded before both.
        last = [one for i, one in enumerate(order) if one not in order[i + 1 :]]
        lines.append(f"{path}: {' '.join(last)}".rstrip() + "\n")
    return "".join(lines)
