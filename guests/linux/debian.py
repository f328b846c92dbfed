# SPDX-License-Identifier: Apache-2.0
"""Packages of other suites and architectures, by an apt that shares nothing with the machine's own but its mirror.

State, cache, lists and sources lie in a directory of the caller's; what is downloaded is unpacked, never installed.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

__all__ = [
    "Apt",
    "FetchError",
    "Mirrors",
    "Stanza",
    "find_mirrors",
    "mirrors_from_index_targets",
    "mirrors_from_sources",
    "package_file_name",
    "parse_stanzas",
    "progress",
    "read_member",
    "read_members",
    "unpack",
]

MIRROR_VARIABLE = "SDEIVIRT_DEBIAN_MIRROR"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_INDEX_FORMAT = "$(ORIGIN)\t$(REPO_URI)\t$(RELEASE)"


class FetchError(Exception):
    """What is wanted cannot be had; the text says why and what to do about it."""


def progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# ---------------------------------------------------------------------------------------------------------- mirrors


@dataclass(frozen=True)
class Mirrors:
    """Base addresses of the Debian archive, and of its security updates where that is known."""

    archive: str
    security: str | None = None


def mirrors_from_index_targets(text: str) -> Mirrors | None:
    """Out of the lines of `apt-get indextargets`: origin, repository and release, with tabs between them."""
    rows = [line.split("\t") for line in text.splitlines()]
    pairs = [(row[1], row[2]) for row in rows if len(row) == 3 and row[0] == "Debian"]
    return _choose(pairs)


def mirrors_from_sources(texts: Mapping[str, str]) -> Mirrors | None:
    """Out of apt's source files by name: *.list has lines, *.sources has paragraphs."""
    pairs: list[tuple[str, str]] = []
    for name, text in texts.items():
        pairs += _deb822_sources(text) if name.endswith(".sources") else _line_sources(text)
    return _choose([(uri, suite) for uri, suite in pairs if re.search(r"/debian(-security)?/*$", uri)])


