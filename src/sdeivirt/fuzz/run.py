# SPDX-License-Identifier: Apache-2.0
"""A job on the core: random steps on both sides, as fast as they can be compared.

The loop in :meth:`Run.stretch` is :meth:`.sides.Sides.call` once more, without its calls to itself: it is where
a campaign spends its time. All that it does follows from the seed, so a run that failed is made once more to get
at its steps.
"""

from __future__ import annotations

import time
import zlib
from array import array
from random import Random

from .compare import compare
from .plan import Coverage, Failure, Job, Outcome, Step
from .pool import ENTRIES, FUNCTION, Pool
from .records import M64, OPERATIONS
from .seats import STOPPED, Answer, function_of
from .sides import Sides

__all__ = ["Run", "run_core"]

POOL_BITS = 12  # 4,096 calls of PEs outside of handlers, and as many of those inside
STRETCH = 256  # calls between two comparisons of all state
OTHERS_BITS = 10  # 1,024 steps that are no calls
# How often a step is something else than a call, in 256ths; and how often a PE that was kicked looks at once.
OTHER_STEPS = 20
LOOKS_AT_ONCE = 160
BOOTS = 0.8  # the part of PEs that set everything up when they start

CODES = 11  # 0 to -10
REGISTER, ENABLE, UNMASK = FUNCTION["event_register"], FUNCTION["event_enable"], FUNCTION["pe_unmask"]

# A call of a pool: x0..x5 before it, and after it but for x0, where it gives a single result; the answer;
# and how often it gave each code, by its number without the sign.
Entry = tuple["array[int]", "array[int]", Answer, list[int]]


