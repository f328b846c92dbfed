# SPDX-License-Identifier: Apache-2.0
"""The registers of asynchronous page faults, of each vCPU.

    CONTROL    the control word, 0 while the service is not enabled
    INTERRUPT  the PPI's INTID; does not change
    STATE      below, STATE_*
    RING       31:0 how many tokens have been put into the ring, modulo 2**32
    TOKENS     up to 64 tokens of 32 bits that were told as not present and whose pages have not come; then zeroes
    READY      the same for those whose pages have come, and that are to be told so
    COUNTS     told 63:0, answered 127:64, refused 191:128, waits 255:192

They hold what a running service knows. A guest that comes from elsewhere goes
on from them by :meth:`AsyncPf.restored`.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from ..asyncpf import AsyncPfSettings
from ..asyncpf.abi import CONTROL_FLAGS, CONTROL_KNOWN, SLOTS, TOKEN_ID_SHIFT, TOKEN_IDS, TOKEN_VCPU, WAKE_ALL, Control
from ..asyncpf.calls import fits
from ..asyncpf.state import PeFaults
from . import ids
from .ids import Impossible, Kind
from .values import MAX_COUNT

if TYPE_CHECKING:
    from ..sdei.model import Pe

__all__ = ["describe", "make", "read"]

STATE_SDEI = 1 << 0  # not-present is told by the event
STATE_UNACKNOWLEDGED = 1 << 1  # IRQ_ACK has not come yet
STATE_REFUSED = 1 << 2  # the next fault is the one that was refused, and waits
STATE_LAST_ID_SHIFT = 16  # 31:16, the running number of the last token
STATE_MAILBOX_SHIFT = 32  # 47:32, that of the token in the mailbox, as far as is known; or 0
STATE_FLAGS = STATE_SDEI | STATE_UNACKNOWLEDGED | STATE_REFUSED
STATE_ALL = STATE_FLAGS | TOKEN_IDS << STATE_LAST_ID_SHIFT | TOKEN_IDS << STATE_MAILBOX_SHIFT

_TOKENS = struct.Struct(f"<{SLOTS}I")
_COUNTS = struct.Struct("<4Q")
_M32 = 0xFFFF_FFFF
_FLAGS = ("told by the event", "unacknowledged", "refused")
_COUNT_NAMES = ("told", "answered", "refused", "waits")


def read(pe: Pe, every: bool) -> dict[int, int]:
    """The registers of a vCPU; those as after reset only with `every`. None where the platform has no such thing."""
    state = pe.async_pf
    if state is None:
        return {}
    word = STATE_SDEI * state.sdei | STATE_UNACKNOWLEDGED * state.unacknowledged | STATE_REFUSED * state.refused
    word |= state.last_id << STATE_LAST_ID_SHIFT | state.mailbox >> TOKEN_ID_SHIFT << STATE_MAILBOX_SHIFT
    found = {
        ids.ASYNC_PF_CONTROL: state.control,
        ids.ASYNC_PF_INTERRUPT: state.settings.intid,
        ids.ASYNC_PF_STATE: word,
        ids.ASYNC_PF_RING: state.head,
        ids.ASYNC_PF_TOKENS: _pack(list(state.outstanding)),
        ids.ASYNC_PF_READY: _pack(state.ready),
        ids.ASYNC_PF_COUNTS: int.from_bytes(
            _COUNTS.pack(state.told, state.answered, state.refusals, state.waits), "little"
        ),
    }
    return {kind.id: value for kind, value in found.items() if every or value}


def _pack(tokens: list[int]) -> int:
    return int.from_bytes(_TOKENS.pack(*tokens, *[0] * (SLOTS - len(tokens))), "little")


def _unpack(value: int) -> list[int]:
    """The tokens, without the zeroes behind them."""
    found = list(_TOKENS.unpack(value.to_bytes(_TOKENS.size, "little")))
    while found and not found[-1]:
        found.pop()
    return found


# -- the way back


def make(pe: Pe, online: bool, values: dict[Kind, int]) -> PeFaults | None:
    """What the registers of a vCPU that is on or off say; what is not there is as after reset. Raises Impossible."""
    if pe.async_pf is None:
        for kind, value in values.items():
            if value:
                reason = "it must be 0, since there are no asynchronous page faults here"
                raise Impossible(kind.id, pe.index, reason, "use a VM with the same --async-pf")
        return None
    return _Maker(pe, online, values, pe.async_pf.settings).made


class _Maker:
    def __init__(self, pe: Pe, online: bool, values: dict[Kind, int], settings: AsyncPfSettings) -> None:
        self._pe = pe
        self._values = values
        self._settings = settings
        self.made = PeFaults(settings)
        intid = values.get(ids.ASYNC_PF_INTERRUPT, settings.intid)
        if intid != settings.intid:
            raise self._refuse(ids.ASYNC_PF_INTERRUPT, f"it is {settings.intid} here, and cannot be {intid}")
        self._state()
        self._control(online)
        self._ring()
        self._tokens()
        self._counts()

    def _value(self, kind: Kind) -> int:
        return self._values.get(kind, 0)

    def _refuse(self, kind: Kind, reason: str) -> Impossible:
        return Impossible(kind.id, self._pe.index, reason)

    def _state(self) -> None:
        word, made = self._value(ids.ASYNC_PF_STATE), self.made
        if word & ~STATE_ALL:
            raise self._refuse(ids.ASYNC_PF_STATE, f"it has no bits {word & ~STATE_ALL:#x}")
        made.sdei = bool(word & STATE_SDEI)
        made.unacknowledged = bool(word & STATE_UNACKNOWLEDGED)
        made.refused = bool(word & STATE_REFUSED)
        made.last_id = word >> STATE_LAST_ID_SHIFT & TOKEN_IDS
        mailbox = word >> STATE_MAILBOX_SHIFT & TOKEN_IDS
        made.mailbox = mailbox << TOKEN_ID_SHIFT | self._pe.index if mailbox else 0

    def _control(self, online: bool) -> None:
        control, made = self._value(ids.ASYNC_PF_CONTROL), self.made
        made.control = control
        if not control:
            if self._value(ids.ASYNC_PF_STATE) & ~(TOKEN_IDS << STATE_LAST_ID_SHIFT):
                raise self._refuse(ids.ASYNC_PF_STATE, f"it is not all zero, but {ids.ASYNC_PF_CONTROL.name} is 0")
            return
        if control & CONTROL_FLAGS & ~CONTROL_KNOWN:
            unknown = control & CONTROL_FLAGS & ~CONTROL_KNOWN
            raise self._refuse(ids.ASYNC_PF_CONTROL, f"it has no bits {unknown:#x}")
        if not control & Control.ENABLED:
            raise self._refuse(ids.ASYNC_PF_CONTROL, "it is not all zero, but does not enable")
        if not online:
            raise self._refuse(ids.ASYNC_PF_CONTROL, "it enables, but the vCPU is off")
        if not (self._settings.sdei if made.sdei else self._settings.ppi):
            how = "the event" if made.sdei else "the PPI"
            raise self._refuse(ids.ASYNC_PF_STATE, f"not-present is told by {how}, which is not offered here")
        if not fits(control, made.sdei):
            raise self._refuse(ids.ASYNC_PF_CONTROL, f"no guest can have set it to {control:#x}")

    def _ring(self) -> None:
        head = self._value(ids.ASYNC_PF_RING)
        if head > _M32 or (head and not self.made.control & Control.RING):
            raise self._refuse(ids.ASYNC_PF_RING, f"it cannot be {head:#x} under this control word")
        self.made.head = head

    def _tokens(self) -> None:
        taken: set[int] = set()
        for kind in (ids.ASYNC_PF_TOKENS, ids.ASYNC_PF_READY):
            tokens = _unpack(self._value(kind))
            if tokens and not self.made.control:
                raise self._refuse(kind, f"it holds tokens, but {ids.ASYNC_PF_CONTROL.name} is 0")
            for token in tokens:
                if not self._is_token(token) and not (token == WAKE_ALL and kind is ids.ASYNC_PF_READY):
                    raise self._refuse(kind, f"vCPU {self._pe.index} has no token {token:#x}")
                if token in taken:
                    raise self._refuse(kind, f"token {token:#x} stands twice")
                taken.add(token)
            if len(taken) > SLOTS:
                raise self._refuse(kind, f"there are {len(taken)} tokens, and {SLOTS} slots")
            if kind is ids.ASYNC_PF_TOKENS:
                self.made.outstanding = dict.fromkeys(tokens)
            else:
                self.made.ready = tokens

    def _is_token(self, token: int) -> bool:
        return 0 < token >> TOKEN_ID_SHIFT <= TOKEN_IDS and token & TOKEN_VCPU == self._pe.index

    def _counts(self) -> None:
        counts = _COUNTS.unpack(self._value(ids.ASYNC_PF_COUNTS).to_bytes(_COUNTS.size, "little"))
        if max(counts) > MAX_COUNT:
            reason = f"a count of {max(counts)} is more than the 62 bits that it has"
            raise self._refuse(ids.ASYNC_PF_COUNTS, reason)
        self.made.told, self.made.answered, self.made.refusals, self.made.waits = counts


# -- for people


def describe(kind: Kind, value: int) -> str:
    """What a value says, in words."""
    if kind is ids.ASYNC_PF_CONTROL:
        names = [flag.name.lower().replace("_", " ") for flag in Control if value & flag and flag.name]
        return f"{', '.join(names)}, block at {value & ~CONTROL_FLAGS:#x}" if value else "-"
    if kind is ids.ASYNC_PF_STATE:
        words = [name for bit, name in enumerate(_FLAGS) if value >> bit & 1]
        words.append(f"last token {value >> STATE_LAST_ID_SHIFT & TOKEN_IDS:#x}")
        if mailbox := value >> STATE_MAILBOX_SHIFT & TOKEN_IDS:
            words.append(f"in the mailbox {mailbox:#x}")
        return ", ".join(words) if value else "-"
    if kind is ids.ASYNC_PF_COUNTS:
        counts = _COUNTS.unpack(value.to_bytes(_COUNTS.size, "little"))
        return ", ".join(f"{count} {name}" for count, name in zip(counts, _COUNT_NAMES, strict=True))
    if kind in (ids.ASYNC_PF_TOKENS, ids.ASYNC_PF_READY):
        return ", ".join(f"{token:#x}" for token in _unpack(value)) or "none"
    return str(value)
