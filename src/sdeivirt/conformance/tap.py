# SPDX-License-Identifier: Apache-2.0
"""The guest's output, a TAP 14 stream among whatever else a serial port shows, read as it comes.

    TAP version 14
    # platform: 4 PEs, conduit hvc, SDEI 1.1, vendor 0x4b564d
    1..2
    # test state.x | DEN0054C 6.1 | what it is about     the catalogue
    # test state.y | ...
    # run state.x                                        so that a crash has a name
    # host: inject 0x40000100 2                          a request, answered on the UART
    # note: ...                                          remarks of the test
    not ok 1 - state.x
      ---
      message: "..."
      at: "guests/conform/state.c:120"
      ...
    ok 2 - state.y # SKIP reason
    # done

A guest that cannot even begin says `Result: FAILED (reason)`, as all of our guests do.

Firmware prints as well: lines of its own, parts of lines in front of ours, a
line in the middle of ours. Nothing of the kind must turn a failure into a
pass: a line counts as `ok` only if it is whole to its end, if it is the turn
of its test, and if no letters in front of it could be what is left of `not ok`.
"""

from __future__ import annotations

import enum
import json
import re
from dataclasses import dataclass, field

from .model import Record, Verdict

__all__ = ["NO_VERDICT", "Event", "Kind", "Stream", "TapParser"]

NO_VERDICT = "the guest stopped without a verdict"

_LONGEST_LINE = 1 << 14
_MOST_NOTES = 100
_ID = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f]")
_LINE = re.compile(
    rf"(?P<start>TAP version 1[34])\s*$"
    rf"|1\.\.(?P<plan>\d{{1,6}})\s*(?:\# ?(?:SKIP)?(?P<whole>.*))?$"
    rf"|\# test (?P<test>{_ID}) \| (?P<rule>.*?) \| (?P<title>.*)$"
    rf"|\# run (?P<run>{_ID})\s*$"
    rf"|\# host: ?(?P<host>.*)$"
    rf"|\# note: ?(?P<note>.*)$"
    rf"|\# platform: ?(?P<platform>.*)$"
    rf"|\# (?P<done>done)\s*$"
    rf"|ok \d+ - (?P<ok>{_ID})\s*(?:\# SKIP(?: (?P<skip>.*))?)?$"
    rf"|not ok \d+ - (?P<notok>{_ID})(?:\s.*)?$"
    rf"|Bail out!(?P<bail>.*)$"
    rf"|\s*Result: FAILED \((?P<failed>.*)\)\s*$"
)
# Where one of our lines may begin behind something that firmware has left unfinished.
_INSIDE = re.compile(r"TAP version 1|1\.\.\d|# test |# run |# host:|# done|not ok \d|ok \d|Bail out!")
_LEFT_OF_NOT = re.compile(r"n.*o.*t", re.DOTALL)
_PAIR = re.compile(r"  (?P<key>message|at): ?(?P<value>.*)$")
_PLATFORM = {
    "pes": re.compile(r"\b(\d+) PEs?\b"),
    "conduit": re.compile(r"\bconduit (\w+)"),
    "version": re.compile(r"\bSDEI (\d+\.\d+)"),
    "vendor": re.compile(r"\bvendor (0x[0-9a-fA-F]+)"),
}


class Kind(enum.Enum):
    """What a line meant."""

    START = enum.auto()
    PLAN = enum.auto()
    TEST = enum.auto()
    RUN = enum.auto()
    HOST = enum.auto()
    NOTE = enum.auto()
    PLATFORM = enum.auto()
    VERDICT = enum.auto()
    BAIL = enum.auto()
    DONE = enum.auto()


@dataclass(frozen=True, slots=True)
class Event:
    """A line of the guest's. `text` is the test's id, the request or the reason."""

    kind: Kind
    text: str = ""


