# SPDX-License-Identifier: Apache-2.0
"""For tests with the guest `mover`: VMs in processes of their own, what is typed to it, what it counts, exact books.

The guest goes on in another process when it is moved, and so does its serial
port: what it printed is one text, whichever process printed which part.
"""

from __future__ import annotations

import random
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from sdeivirt.control.client import VmClient
from sdeivirt.machine.report import HandlerReport, VmStatus
from sdeivirt.sdei import EventDefinition
from sdeivirt.sdei.events import Priority
from sdeivirt.sdei.service import Injection

from .control_support import VmProcess, wait_until

__all__ = [
    "EVENTS",
    "LOAD_EVENTS",
    "SCENES",
    "Beat",
    "Injector",
    "Mover",
    "Row",
    "asked_for",
    "check_books",
    "check_counts",
    "check_scene",
    "is_quiet",
    "parse_scenes",
]

_OF_A_KIND = 8  # guests/mover/mover.h
_PRIVATE_CRITICAL, _SHARED_NORMAL, _SHARED_CRITICAL = 0x4000_0018, 0x4000_0020, 0x4000_0028

# What the guest wants defined: eight events of each kind; those of one PE can be raised by EVENT_SIGNAL.
EVENTS = (
    *(EventDefinition(0x4000_0010 + i, signalable=True) for i in range(1, _OF_A_KIND)),
    *(EventDefinition(_PRIVATE_CRITICAL + i, priority=Priority.CRITICAL, signalable=True) for i in range(_OF_A_KIND)),
    *(EventDefinition(_SHARED_NORMAL + i, shared=True) for i in range(_OF_A_KIND)),
    *(EventDefinition(_SHARED_CRITICAL + i, shared=True, priority=Priority.CRITICAL) for i in range(_OF_A_KIND)),
)
# What its load takes: (event, whether it is shared). The last two are slots, bound to a PPI and an SPI.
LOAD_EVENTS = (
    *((0, False), (0x4000_0011, False), (_PRIVATE_CRITICAL, False)),
    *((_SHARED_NORMAL, True), (_SHARED_CRITICAL, True), (_SHARED_NORMAL + 1, True), (_SHARED_CRITICAL + 1, True)),
    *((0x4000_1000, False), (0x4000_2000, True)),
)
SCENES = 8


def event_word(event: EventDefinition) -> str:
    """The event as `--event` takes it."""
    words = [
        *(["shared"] if event.shared else []),
        *(["critical"] if event.priority else []),
        *(["signalable"] if event.signalable else []),
    ]
    return f"{event.number:#x}" + (":" + ",".join(words) if words else "")


# -- what the guest says


@dataclass(frozen=True)
class Beat:
    """A line of counts: `cpus[i]` has written, passes, rounds, el0, signals, `events[i]` the runs of handlers there."""

    number: int
    cpus: list[dict[str, int]]
    events: list[dict[int, int]]

    @classmethod
    def parse(cls, line: str) -> Beat:
        words = line.split()
        assert words[:2] == ["MOVER", "beat"], line
        beat = cls(int(words[2], 16), [], [])
        for word in words[3:]:
            name, _, value = word.partition("=")
            if name == "cpu":
                assert int(value, 16) == len(beat.cpus), line
                beat.cpus.append({})
                beat.events.append({})
            elif name.isalpha() or name == "el0":
                beat.cpus[-1][name] = int(value, 16)
            else:
                beat.events[-1][int(name, 16)] = int(value, 16)
        return beat

    def is_a_round_after(self, before: Beat) -> bool:
        """Whether every CPU has got on."""
        return all(new["rounds"] > old["rounds"] for new, old in zip(self.cpus, before.cpus, strict=True))

    def goes_on_from(self, before: Beat) -> None:
        """Nothing that was counted has been forgotten, and every CPU has got on."""
        assert self.number > before.number
        for new, old in zip(self.cpus, before.cpus, strict=True):
            assert all(new[name] >= old[name] for name in old), (new, old)
        assert self.is_a_round_after(before), (self, before)
        for events, earlier in zip(self.events, before.events, strict=True):
            assert all(events[number] >= earlier[number] for number in earlier), (events, earlier)


@dataclass(frozen=True)
class Row:
    """A handler of a scene, as `case=list` prints it; flags: 1 routed, 2 relative, 4 resumes elsewhere."""

    scene: str
    pe: int
    where: str
    kind: str
    cell: str
    flags: int

    @property
    def pending(self) -> bool:
        return self.cell.endswith("p")

    @property
    def state(self) -> str:
        return self.cell.removesuffix("p")


def parse_scenes(text: str) -> dict[str, list[Row]]:
    """The scenes that `case=list` prints, by the name to give to `case=`."""
    scenes: dict[str, list[Row]] = {}
    scene = ""
    for line in text.splitlines():
        if line.startswith("MOVER scene "):
            scene = line.split()[2]
            scenes[scene] = []
        elif line.startswith("MOVER row "):
            words = dict(word.split("=") for word in line.split()[2:])
            row = Row(scene, int(words["pe"]), words["where"], words["kind"], words["cell"], int(words["flags"]))
            scenes[scene].append(row)
    return scenes