def _line_sources(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        found = re.match(r"\s*deb\s+(?:\[[^]]*\]\s+)?(\S+)\s+(\S+)", line)
        if found:
            yield found[1], found[2]


def _deb822_sources(text: str) -> Iterator[tuple[str, str]]:
    for stanza in parse_stanzas(re.sub(r"(?m)^#.*\n?", "", text)):
        if "deb" in stanza.get("Types", "").split() and stanza.get("Enabled", "yes") != "no":
            for uri in stanza.get("URIs", "").split():
                for suite in stanza.get("Suites", "").split():
                    yield uri, suite


def _choose(pairs: Sequence[tuple[str, str]]) -> Mirrors | None:
    def first(security: bool) -> str | None:
        # In its first years the suite was called bookworm/updates; since bullseye it is bookworm-security.
        named = (uri for uri, suite in pairs if suite.endswith(("-security", "/updates")) == security)
        return next((uri.rstrip("/") for uri in named), None)

    archive = first(security=False)
    return Mirrors(archive, first(security=True)) if archive else None


def find_mirrors() -> Mirrors:
    """The mirror that the machine's own apt uses, or the one that SDEIVIRT_DEBIAN_MIRROR names."""
    chosen = os.environ.get(MIRROR_VARIABLE, "").rstrip("/")
    if chosen:
        return Mirrors(chosen, f"{chosen}-security" if chosen.endswith("/debian") else None)
    command = ["apt-get", "indextargets", "--format", _INDEX_FORMAT, "Created-By: Packages"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False)
    # Before the first update apt knows of no index, but the sources are there.
    found = mirrors_from_index_targets(listed.stdout) or mirrors_from_sources(_source_files(Path("/etc/apt")))
    if found is None:
        raise FetchError(
            "this machine's apt has no Debian mirror configured; "
            f"hint: set {MIRROR_VARIABLE} to the base address of one (it ends in /debian)"
        )
    return found


def _source_files(apt: Path) -> dict[str, str]:
    paths = [apt / "sources.list", *sorted(apt.glob("sources.list.d/*"))]
    wanted = [path for path in paths if path.suffix in {".list", ".sources"} and path.is_file()]
    return {path.name: path.read_text("utf-8") for path in wanted}


# ---------------------------------------------------------------------------------------------------- package indexes


class Stanza(dict[str, str]):
    """One paragraph of a package index: field names to values."""

    def depends(self) -> list[tuple[str, str | None]]:
        """(package, version it must have exactly or None) of every dependency; the first of alternatives."""
        relations = [relation.split("|")[0].strip() for relation in self.get("Depends", "").split(",")]
        found = [re.match(r"([^\s:(]+)[^(]*(?:\(\s*(\S+)\s+([^)\s]+)\s*\))?", relation) for relation in relations]
        return [(match[1], match[3] if match[2] == "=" else None) for match in found if match]


def parse_stanzas(text: str) -> list[Stanza]:
    stanzas = []
    for paragraph in re.split(r"\n\s*\n", text):
        stanza = Stanza()
        name = ""
        for line in paragraph.splitlines():
            if line[:1].isspace() and name:
                stanza[name] += "\n" + line.strip()
            elif ":" in line:
                name, _, value = line.partition(":")
                stanza[name] = value.strip()
        if stanza:
            stanzas.append(stanza)
    return stanzas


# ------------------------------------------------------------------------------------------------------ the other apt


@dataclass
class Apt:
    """An apt of its own below `root`, for the given suites; `host` is the architecture of this machine."""

    root: Path
    suites: Sequence[str]
    host: str = field(default_factory=lambda: _output(["dpkg", "--print-architecture"]).strip())

    def update(self) -> None:
        """Reads the indexes anew. A suite that cannot be reached is left out; without any, the stored ones are used."""
        if not KEYRING.exists():
            raise FetchError(f"{KEYRING} is missing; hint: apt-get install debian-archive-keyring")
        self._configure(find_mirrors())
        progress("reading Debian's package indexes")
        done = self._run("apt-get", "update", check=False)
        for line in done.stderr.splitlines():
            if line.startswith("E:"):
                progress(f"  {line}")
        if not any(self.root.glob("state/lists/*_Packages*")):
            raise FetchError(
                "the Debian mirror cannot be reached; "
                f"hint: look at the network, or name another mirror in {MIRROR_VARIABLE}"
            )
        if "Some index files failed to download" in done.stderr:
            progress("  not all of the mirror can be reached; what was read before is used")

    def show(self, package: str) -> list[Stanza]:
        """What the indexes have under that name (`package` or `package:arch`), newest first."""
        done = self._run("apt-cache", "show", "--all-versions", package, check=False)
        stanzas = parse_stanzas(done.stdout)
        # Two suites may have the same version; one of them is enough.
        unique = list({stanza["Version"]: stanza for stanza in stanzas}.values())
        return sorted(unique, key=lambda stanza: _VersionKey(stanza["Version"]), reverse=True)

    def find(self, package: str, version: str | None = None) -> Stanza:
        """The given version, else the newest one."""
        stanzas = [stanza for stanza in self.show(package) if version in (None, stanza["Version"])]
        if not stanzas:
            wanted = package if version is None else f"{package} {version}"
            raise FetchError(
                f"no Debian suite that can be reached has {wanted}; "
                f"hint: is the mirror complete? {MIRROR_VARIABLE} names another one"
            )
        return stanzas[0]

    def download(self, stanza: Stanza, store: Path) -> Path:
        """The package as a file in `store`, where it either is whole or is not."""
        target = store / package_file_name(stanza)
        if target.exists():
            return target
        progress(f"downloading {target.name} ({int(stanza.get('Size', '0')) / 1e6:.1f} MB)")
        store.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=store, prefix=".partial-") as partial:
            wanted = f"{stanza['Package']}:{stanza['Architecture']}={stanza['Version']}"
            self._run("apt-get", "download", wanted.replace(":all=", "="), cwd=Path(partial))
            (arrived,) = Path(partial).glob("*.deb")
            arrived.replace(target)
        return target

    def _configure(self, mirrors: Mirrors) -> None:
        for directory in ("state/lists/partial", "cache/archives/partial", "etc"):
            (self.root / directory).mkdir(parents=True, exist_ok=True)
        (self.root / "state/status").touch()
        lines = []
        for suite in self.suites:
            base = mirrors.security if suite.endswith("-security") else mirrors.archive
            if base:
                lines.append(f"deb [signed-by={KEYRING}] {base} {suite} main\n")
        (self.root / "etc/sources.list").write_text("".join(lines), "utf-8")
        (self.root / "etc/apt.conf").write_text(_machine_settings() + self._settings(), "utf-8")

    def _settings(self) -> str:
        return f"""
            Dir::State "{self.root}/state";
            Dir::State::status "{self.root}/state/status";
            Dir::Cache "{self.root}/cache";
            Dir::Etc::sourcelist "{self.root}/etc/sources.list";
            Dir::Etc::sourceparts "/dev/null";
            Dir::Etc::parts "/dev/null";
            Dir::Etc::main "/dev/null";
            APT::Architecture "arm64";
            APT::Architectures {{ "arm64"; "{self.host}"; }};
            APT::Sandbox::User "root";
            APT::Get::List-Cleanup "false";
            Acquire::Languages "none";
            """

    def _run(self, *command: str, cwd: Path | None = None, check: bool = True) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "APT_CONFIG": str(self.root / "etc/apt.conf"), "LC_ALL": "C"}
        done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
        if check and done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise FetchError(f"{' '.join(command)} failed: {last}; hint: is the Debian mirror within reach?")
        return done


