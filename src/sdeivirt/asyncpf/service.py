# SPDX-License-Identifier: Apache-2.0
"""Asynchronous page faults put together: the machine's questions, the guest's calls, power and moving.

A machine asks :meth:`AsyncPf.not_present` when a vCPU touches a page that is
not here, and says :meth:`AsyncPf.ready` when that has come. Whoever calls does
so as for the SDEI service, with the lock of the machine, and afterwards looks
at :meth:`AsyncPf.take_interrupts`.
"""

from __future__ import annotations

from ..sdei.model import Handler, Pe
from ..sdei.observer import Observer
from ..sdei.service import Sdei
from ..sdei.states import State
from ..smccc.ids import Owner
from ..smccc.router import Service
from .abi import ASYNC_PF_CALL, RING_ENTRIES, SERVICE_BIT, SLOTS, WAKE_ALL, Control, Reason
from .block import ControlBlock, ControlMemory
from .calls import Calls
from .settings import AsyncPfSettings
from .state import PeFaults

__all__ = ["AsyncPf"]

# Plain numbers: these are compared for each fault.
_NOT_PRESENT, _READY, _REFUSED = int(Reason.NOT_PRESENT), int(Reason.READY), int(Reason.REFUSED)
_ENABLED = int(State.ENABLED)
_REGISTERED = int(State.REGISTERED)
_SEND_ALWAYS = int(Control.SEND_ALWAYS)
_RING = int(Control.RING)
_M32 = 0xFFFF_FFFF