@dataclass(slots=True)
class Stream:
    """One boot of the guest. `ran` names the tests that began, in order; `running` the one that has no verdict yet."""

    records: dict[str, Record] = field(default_factory=dict)
    platform: dict[str, str] = field(default_factory=dict)
    plan: int | None = None
    ran: list[str] = field(default_factory=list)
    running: str | None = None
    bail: str | None = None
    done: bool = False
    nothing: str = ""  # why no test is to run at all
    notes: list[str] = field(default_factory=list)  # before the first test

    @property
    def blameless(self) -> bool:
        """Whether the last test that began has ended without a failure: none tells of it then if the guest is gone."""
        return bool(self.ran) and self.running is None and self.records[self.ran[-1]].verdict is not Verdict.FAIL

    def end(self, message: str, detail: str = "") -> None:
        """Nothing more will come: a test that was running has failed."""
        running, self.running = self.running, None
        if running is not None:
            self.records[running].fail(f"bailed out: {self.bail}" if self.bail is not None else message, detail)


class TapParser:
    """Takes bytes in any portions. `streams` has one entry for each boot that shows in them."""

    def __init__(self) -> None:
        self.streams: list[Stream] = []
        self._line = bytearray()
        self._overlong = False
        self._last: Record | None = None  # of the last verdict: diagnostics follow
        self._in_block = False

    @property
    def stream(self) -> Stream | None:
        """The present one."""
        return self.streams[-1] if self.streams else None

    def feed(self, data: bytes) -> list[Event]:
        """Look at more output; what it meant."""
        events = []
        *lines, rest = data.split(b"\n")
        for line in lines:
            if not self._overlong:
                self._line += line
                event = self._whole_line(bytes(self._line))
                if event is not None:
                    events.append(event)
            self._line.clear()
            self._overlong = False
        self._line += rest
        if len(self._line) > _LONGEST_LINE:  # none of ours
            self._line.clear()
            self._overlong = True
        return events

    def finish(self, message: str = NO_VERDICT, detail: str = "") -> None:
        """The output has ended, maybe in the middle of a line, which proves no success."""
        text = _clean(bytes(self._line))
        self._line.clear()
        match = self._match(text)
        if match is not None and match.lastgroup in ("notok", "bail", "failed", "run"):
            self._meaning(match)
        if self.stream is not None:
            self.stream.end(message, detail)

    # -- lines

    def _whole_line(self, line: bytes) -> Event | None:
        text = _clean(line)
        if self._block(text):
            return None
        match = self._match(text)
        if match is not None:
            return self._meaning(match)
        if self._last is not None and self._last.verdict is Verdict.PASS and "# SKIP" in text:
            # The second half of a line that somebody broke.
            self._last.verdict, self._last.message = Verdict.SKIP, text.partition("# SKIP")[2].strip()
        return None

    def _block(self, text: str) -> bool:
        """Lines between `  ---` and `  ...`, which belong to the verdict before them."""
        if not self._in_block:
            if self._last is None or text.rstrip() != "  ---":
                return False
            self._in_block = True
            if self._last.verdict is Verdict.PASS:
                # Only failures have diagnostics: this was the second half of a `not ok` line.
                self._last.fail("its verdict was not readable")
            return True
        if text.rstrip() == "  ...":
            self._in_block = False
            self._last = None
            return True
        pair = _PAIR.match(text)
        if pair and self._last is not None:
            value = _unquote(pair["value"].strip())
            if pair["key"] == "at":
                self._last.at = value
            elif self._last.verdict is Verdict.FAIL:
                self._last.message = value
            return True
        return text.startswith("  ")

    def _match(self, text: str) -> re.Match[str] | None:
        match = _LINE.match(text)
        if match is not None:
            return match
        for inside in _INSIDE.finditer(text):
            match = _LINE.match(text, inside.start())
            if match is None or not self._trusted(match):
                continue
            if match["ok"] is not None and _LEFT_OF_NOT.search(text[: inside.start()]):
                return None
            return match
        return None

    def _trusted(self, match: re.Match[str]) -> bool:
        """Behind foreign text, only what fits the catalogue is believed."""
        named = match["run"] or match["ok"] or match["notok"]
        return named is None or (self.stream is not None and named in self.stream.records)

    def _meaning(self, match: re.Match[str]) -> Event | None:
        self._in_block = False
        begins = match["test"] or match["run"] or match["bail"] or match["failed"]
        if match["start"] is not None or (self.stream is None and begins):
            if self.stream is not None:
                self.stream.end(f"{NO_VERDICT}: it began anew")
            self.streams.append(Stream())
            self._last = None
            if match["start"] is not None:
                return Event(Kind.START)
        stream = self.stream
        if stream is None:
            return None
        if match["test"] is not None:
            record = stream.records.setdefault(match["test"], Record(match["test"]))
            record.rule, record.title = match["rule"].strip(), match["title"].strip()
            return Event(Kind.TEST, record.id)
        if match["ok"] is not None or match["notok"] is not None:
            return self._verdict(stream, match)
        if match["run"] is not None:
            return self._run(stream, match["run"])
        if match["plan"] is not None:
            stream.plan = int(match["plan"])
            if not stream.plan:
                stream.nothing = (match["whole"] or "").strip() or "no test was selected"
            return Event(Kind.PLAN, match["plan"])
        if match["host"] is not None:
            return Event(Kind.HOST, match["host"].strip())
        if match["note"] is not None:
            notes = stream.notes if stream.running is None else stream.records[stream.running].notes
            if len(notes) < _MOST_NOTES:
                notes.append(match["note"].strip())
            return Event(Kind.NOTE, match["note"].strip())
        if match["platform"] is not None:
            text = match["platform"].strip()
            found = {key: pattern.search(text) for key, pattern in _PLATFORM.items()}
            stream.platform = {"text": text} | {key: hit[1] for key, hit in found.items() if hit}
            return Event(Kind.PLATFORM, text)
        if match["bail"] is not None or match["failed"] is not None:
            stream.bail = (match["bail"] or match["failed"] or "").strip() or "no reason was printed"
            return Event(Kind.BAIL, stream.bail)
        stream.done = True
        return Event(Kind.DONE)

    def _run(self, stream: Stream, test: str) -> Event:
        stream.end("no verdict was printed")
        stream.records.setdefault(test, Record(test))
        stream.running = test
        stream.ran.append(test)
        self._last = None
        return Event(Kind.RUN, test)

    def _verdict(self, stream: Stream, match: re.Match[str]) -> Event | None:
        test = match["ok"] or match["notok"]
        record = stream.records.get(test)
        if record is None:
            return None  # somebody else's
        in_turn = stream.running == test
        if not in_turn:
            stream.end("no verdict was printed")
            if test not in stream.ran:
                stream.ran.append(test)
        stream.running = None
        self._last = record
        if match["notok"] is not None:
            record.fail("no reason was printed")
        elif not in_turn and record.verdict is None:
            record.fail("it was not printed that it began, only that it passed")
        elif record.verdict is not None:
            pass  # a second verdict makes nothing better
        elif match["skip"] is not None or "# SKIP" in match[0]:
            record.verdict, record.message = Verdict.SKIP, (match["skip"] or "").strip() or "no reason was printed"
        else:
            record.verdict = Verdict.PASS
        return Event(Kind.VERDICT, test)


def _clean(line: bytes) -> str:
    return _CONTROL.sub("", line.decode("utf-8", "replace")).rstrip()


def _unquote(value: str) -> str:
    """A YAML scalar of the guest's: double-quoted, which JSON reads as well, or as it stands."""
    if value.startswith('"'):
        try:
            read = json.loads(value)
        except ValueError:
            return value.strip('"')
        if isinstance(read, str):
            return read
    return value