def asked_for(text: str) -> list[tuple[int, int | None]]:
    """The events, with a vCPU or None, that the guest has asked its host to inject so far."""
    asked = re.findall(r"^MOVER asks (0x[0-9a-f]+) (any|\d+)\n", text, re.MULTILINE)
    return [(int(event, 0), None if vcpu == "any" else int(vcpu)) for event, vcpu in asked]


# -- the VM


class Mover:
    """The guest in a process of its own, and later in others. A context manager, which kills what still lives."""

    def __init__(
        self,
        runtime: Path,
        machine: str,
        append: str,
        *words: str,
        vcpus: int = 4,
        name: str = "vm",
        memory: str = "32M",
    ) -> None:
        self.runtime = runtime
        self.words = (
            *("--machine", machine, "--guest", "mover", "--append", append, "--vcpus", str(vcpus), "--memory", memory),
            *(word for event in EVENTS for word in ("--event", event_word(event))),
            *words,
        )
        self.vcpus = vcpus
        self.vms: list[VmProcess] = []
        self._answered = 0  # of the host's injections that the guest asked for
        self.vm = self.start(name)

    def start(self, name: str, *words: str) -> VmProcess:
        """Another VM of the same kind, in which nothing need run yet; :meth:`moved_to` when the guest is there."""
        vm = VmProcess(self.runtime, *self.words, *words, name=name)
        self.vms.append(vm)
        return vm

    def moved_to(self, vm: VmProcess) -> None:
        """The guest runs there now; what it printed before has been read to the end."""
        self.vm.wait()
        self.vm = vm

    def moved_to_after_kill(self, vm: VmProcess) -> None:
        """The guest runs there, and the process where it was has been killed."""
        self.vm.process.wait()
        self.vm = vm

    @property
    def name(self) -> str:
        return self.vm.path.name

    @property
    def text(self) -> str:
        """What the guest has printed, ever."""
        return "".join(vm.out for vm in self.vms)

    def client(self) -> VmClient:
        return VmClient(self.name)

    def type_in(self, keys: str) -> None:
        stdin = self.vm.process.stdin
        assert stdin is not None
        stdin.write(keys.encode())
        stdin.flush()

    def until(self, text: str, count: int = 1) -> str:
        """Wait for a text, and have the events injected that the guest asks for; its whole text. A failure ends it."""

        def there() -> bool:
            said = self.text
            if "MOVER FAILED" in said or "Result: FAILED" in said:
                raise AssertionError(said + self.errors)
            self._answer(said)
            return said.count(text) >= count or self.vm.process.poll() is not None

        wait_until(there, f"no {text!r} in {self.text}")
        said = self.text
        assert said.count(text) >= count, said + self.errors
        return said

    @property
    def errors(self) -> str:
        return "".join(vm.err for vm in self.vms)

    def _answer(self, text: str) -> None:
        for event, vcpu in asked_for(text)[self._answered :]:
            with self.client() as client:
                client.inject(event, vcpu)
            self._answered += 1
            self.type_in("y")

    def beat(self) -> Beat:
        """The guest's counts, from now."""

        def lines() -> list[str]:
            return re.findall(r"^MOVER beat.*\n", self.text, re.MULTILINE)

        before = len(lines())
        self.type_in("?")
        self.until("MOVER beat", before + 1)
        wait_until(lambda: len(lines()) > before, "half a line of counts")
        return Beat.parse(lines()[before])

    def settle(self) -> tuple[VmStatus, Beat]:
        """Have the guest raise no more events: what the host and it say of them when all have been handled."""
        self.type_in("s")
        before = self.beat()
        # A CPU may have raised one and not have counted it; in its next round it has.
        wait_until(lambda: self.beat().is_a_round_after(before), "a CPU stands still")
        with self.client() as client:
            wait_until(lambda: is_quiet(client.status()), "events are still pending")
            return client.status(), self.beat()

    def quit(self) -> str:
        """Have the guest check everything once more and end; its whole text."""
        self.type_in("q")
        return self.ended()

    def ended(self) -> str:
        """Wait until the guest has ended well."""
        text = self.until("Result: OK")
        assert "MOVER OK\n" in text
        assert self.vm.wait() == 0, self.errors
        return text

    def __enter__(self) -> Mover:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            for vm in self.vms:
                print(f"{vm.path.name}: {vm.process.poll()} {vm.err} {vm.out[-400:]}")
        for vm in self.vms:
            vm.__exit__(kind, error, trace)


# -- books


def _handlers(status: VmStatus) -> Iterable[tuple[int, HandlerReport]]:
    return ((event.number, handler) for event in status.events for handler in event.handlers)


