# SPDX-License-Identifier: Apache-2.0
"""What the two sides of a migration say to each other, besides the state.

    source                                        destination
    HELO  who I am, which migration this is  -->
                                             <--  HELO  who I am, and how far it has got here
    CONF  what the machine is made of        -->
                                             <--  REDY  its RAM is here; or all of it stands
    PAGE, ZERO, PASS ...                     -->         while the guest runs at the source
    ERLY ...                                 -->         what of the state there is already; empty at its end
                                             <--  REDY  it stands here, and has taken that
    PAGE, ZERO, PASS ...                     -->         what the guest wrote meanwhile
    PAGE, ZERO, DESC, SECT ..., END          -->         while it is stopped; before END, STAY if it was paused before
                                             <--  LOAD  everything is here, and whole
    CMIT  run it                             -->         from here on the source must not
                                             <--  RUNS  it runs here
    LETG  injections that came meanwhile     -->
                                             <--  DONE  what became of them
    FAIL  why not                            <->         instead of any of these, but for CMIT and what follows

Post-copy leaves the last pages out, says LACK (which they are) before DESC, and goes on after DONE:

                                             <--  LACK  which they are now, see lacking.py
                                             <--  WANT  these at once
    GIVE  here they are                      -->
    PAGE, ZERO ...                           -->         the others
                                             <--  GOT   so much has come
                                             <--  HAVE  everything is here
    HAVE  farewell                           -->

HAVE from there tells, too, that the guest has ended or was reset, and needs no more; FAIL that it is lost.

After a broken connection it begins again with HELO, LETG, DONE, LACK.

ERLY and the second REDY are left out where the first REDY says that all stands. A file holds what
the source says up to END, without ERLY.

One of the two may run the guest, at every moment. Up to CMIT that is the
source: whatever goes wrong, the guest goes on there. From RUNS on it is the
destination. In between the source cannot know whether CMIT has arrived, so
it runs nothing and asks: it connects again and says HELO with the same
migration, and the destination says how far it has got.
"""

from __future__ import annotations

import enum

from .detour import Answer, Held
from .identity import Identity
from .sections import Record

__all__ = ["Commit", "Done", "Failure", "Hello", "Kind", "LetGo", "Loaded", "Ready", "Running", "Stage"]


class Kind:
    """The frames of messages."""

    HELLO = b"HELO"
    CONFIGURATION = b"CONF"
    READY = b"REDY"
    EARLY = b"ERLY"
    LOADED = b"LOAD"
    COMMIT = b"CMIT"
    RUNNING = b"RUNS"
    LET_GO = b"LETG"
    DONE = b"DONE"
    FAILURE = b"FAIL"
    STAY = b"STAY"
    LACK = b"LACK"
    WANT = b"WANT"
    GIVE = b"GIVE"
    GOT = b"GOT "
    HAVE = b"HAVE"


class Stage(enum.StrEnum):
    """How far a migration has got at the destination."""

    NEW = "new"
    LOADED = "loaded"  # and waits for the word to run it
    RUNNING = "running"
    SETTLED = "settled"  # and the source knows it


class Hello(Record, frozen=True):
    """HELO. `migration` is 16 random bytes; `asks` tells that this is not the beginning: how far has it got?

    `serves` tells that here are the pages of a file, for whoever fetches them: see served.py.
    """

    migration: bytes
    product: str
    who: Identity | None = None
    asks: bool = False
    stage: Stage = Stage.NEW
    serves: bool = False


class Ready(Record, frozen=True):
    """REDY. Without `stands` it takes RAM, and the machine is being started; a second REDY says when it stands."""

    stands: bool = True


class Loaded(Record, frozen=True):
    """LOAD."""


class Commit(Record, frozen=True):
    """CMIT. A guest that was paused stays so."""

    paused: bool = False


class Running(Record, frozen=True):
    """RUNS."""


class LetGo(Record, frozen=True):
    """LETG."""

    held: tuple[Held, ...] = ()


class Done(Record, frozen=True):
    """DONE."""

    answers: tuple[Answer, ...] = ()


class Failure(Record, frozen=True):
    """FAIL. `section` and `offset` say where a stream was damaged, if that is why."""

    message: str
    hint: str = ""