def package_file_name(stanza: Stanza) -> str:
    version = stanza["Version"].replace(":", "%3a")
    return f"{stanza['Package']}_{version}_{stanza['Architecture']}.deb"


def _machine_settings() -> str:
    """How the machine's apt reaches the net (proxies, time-outs): the other one needs that as well."""
    dump = _output(["apt-config", "dump"])
    wanted = re.compile(r"Acquire::(?!IndexTargets|Languages|GzipIndexes)")
    return "".join(f"{line}\n" for line in dump.splitlines() if wanted.match(line))


class _VersionKey:
    """Debian's order of versions, as dpkg has it."""

    def __init__(self, version: str) -> None:
        self.version = version

    def __lt__(self, other: _VersionKey) -> bool:
        command = ["dpkg", "--compare-versions", self.version, "lt", other.version]
        return subprocess.run(command, check=False).returncode == 0


def _output(command: Sequence[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except FileNotFoundError:
        raise FetchError(f"the command {command[0]} is missing; hint: this needs Debian or Ubuntu") from None
    except subprocess.CalledProcessError as error:
        raise FetchError(f"{' '.join(command)} failed: {error.stderr.strip()}") from None


# -------------------------------------------------------------------------------------------------- what is in packages


def read_members(package: Path, pattern: str) -> Generator[tuple[re.Match[str], bytes], None, None]:
    """The files of the package whose paths ("boot/vmlinuz-6.1") the pattern matches whole."""
    command = ["dpkg-deb", "--fsys-tarfile", str(package)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|") as tar:
                for member in tar:
                    match = re.fullmatch(pattern, member.name.removeprefix("./"))
                    data = tar.extractfile(member) if match and member.isfile() else None
                    if match and data:
                        yield match, data.read()
        except tarfile.TarError as error:
            raise FetchError(f"{package.name} cannot be read ({error}); hint: delete it and try again") from None
        finally:
            process.kill()


def read_member(package: Path, pattern: str) -> bytes | None:
    """The first of them, if there is one."""
    with contextlib.closing(read_members(package, pattern)) as found:
        return next((data for _, data in found), None)


def unpack(package: Path, into: Path) -> None:
    done = subprocess.run(["dpkg-deb", "-x", package, into], capture_output=True, text=True, check=False)
    if done.returncode:
        raise FetchError(f"{package.name} cannot be unpacked ({done.stderr.strip()}); hint: delete it and try again")