def check_books(status: VmStatus) -> None:
    """What holds at every moment: no event is lost or doubled; what runs was delivered, and is not complete."""
    for number, h in _handlers(status):
        assert h.injected == h.delivered + h.coalesced + h.dropped + h.pending, (hex(number), h)
        assert h.delivered - h.completed == h.running, (hex(number), h)
        assert h.failed <= h.completed
    running = sorted((pe.vcpu, number) for pe in status.vcpus for number in pe.running)
    assert running == sorted((h.runs_on, number) for number, h in _handlers(status) if h.runs_on is not None)


def is_quiet(status: VmStatus) -> bool:
    """Whether nothing is pending, and no handler runs."""
    return not any(h.pending or h.running for _, h in _handlers(status))


def check_counts(status: VmStatus, beat: Beat, injected: Counter[tuple[int, int | None]]) -> None:
    """Of a guest that is quiet: handlers ran as often as the host says, and what was raised is what was injected.

    `injected` counts the host's injections that were accepted, by event and vCPU (None for a shared event).
    """
    check_books(status)
    reports = {(number, h.vcpu): h for number, h in _handlers(status) if h.registered}
    for (number, vcpu), h in reports.items():
        if vcpu is None:
            ran = sum(events[number] for events in beat.events)
        else:
            ran = beat.events[vcpu][number]
        assert ran == h.delivered, (hex(number), vcpu, h)
        signalled = beat.cpus[vcpu - 1]["signals"] if vcpu is not None and number == 0 else 0
        assert h.injected == injected[number, vcpu] + signalled, (hex(number), vcpu, h, signalled)
    assert set(injected) <= set(reports)


class Injector:
    """Injects events of the load at random, and counts what was accepted. A context manager: a thread of its own.

    `where` names the VM to talk to. An injection that VM refuses since the guest
    has left (`moved` says which errors mean that) is made again where it is now.
    """

    def __init__(
        self, where: Callable[[], str], seed: int, vcpus: int = 4, moved: tuple[type[Exception], ...] = ()
    ) -> None:
        print(f"injections: seed {seed}")
        self._where = where
        self._random = random.Random(seed)
        self._vcpus = vcpus
        self._moved = moved
        self._stop = threading.Event()
        self._hopeless = False
        self._thread = threading.Thread(target=self._run)
        self.injected: Counter[tuple[int, int | None]] = Counter()
        self.coalesced = 0
        self.error: BaseException | None = None

    @property
    def count(self) -> int:
        return self.injected.total()

    def _run(self) -> None:
        try:
            again: tuple[int, int | None] | None = None
            while not self._stop.is_set() or again:
                try:
                    with VmClient(self._where()) as client:
                        while not self._stop.is_set() or again:
                            event, shared = self._random.choice(LOAD_EVENTS)
                            again = again or (event, None if shared else self._random.randrange(self._vcpus))
                            self._count(client.inject(*again))
                            again = None
                except self._moved:
                    if self._hopeless:
                        return
                    continue
        except BaseException as error:
            self.error = error

    def _count(self, injection: Injection) -> None:
        shared = dict(LOAD_EVENTS)[injection.event]
        self.injected[injection.event, None if shared else injection.vcpu] += 1
        self.coalesced += injection.coalesced

    def reaches(self, count: int) -> None:
        """Wait until so many injections have been accepted."""
        wait_until(lambda: self.count >= count or self.error, f"{self.count} of {count} injections")
        if self.error:
            raise self.error

    def give_up(self) -> None:
        """The guest is nowhere: what was to be injected again need not be."""
        self._hopeless = True
        self._stop.set()

    def __enter__(self) -> Injector:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hopeless = self._hopeless or error is not None  # the guest is perhaps nowhere
        self._stop.set()
        self._thread.join()
        if self.error and error is None:
            raise self.error


# -- scenes

_BITS = {"reg": "", "reG": "G", "rEG": "GE", "REG": "GER", "ReG": "GR", "Reg": "R"}


def check_scene(rows: Sequence[Row], status: VmStatus) -> None:
    """The host sees the handlers in the states of the scene, and nothing else registered or running."""
    check_books(status)
    events = {event.number: event for event in status.events}
    wanted: Counter[tuple[str, int | None, str, bool]] = Counter()
    for row in rows:
        if row.cell != "reg":
            vcpu = None if "shared" in row.kind else row.pe
            wanted[row.kind, vcpu, _BITS[row.state], row.pending] += 1
    found: Counter[tuple[str, int | None, str, bool]] = Counter()
    for number, h in _handlers(status):
        bits = "G" * h.registered + "E" * h.enabled + "R" * h.running
        if bits:
            event = events[number]
            kind = f"bound-{event.type}" if event.dynamic else f"{event.type}-{event.priority}"
            found[kind, h.vcpu, bits, h.pending] += 1
    assert found == wanted
    nested = Counter(row.pe for row in rows if row.state.startswith("R"))
    assert {pe.vcpu: pe.nesting for pe in status.vcpus if pe.nesting} == dict(nested)
    routed = Counter(
        row.pe for row in rows if "shared" in row.kind and row.flags & 1 and row.state not in ("reg", "Reg")
    )
    assert routed == Counter(h.routed_to for _, h in _handlers(status) if h.routed_to is not None and h.registered)