class AsyncPf:
    """The service for the PEs of `sdei`; control blocks are in `memory`.

    `interrupts` are the PEs whose PPI is to be raised; `blocked` tells that a
    ready token could not be told because the control block is absent now, and
    :meth:`retry` is to be called when pages have come.
    """

    def __init__(self, sdei: Sdei, memory: ControlMemory, settings: AsyncPfSettings) -> None:
        self.settings = settings
        self.interrupts = 0
        self.blocked = False
        self._pes = sdei.pes
        self._delivery = sdei.delivery
        self._memory = memory
        self._event = sdei.bindings.known.get(settings.event) if settings.sdei else None
        self._calls = Calls(self)
        if settings.on:
            for pe in self._pes:
                pe.async_pf = PeFaults(settings)
            sdei.observe(_Power(self))

    def service(self) -> Service:
        """The call as an SMCCC service; bit 2 of the vendor-hyp bitmap switches it."""
        return Service(
            name="async-pf",
            owner=Owner.VENDOR_HYP,
            ranges=(range(ASYNC_PF_CALL & 0xFFFF, (ASYNC_PF_CALL & 0xFFFF) + 1),),
            functions={ASYNC_PF_CALL: self._calls.call},
            bit=SERVICE_BIT,
        )

    # -- the machine's side

    def not_present(self, pe: Pe, *, user: bool) -> int | None:
        """A PE has touched a page that is not here, at EL0 if `user`: the token by which the guest was told.

        The event is pending on the PE then, or the PPI asked for. None: it was
        not told, and the PE has to wait for the page.
        """
        state = pe.async_pf
        if state is None:
            return None
        token = self._tell_not_present(pe, state) if state.control and self._may_tell(pe, state, user) else None
        if token is None:
            state.waits += 1
        return token

    def ready(self, pe: Pe, token: int) -> None:
        """The page that a token is about has come. A token that is void by now is ignored."""
        state = pe.async_pf
        if state is None or token not in state.outstanding:
            return
        if token == state.mailbox and self._unread(pe, state):
            return
        del state.outstanding[token]
        state.ready.append(token)
        self.tell_ready(pe)

    def retry(self) -> None:
        """Tell what could not be told before, now that pages have come."""
        self.blocked = False
        for pe in self._pes:
            self.tell_ready(pe)

    def take_interrupts(self) -> int:
        """A bitmap of the PEs whose PPI, INTID `settings.intid`, is to be made pending; asked once."""
        interrupts, self.interrupts = self.interrupts, 0
        return interrupts

    def pe_off(self, pe: Pe) -> None:
        """A PE is turned off, or reset: the service is not enabled there any more, and all its tokens are void."""
        if pe.async_pf is not None:
            pe.async_pf.disable()
            self.interrupts &= ~pe.bit

    def reset(self) -> None:
        """The system is reset."""
        for pe in self._pes:
            self.pe_off(pe)

    def restored(self) -> None:
        """The guest has come here with its state: what was outstanding where it came from is answered.

        Pages that are not here are waited for anew, with other tokens, when the tasks touch them.
        """
        for pe in self._pes:
            state = pe.async_pf
            if state is None or not state.control:
                continue
            self._mailbox_is_empty(state, ControlBlock(self._memory, state.address))
            state.ready += state.outstanding
            state.outstanding = {}
            if not state.sdei:
                state.wake_all()
            self.tell_ready(pe)
            if self._unheard(state):
                self.interrupts |= pe.bit

    # -- not present

    def _may_tell(self, pe: Pe, state: PeFaults, user: bool) -> bool:
        """Whether the PE can be told now, as far as that does not depend on its control block."""
        if not user and not state.control & _SEND_ALWAYS:
            return False
        # Nothing else may come between the fault and the handler, which is told of the task that runs.
        delivery = self._delivery
        if pe.normal is not None or pe.critical is not None:
            return False
        if (pe.ready or delivery.shared_ready) and delivery.next(pe) is not None:
            return False
        if state.sdei:
            handler = self.handler(pe)
            if handler is None or pe.masked or handler.state != _ENABLED:
                return False
        return state.pending < SLOTS

    def _tell_not_present(self, pe: Pe, state: PeFaults) -> int | None:
        block = ControlBlock(self._memory, state.address)
        if not self._mailbox_is_empty(state, block) or state.refused:
            state.refused = False
            return None
        token = state.next_token(pe.index)
        if not block.post(_NOT_PRESENT, token):
            return None
        state.outstanding[token] = None
        state.mailbox = token
        state.told += 1
        handler = self.handler(pe) if state.sdei else None
        if handler is not None:
            state.deliveries = handler.delivered
            self._delivery.post(handler)
        else:
            self.interrupts |= pe.bit
        return token

    def handler(self, pe: Pe) -> Handler | None:
        """The handler of the event on a PE; None where it never registered one."""
        return pe.handlers.get(self._event.index) if self._event is not None else None

    def registered(self, pe: Pe) -> bool:
        """Whether a PE has the event registered."""
        handler = self.handler(pe)
        return handler is not None and bool(handler.state & _REGISTERED)

    # -- the mailbox

    def _mailbox_is_empty(self, state: PeFaults, block: ControlBlock) -> bool:
        """Look into the mailbox: take a refusal out of it, and note that the guest has read what was there."""
        found = block.mailbox()
        if found is None:
            return False
        if found[0] == _REFUSED:
            self._refused(state, block)
        elif found != (0, 0):
            return False
        state.mailbox = 0
        return True

    def _refused(self, state: PeFaults, block: ControlBlock) -> None:
        """The guest has written REFUSED: the token is void, and the access that is tried again waits for its page."""
        block.clear()
        if state.mailbox:
            # A page that came first may have its ready token in the ring already: that was answered, and stays so.
            state.refusals += state.mailbox in state.outstanding or state.mailbox in state.ready
            state.refused = state.forget(state.mailbox)

    def _unread(self, pe: Pe, state: PeFaults) -> bool:
        """The page of the last not-present has come: whether there is no need to tell, since nobody waits for it.

        Either it was refused; or the event has gone, by a cancellation or because the guest has
        unregistered it, before its handler was entered.
        """
        block = ControlBlock(self._memory, state.address)
        found = block.mailbox()
        if found is None:
            return False
        unread = False
        if found[0] == _REFUSED:
            self._refused(state, block)
            state.refused = False  # the page is here
            unread = True
        elif state.sdei and found == (_NOT_PRESENT, state.mailbox) and self._dropped(pe, state):
            block.clear()
            state.forget(state.mailbox)
            unread = True
        elif found != (0, 0):
            return False
        state.mailbox = 0
        return unread

    def _dropped(self, pe: Pe, state: PeFaults) -> bool:
        handler = self.handler(pe)
        return handler is not None and not handler.pending and handler.delivered == state.deliveries

    # -- ready

    def tell_ready(self, pe: Pe) -> None:
        """Tell of pages that have come, as far as there is room."""
        state = pe.async_pf
        if state is None or not state.ready:
            return
        if state.control & _RING:
            self._fill_ring(pe, state)
        elif not state.unacknowledged:
            self._fill_mailbox(pe, state)

    def _fill_mailbox(self, pe: Pe, state: PeFaults) -> None:
        block = ControlBlock(self._memory, state.address)
        if block.mailbox() is None:
            self.blocked = True  # and only then look again: whoever brings the page looks at this after it
        if not self._mailbox_is_empty(state, block) or not state.ready:
            return
        if not block.post(_READY, state.ready[0]):  # the page has gone just now
            self.blocked = True
            if not block.post(_READY, state.ready[0]):
                return
        state.answered += state.ready.pop(0) != WAKE_ALL
        state.unacknowledged = True
        self.interrupts |= pe.bit

    def _fill_ring(self, pe: Pe, state: PeFaults) -> None:
        block = ControlBlock(self._memory, state.address)
        tail = block.tail()
        if tail is None:
            self.blocked = True  # as above
            tail = block.tail()
        if tail is None:
            return
        if state.mailbox in state.ready:
            self._mailbox_is_empty(state, block)  # it may have been refused
        # A tail that cannot be makes the ring look full.
        tokens = state.ready[: max(RING_ENTRIES - (state.head - tail & _M32), 0)]
        if not tokens:
            return
        if not block.append(state.head, tokens):  # the page has gone just now
            self.blocked = True
            if not block.append(state.head, tokens):
                return
        del state.ready[: len(tokens)]
        state.answered += len(tokens) - tokens.count(WAKE_ALL)
        state.head = state.head + len(tokens) & _M32
        self.interrupts |= pe.bit

    def _unheard(self, state: PeFaults) -> bool:
        """Whether the PE may have been told something that it has not taken yet: an interrupt too many does no harm."""
        block = ControlBlock(self._memory, state.address)
        if state.control & _RING and block.tail() != state.head:
            return True
        return state.unacknowledged or (not state.sdei and block.mailbox() != (0, 0))

    # -- the guest's calls; calls.py has checked the arguments

    def covers(self, address: int, size: int) -> bool:
        """Whether a control block can be there."""
        return self._memory.covers(address, size)

    def enable(self, pe: Pe, state: PeFaults, control: int, sdei: bool) -> None:
        """Tell a PE from now on, by a control block that may be another than before."""
        if state.control:
            self._mailbox_is_empty(state, ControlBlock(self._memory, state.address))
        state.control, state.sdei = control, sdei
        state.head = 0
        state.unacknowledged = state.refused = False
        if not sdei:
            state.wake_all()
        self.tell_ready(pe)

    def acknowledge(self, pe: Pe, state: PeFaults) -> None:
        """The guest has taken what the interrupt told."""
        state.unacknowledged = False
        if state.control:
            self._mailbox_is_empty(state, ControlBlock(self._memory, state.address))
        self.tell_ready(pe)


class _Power(Observer):
    """PEs that are turned off or reset."""

    def __init__(self, service: AsyncPf) -> None:
        self._service = service

    def abandoned(self, pe: Pe) -> None:
        self._service.pe_off(pe)