class Run:
    """A job under way. `trail`, if there is one, gets every step."""

    def __init__(self, job: Job, trail: list[Step] | None = None) -> None:
        self.job = job
        self.trail = trail
        self.random = Random(job.seed)
        self.sides = Sides(job.world)
        self.codes: dict[int, list[int]] = {}  # results of calls by function, and how often
        pool = Pool(job.world, self.random)
        self._pools = tuple(tuple(map(self._entry, pool.draw(1 << POOL_BITS, inside))) for inside in (False, True))
        self._others = pool.draw_others(1 << OTHERS_BITS)
        calls = [[call, number, ENTRIES[0], number, 0, 0] for number in pool.numbers for call in (REGISTER, ENABLE)]
        self._boot_calls = [self._entry(words) for words in (*calls, [UNMASK, 0, 0, 0, 0, 0])]
        self.digest = 0
        self.made = 0  # calls
        self.others = 0  # steps that are no calls

    def _entry(self, words: list[int]) -> Entry:
        codes = self.codes.setdefault(function_of(words[0]), [0] * CODES)
        return array("Q", words), array("Q", [0, 0, 0, 0, *words[4:]]), self.sides.judge(words), codes

    def play(self, calls: int) -> None:
        """Make so many calls, with other steps between. Raises Disagreement, and what the firmware raises."""
        sides = self.sides
        while self.made < calls:
            self.stretch(min(STRETCH, calls - self.made))
            compare(sides)
            for seat in sides.seats:
                self.digest = zlib.crc32(seat.view.words, self.digest)

    def stretch(self, calls: int) -> None:
        """So many calls; after each, its registers, what was entered, and who was told to look are compared."""
        sides, trail, bits, other = self.sides, self.trail, self.random.getrandbits, self._other
        outside, inside = self._pools
        up, entered, rules, ripe, look = sides.up, sides.entered, sides.rules, sides.rules.ripe, self.look
        hypercall, delivery = sides.firmware.hypercall, sides.firmware.sdei.delivery
        six = slice(0, 6)
        self.made += calls
        while calls:
            drawn = bits(32)
            if drawn & 0xFF < OTHER_STEPS or not up:
                other()
                continue
            calls -= 1
            seat, me, mine, pe, view, theirs = up[(drawn >> 8 & 0xFF) % len(up)]
            words, after, judged, codes = (inside if me.frames else outside)[drawn >> 20]
            if trail is not None:
                trail.append(["call", me.index, *words])
            theirs[six] = words
            mine[six] = after
            goes_on = hypercall(pe, view)
            result = judged(me)
            if result.__class__ is int:
                mine[0] = result & M64
                codes[-result if result < 0 else 0] += 1
            else:
                codes[0] += 1
                if result is STOPPED:
                    mine[six] = words
                    sides.power_changed()
            if goes_on is (result is STOPPED):
                raise sides.goes_on(seat, words[0], goes_on)
            if entered:
                sides.follow(seat, words[0])
            else:
                if theirs != mine:
                    raise sides.differ(seat, words[0])
                if delivery.kicks:
                    sides.kicked |= delivery.take_kicks()
                due = rules.due
                if due & me.bit:
                    raise sides.no_entry(seat, words[0])
                if ripe or due & ~sides.kicked:
                    sides.told(words[0])
            if sides.kicked and drawn >> 12 & 0xFF < LOOKS_AT_ONCE:
                look(sides.kicked)

    def look(self, kicked: int) -> None:
        """The first of the PEs that were kicked looks."""
        index = (kicked & -kicked).bit_length() - 1
        if self.trail is not None:
            self.trail.append(["look", index])
        self.others += 1
        self.sides.look(self.sides.seats[index])
        if self.sides.started:
            self._boot()

    def do(self, step: Step) -> None:
        """A step that is no call."""
        self.others += 1
        if self.trail is not None:
            self.trail.append(step)
        self.sides.do(step)
        if self.sides.started:
            self._boot()

    def _boot(self) -> None:
        """What a guest does when a PE starts: handlers for most events, all enabled, and the PE unmasked."""
        sides, trail = self.sides, self.trail
        for seat in sides.started:
            calls = self._boot_calls if self.random.random() < BOOTS else ()
            for words, _after, judged, codes in calls:
                if self.random.random() < BOOTS and seat.up:
                    if trail is not None:
                        trail.append(["call", seat.model.index, *words])
                    result = sides.call(seat, words, judged)
                    self.made += 1
                    codes[-result if isinstance(result, int) and result < 0 else 0] += 1
        sides.started.clear()

    def _other(self) -> None:
        """Something that is no guest's call. Where no PE runs, one is woken or turned on."""
        sides = self.sides
        if sides.up:
            self.do(self._others[self.random.getrandbits(OTHERS_BITS)])
        else:
            pe = self.random.randrange(len(sides.seats))
            self.do(["look", pe] if sides.seats[pe].model.online else ["power", pe, "on"])

    # -- what came of it

    def outcome(self, seconds: float, failure: Failure | None) -> Outcome:
        job = self.job
        reached = {(function, -i) for function, codes in self.codes.items() for i in range(CODES) if codes[i]}
        calls = sum(map(sum, self.codes.values()))
        handlers = [h for event in self.sides.rules.events.values() for h in self.sides.rules.handlers_of(event)]
        return Outcome(
            job,
            calls=calls,
            steps=calls + self.others,
            succeeded=sum(codes[0] for codes in self.codes.values()),
            delivered=sum(handler.delivered for handler in handlers),
            seconds=seconds,
            digest=self.digest,
            coverage=Coverage(self.cells(), reached),
            failure=failure,
        )

    def cells(self) -> set[tuple[int, int]]:
        tried = self.sides.rules.tried
        return {(state, op) for op, name in enumerate(OPERATIONS) for state in range(8) if tried[name][state]}


def run_core(job: Job) -> Outcome:
    """Carry out a job; a failure is written down step by step, and shortened."""
    begin, cpu = time.perf_counter(), time.process_time()
    run = Run(job)
    failure: Failure | None = None
    try:
        run.play(job.calls)
    except Exception as error:
        from .shrink import write_down

        failure = write_down(job, error)
    outcome = run.outcome(time.perf_counter() - begin, failure)
    outcome.notes["cpu"] = time.process_time() - cpu
    return outcome
