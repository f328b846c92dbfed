# SPDX-License-Identifier: Apache-2.0
"""What of the arguments after -- a guest can see: both sides of a migration have to give it the same.

A device is the guest's; the file, the port or the socket behind it is the
host's, and may be another one at the destination: `-device
virtio-net-pci,netdev=n` counts, `-netdev user,id=n,hostfwd=...` does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

__all__ = ["front_ends"]

# Options about the host alone.
_OF_HOST = {
    *("netdev", "chardev", "blockdev", "object", "fsdev", "audiodev", "add-fd", "iscsi", "tpmdev", "monitor", "mon"),
    *("trace", "d", "D", "name", "pidfile", "msg", "L", "sandbox", "runas", "s", "display", "vnc", "daemonize"),
}
# Names of what stands behind a device.
_BEHIND = frozenset(
    ("drive", "netdev", "chardev", "fsdev", "memdev", "iothread", "rng", "audiodev", "file", "filename")
)
_OF_DRIVE = frozenset(("if", "index", "bus", "unit", "media"))
_OF_NIC = frozenset(("model", "mac"))
_FILES = frozenset(("hda", "hdb", "hdc", "hdd", "cdrom", "sd", "pflash", "mtdblock", "fda", "fdb"))


def front_ends(arguments: Sequence[str]) -> list[str]:
    """The arguments that make a difference to the guest, without what stands behind them."""
    return [word for option, value in _options(arguments) for word in _seen(option, value)]


def _options(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Each option without its dashes, and its value, "" where it has none."""
    words = list(arguments)
    while words:
        option = words.pop(0).lstrip("-")
        yield option, words.pop(0) if words and not words[0].startswith("-") else ""


def _seen(option: str, value: str) -> list[str]:
    if option in _OF_HOST:
        return []
    if option == "drive":
        kept = _parts(value, lambda name: name in _OF_DRIVE)
        return [] if "if=none" in kept.split(",") else ["-drive", kept]
    if option == "nic":
        kept = _parts(value, lambda name: name in _OF_NIC)
        return ["-nic", kept or value.partition(",")[0]]
    if option == "device":
        return ["-device", _parts(value, lambda name: name not in _BEHIND)]
    if option in _FILES:
        return [f"-{option}"]
    return [f"-{option}", value] if value else [f"-{option}"]


def _parts(value: str, keep: Callable[[str], bool]) -> str:
    """The parts of a value, NAME=SOMETHING by commas, whose names are to be kept."""
    return ",".join(part for part in value.split(",") if keep(part.partition("=")[0]))
