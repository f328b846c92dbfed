# SPDX-License-Identifier: Apache-2.0
"""The Linux guest: finding packages, writing the file system, and (marked linux) the real thing."""

from __future__ import annotations

import gzip
import json
import shutil
import stat
import subprocess
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
from guests.linux import cpio, debian, fetch
from guests.linux.debian import FetchError, Mirrors, mirrors_from_index_targets, mirrors_from_sources, parse_stanzas

# ------------------------------------------------------------------------------------------------- the archive format


def read_newc(data: bytes) -> Iterator[tuple[str, int, bytes, tuple[int, int]]]:
    """A reader by the format's description, independent of the writer."""
    at = 0
    while True:
        assert data[at : at + 6] == b"070701"
        fields = [int(data[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        mode, size, name_size = fields[1], fields[6], fields[11]
        name = data[at + 110 : at + 110 + name_size]
        assert name.endswith(b"\0")
        begin = (at + 110 + name_size + 3) // 4 * 4
        if name == b"TRAILER!!!\0":
            assert begin == len(data)
            return
        yield name[:-1].decode(), mode, data[begin : begin + size], (fields[9], fields[10])
        at = (begin + size + 3) // 4 * 4


def test_an_archive_holds_what_was_put_in() -> None:
    entries = [
        cpio.directory("bin"),
        *[cpio.file(f"bin/{'x' * length}", b"y" * length, 0o755) for length in range(1, 9)],
        cpio.symlink("sh", "bin/busybox"),
        cpio.device("console", 5, 1),
    ]
    found = list(read_newc(cpio.archive(entries)))
    assert found == [(entry.name, entry.mode, entry.data, entry.device) for entry in entries]


def test_the_types_of_files() -> None:
    entries = [cpio.directory("d"), cpio.file("f", b""), cpio.symlink("l", "t"), cpio.device("c", 1, 3)]
    assert [stat.S_IFMT(entry.mode) for entry in entries] == [stat.S_IFDIR, stat.S_IFREG, stat.S_IFLNK, stat.S_IFCHR]


def test_an_archive_depends_on_its_entries_only() -> None:
    entries = [cpio.file("a", b"1"), cpio.file("b", b"22")]
    assert cpio.archive(entries) == cpio.archive(entries)


# ---------------------------------------------------------------------------------------------------------- mirrors


def test_mirrors_by_apt_itself() -> None:
    text = (
        "Others\thttps://packages.example/apt/\tstable\n"
        "Debian\thttp://mirror.example/debian-security/\tbookworm-security\n"
        "Debian\thttp://mirror.example/debian/\tbookworm\n"
    )
    assert mirrors_from_index_targets(text) == Mirrors(
        "http://mirror.example/debian", "http://mirror.example/debian-security"
    )


@pytest.mark.parametrize("text", ["", "Others\thttps://packages.example/apt/\tstable\n", "nonsense\n"])
def test_no_mirror_by_apt_itself(text: str) -> None:
    assert mirrors_from_index_targets(text) is None


def test_mirrors_by_lines_of_sources() -> None:
    text = """
        # deb http://old.example/debian bookworm main
        deb [arch=amd64 signed-by=/k.gpg] https://mirror.example/debian bookworm main contrib
        deb https://mirror.example/debian-security bookworm-security main
        deb-src https://mirror.example/debian bookworm main
    """
    wanted = Mirrors("https://mirror.example/debian", "https://mirror.example/debian-security")
    assert mirrors_from_sources({"sources.list": text}) == wanted


def test_mirrors_by_paragraphs_of_sources() -> None:
    other = "Types: deb\nURIs: https://packages.example/apt\nSuites: stable\n"
    debians = (
        "Types: deb\n# a remark\nURIs: http://mirror.example/debian\nSuites: bookworm bookworm-updates\n"
        "Components: main\n\nTypes: deb\nEnabled: no\nURIs: http://off.example/debian-security\n"
        "Suites: bookworm-security\n"
    )
    found = mirrors_from_sources({"other.sources": other, "debian.sources": debians})
    assert found == Mirrors("http://mirror.example/debian")


def test_the_environment_names_the_mirror(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(debian.MIRROR_VARIABLE, "http://mirror.example/debian/")
    assert debian.find_mirrors() == Mirrors("http://mirror.example/debian", "http://mirror.example/debian-security")


def test_no_mirror_at_all_is_said_with_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(*_: object, **__: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess([], 0, stdout="", stderr="")

    monkeypatch.delenv(debian.MIRROR_VARIABLE, raising=False)
    monkeypatch.setattr(subprocess, "run", nothing)
    monkeypatch.setattr(debian, "_source_files", lambda _: {})
    with pytest.raises(FetchError, match=f"hint: set {debian.MIRROR_VARIABLE}"):
        debian.find_mirrors()


# ---------------------------------------------------------------------------------------------------------- packages

INDEX = """\
Package: linux-image-arm64
Version: 9.1.2-1
Depends: linux-base-arm64 (= 9.1.2-1), linux-image-9.1.2+deb99-arm64 (= 9.1.2-1), one (>= 2) | two, plain, other:any
Description: a kernel
 of several lines

Package: second
Version: 1:2
"""


def test_paragraphs_of_an_index() -> None:
    first, second = parse_stanzas(INDEX)
    assert first["Description"] == "a kernel\nof several lines"
    assert second == {"Package": "second", "Version": "1:2"}
    assert first.depends() == [
        ("linux-base-arm64", "9.1.2-1"),
        ("linux-image-9.1.2+deb99-arm64", "9.1.2-1"),
        ("one", None),
        ("plain", None),
        ("other", None),
    ]
    assert second.depends() == []


@pytest.mark.parametrize(
    ("depends", "release"),
    [
        (["linux-base-arm64", "linux-image-9.1.2+deb99-arm64"], "9.1.2+deb99-arm64"),
        (["linux-image-6.1.0-56-arm64"], "6.1.0-56-arm64"),
        (["linux-image-9.1.2+deb99-rt-arm64", "linux-image-9.1.2+deb99-cloud-arm64"], None),
        (["linux-image-9.1.2+deb99-arm64-16k", "linux-image-9.1.2+deb99-arm64-dbg"], None),
        (["linux-image-9.1.2+deb99-arm64-unsigned", "linux-image-arm64"], None),
    ],
)
def test_the_kernel_behind_the_metapackage(depends: list[str], release: str | None) -> None:
    assert fetch.kernel_release(depends) == release


def arm64_image() -> bytes:
    return bytes(56) + b"ARM\x64" + bytes(100)


def efi_stub(payload: bytes, method: bytes) -> bytes:
    head = b"MZ\0\0zimg" + (64).to_bytes(4, "little") + len(payload).to_bytes(4, "little") + bytes(8)
    return (head + method).ljust(64, b"\0") + payload + b"after"


def test_the_image_in_a_kernel_package() -> None:
    image = arm64_image()
    packed = gzip.compress(image)
    assert fetch.plain_image(image) == image
    assert fetch.plain_image(packed) == image
    assert fetch.plain_image(efi_stub(packed, b"gzip")) == image


def test_what_is_no_image_is_refused() -> None:
    with pytest.raises(FetchError, match="no arm64 Image"):
        fetch.plain_image(b"\x7fELF" + bytes(100))
    with pytest.raises(FetchError, match="compressed by zstd22"):
        fetch.plain_image(efi_stub(b"", b"zstd22"))


# ------------------------------------------------------------------------------------------------ what is there already


def test_what_is_complete_is_not_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packages = fetch.Packages("9.9-arm64", ["i.deb"], ["h.deb"], "b.deb")
    stamp: dict[str, object] = {"sources": fetch._sources(), "packages": asdict(packages)}
    fetch._replace(tmp_path, {"Image": b"", "initrd.cpio.gz": b"", "sdei_client.ko": b""}, stamp)
    monkeypatch.setattr(fetch, "_build", None)
    assets = fetch.fetch("bookworm", tmp_path, cache=tmp_path)
    assert (assets.release, assets.image) == ("9.9-arm64", tmp_path / "Image")


@pytest.mark.parametrize("damage", ["other sources", "no image", "no stamp", "bad stamp"])
def test_what_is_not_complete_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    packages = fetch.Packages("9.9-arm64", ["i.deb"], ["h.deb"], "b.deb")
    sources = "others" if damage == "other sources" else fetch._sources()
    files = {"Image": b"", "initrd.cpio.gz": b"", "sdei_client.ko": b""}
    fetch._replace(tmp_path, files, {"sources": sources, "packages": asdict(packages)})
    if damage == "no image":
        (tmp_path / "Image").unlink()
    elif damage == "no stamp":
        (tmp_path / "stamp.json").unlink()
    elif damage == "bad stamp":
        (tmp_path / "stamp.json").write_text(json.dumps({"sources": sources, "packages": {"unknown": 1}}))
    built = fetch.LinuxAssets(tmp_path, tmp_path, tmp_path, "built")
    monkeypatch.setattr(fetch, "_build", lambda *_: built)
    assert fetch.fetch("bookworm", tmp_path, cache=tmp_path) is built


def test_files_that_change_lose_their_stamp_first(tmp_path: Path) -> None:
    fetch._replace(tmp_path, {"Image": b"old"}, {"sources": "old"})
    (tmp_path / "initrd.cpio.gz").mkdir()  # a file cannot take its place
    with pytest.raises(OSError, match="directory"):
        fetch._replace(tmp_path, {"Image": b"new", "initrd.cpio.gz": b"new"}, {"sources": "new"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Image", "initrd.cpio.gz"]


def test_an_unknown_kernel_is_an_error_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="hint: bookworm or newest"):
        fetch.fetch("hurd", tmp_path)


# ------------------------------------------------------------------------------------------------------ the real thing


@pytest.mark.linux
@pytest.mark.parametrize("which", fetch.KERNELS)
def test_the_files_of_a_kernel_belong_together(which: str) -> None:
    assets = fetch.fetch(which)
    assert assets.image.read_bytes()[56:60] == b"ARM\x64"
    module = assets.module.read_bytes()
    assert f"vermagic={assets.release} SMP".encode() in module
    assert b"license=Dual MIT/GPL" in module
    files = {name: data for name, _, data, _ in read_newc(gzip.decompress(assets.initrd.read_bytes()))}
    assert files["lib/sdei_client.ko"] == module
    assert files["init"].startswith(b"#!/bin/sh\n")
    assert b"license=Dual MIT/GPL" in files["lib/sdei_async_pf.ko"]
    for program in ("busybox", "regcheck", "forkbench", "cpubench", "pagework", "victim"):
        assert files[f"bin/{program}"][:4] == b"\x7fELF", program
    assert (assets.image.parent / "release").read_text().strip() == assets.release


@pytest.mark.linux
@pytest.mark.parametrize("which", fetch.KERNELS)
def test_a_second_fetch_is_quick(which: str) -> None:
    first = fetch.fetch(which)
    begin = time.monotonic()
    assert fetch.fetch(which) == first
    assert time.monotonic() - begin < 1


@pytest.mark.linux
def test_the_newest_kernel_is_another_one() -> None:
    assert fetch.fetch("bookworm").release.startswith("6.1.")
    assert fetch.fetch("newest").release != fetch.fetch("bookworm").release


@pytest.mark.linux
@pytest.mark.skipif(shutil.which("qemu-system-aarch64") is None, reason="needs qemu-system-aarch64")
@pytest.mark.parametrize("which", fetch.KERNELS)
def test_without_sdei_the_client_refuses_and_the_guest_lives_on(which: str) -> None:
    assets = fetch.fetch(which)
    command = ["qemu-system-aarch64", "-M", "virt,gic-version=3", "-cpu", "cortex-a72", "-smp", "2", "-m", "512"]
    command += ["-kernel", str(assets.image), "-initrd", str(assets.initrd), "-nic", "none", "-nographic", "-no-reboot"]
    command += ["-append", "console=ttyAMA0 quiet run=hotplug cycles=1 client.events=0"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=True)
    assert "no SDEI: the kernel found no firmware that offers it" in done.stdout
    assert "CLIENT-FAILED" in done.stdout
    assert "HOTPLUG-DONE cycles=1 errors=0" in done.stdout
    assert "Call trace" not in done.stdout
