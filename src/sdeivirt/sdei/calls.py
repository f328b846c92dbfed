# SPDX-License-Identifier: Apache-2.0
"""The nineteen calls, DEN0054C 5.1. Each takes the calling PE and its window, and gives x0.

Event numbers, interrupt numbers and status words are 32-bit parameters: their
high halves are noise and ignored. Where DEN0054C leaves the order of checks
open, the policy says whose order is followed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from ..cpu import AFFINITY_MASK, M64, PC, PSTATE, SCTLR, RegisterView
from ..smccc.router import Disposition, Result
from .abi import REGISTER_RELATIVE, REGISTER_RM_PE, Feature, Function, Info, Status, version_word
from .bindings import Bindings
from .delivery import Delivery
from .model import Handler, Pe, bits
from .policy import Policy
from .states import CELLS, Cell, Op, State

__all__ = ["Calls"]

_M32 = 0xFFFF_FFFF
# Plain numbers: these are compared and returned on every call.
_SUCCESS = int(Status.SUCCESS)
_INVALID = int(Status.INVALID_PARAMETERS)
_DENIED = int(Status.DENIED)
_PENDING = int(Status.PENDING)
_UNREGISTERED = int(State.UNREGISTERED)
_REGISTERED = int(State.REGISTERED)
_UNREGISTER_PENDING = int(State.UNREGISTER_PENDING)
_ENABLED_BITS = int(State.ENABLED)

_REGISTER = CELLS[Op.REGISTER]
_ENABLE = CELLS[Op.ENABLE]
_DISABLE = CELLS[Op.DISABLE]
_UNREGISTER = CELLS[Op.UNREGISTER]
_ROUTING_SET = CELLS[Op.ROUTING_SET]

Call = Callable[[Pe, RegisterView], Result]


class Calls:
    """The calls over one :class:`Delivery`. `table` maps function ids to them."""

    def __init__(self, policy: Policy, delivery: Delivery, bindings: Bindings) -> None:
        self._policy = policy
        self._delivery = delivery
        self._bindings = bindings
        self._known = bindings.known
        self._by_affinity = {pe.affinity: pe for pe in delivery.pes}
        self._version = version_word(*policy.version, policy.vendor)
        self._flags = REGISTER_RM_PE | (REGISTER_RELATIVE if policy.relative_mode else 0)
        self.table: Mapping[int, Call] = {
            Function.VERSION: self.version,
            Function.EVENT_REGISTER: self.event_register,
            Function.EVENT_ENABLE: self.event_enable,
            Function.EVENT_DISABLE: self.event_disable,
            Function.EVENT_CONTEXT: self.event_context,
            Function.EVENT_COMPLETE: self.event_complete,
            Function.EVENT_COMPLETE_AND_RESUME: self.event_complete_and_resume,
            Function.EVENT_UNREGISTER: self.event_unregister,
            Function.EVENT_STATUS: self.event_status,
            Function.EVENT_GET_INFO: self.event_get_info,
            Function.EVENT_ROUTING_SET: self.event_routing_set,
            Function.PE_MASK: self.pe_mask,
            Function.PE_UNMASK: self.pe_unmask,
            Function.INTERRUPT_BIND: self.interrupt_bind,
            Function.INTERRUPT_RELEASE: self.interrupt_release,
            Function.EVENT_SIGNAL: self.event_signal,
            Function.FEATURES: self.features,
            Function.PRIVATE_RESET: self.private_reset,
            Function.SHARED_RESET: self.shared_reset,
        }

    def target(self, affinity: int) -> Pe | None:
        """The PE of an affinity; bits of MPIDR_EL1 that are not affinity do not count."""
        return self._by_affinity.get(affinity & AFFINITY_MASK)

    # -- what there is

    def version(self, _pe: Pe, _view: RegisterView) -> Result:
        return self._version

    def features(self, _pe: Pe, view: RegisterView) -> Result:
        feature = view.x[1] & _M32
        if feature == Feature.BIND_SLOTS:
            return self._policy.shared_slots << 16 | self._policy.private_slots
        if feature == Feature.RELATIVE_MODE and self._policy.relative_mode:
            return 1
        return _INVALID

    def event_get_info(self, pe: Pe, view: RegisterView) -> Result:
        x = view.x
        event = self._known.get(x[1] & _M32)
        info = x[2] & _M32
        if event is None:
            return _INVALID
        if info == Info.TYPE:
            return int(event.shared)
        if info == Info.SIGNALED:
            return int(event.signalable != self._policy.signaled_inverted)
        if info == Info.PRIORITY:
            return int(event.priority)
        if info not in (Info.ROUTING_MODE, Info.ROUTING_AFFINITY) or not event.shared:
            return _INVALID
        handler = event.handler
        if handler.state in (_UNREGISTERED, _UNREGISTER_PENDING):
            return _DENIED
        if info == Info.ROUTING_MODE:
            return int(handler.target is not None)
        return handler.target.affinity if handler.target is not None else _INVALID

    # -- the life of a handler

    def event_register(self, pe: Pe, view: RegisterView) -> Result:
        x = view.x
        entry, argument, flags = x[2], x[3], x[4]
        event = self._known.get(x[1] & _M32)
        # An entry point that no instruction can have is refused here rather than as
        # an alignment fault at the worst moment. Zero is an offset in relative mode only.
        if event is None or flags & ~self._flags or entry & 3 or not (entry or flags & REGISTER_RELATIVE):
            return _INVALID
        target: Pe | None = None
        if flags & REGISTER_RM_PE and (event.shared or self._policy.private_affinity_checked):
            target = self.target(x[5])
            if target is None:
                return _INVALID
        if event.dynamic and event.interrupt is None:
            return _DENIED
        handler = pe.handler_of(event)
        state, status = _REGISTER[handler.state]
        if status:
            return status
        if event.shared:
            self._delivery.shared_registered |= event.bit
        else:
            if handler is event.handler:
                handler = pe.handlers[event.index] = Handler(event, pe)
            pe.registered |= event.bit
            target = pe
        event.registrations += 1
        handler.target = target
        handler.entry = entry
        handler.argument = argument
        handler.relative = bool(flags & REGISTER_RELATIVE)
        handler.state = state
        return _SUCCESS

    def event_enable(self, pe: Pe, view: RegisterView) -> Result:
        return self._switch(pe, view, _ENABLE)

    def event_disable(self, pe: Pe, view: RegisterView) -> Result:
        return self._switch(pe, view, _DISABLE)

    def _switch(self, pe: Pe, view: RegisterView, cells: tuple[Cell, ...]) -> int:
        event = self._known.get(view.x[1] & _M32)
        if event is None:
            return _INVALID
        handler = pe.handler_of(event)
        state, status = cells[handler.state]
        if state != handler.state:
            self._delivery.change(handler, state)
        return status

    def event_unregister(self, pe: Pe, view: RegisterView) -> Result:
        event = self._known.get(view.x[1] & _M32)
        if event is None:
            return _INVALID
        return self._unregister(pe.handler_of(event))

    def _unregister(self, handler: Handler) -> int:
        old = handler.state
        state, status = _UNREGISTER[old]
        if state != old:
            self._delivery.change(handler, state)
            if state == _UNREGISTERED:
                self._delivery.released(handler)
            else:
                self._delivery.drop(handler)  # what is pending goes with the registration
        return status

    def event_status(self, pe: Pe, view: RegisterView) -> Result:
        event = self._known.get(view.x[1] & _M32)
        if event is None:
            return _INVALID
        return pe.handler_of(event).state

    def event_routing_set(self, _pe: Pe, view: RegisterView) -> Result:
        x = view.x
        mode = x[2]
        if mode not in (0, REGISTER_RM_PE):
            return _INVALID
        target = self.target(x[3]) if mode else None
        event = self._known.get(x[1] & _M32)
        if event is None or not event.shared or (mode and target is None):
            return _INVALID
        if event.dynamic and event.interrupt is None:
            return _INVALID
        handler = event.handler
        status = _ROUTING_SET[handler.state][1]
        if status == _SUCCESS:
            handler.target = target  # not enabled, so not ready: no bitmap knows the old target
        return status

    # -- inside a handler

    def event_context(self, pe: Pe, view: RegisterView) -> Result:
        index = view.x[1] & _M32
        frame = pe.critical or pe.normal
        if frame is None:
            return _INVALID if index >= 18 and self._policy.context_index_first else _DENIED
        if index >= 18:
            return _INVALID
        register: int = memoryview(frame.saved).cast("Q")[index]
        return register, 0, 0, 0

    def event_complete(self, pe: Pe, view: RegisterView) -> Result:
        if pe.normal is None and pe.critical is None:
            return _DENIED
        x = view.x
        view.context[:] = self._delivery.leave(pe, x[1] & _M32 != 0)
        return Disposition.CONTEXT

    def event_complete_and_resume(self, pe: Pe, view: RegisterView) -> Result:
        if pe.normal is None and pe.critical is None:
            return _DENIED
        x = view.x
        resume = x[1]
        if resume & 3:
            return _DENIED
        view.fetch_rest()  # for SCTLR_EL1, which shapes PSTATE
        view.context[:] = self._delivery.leave(pe)
        # The client goes on as if it had taken an exception at the interrupted
        # instruction to the resume address, DEN0054C 5.1.7.
        view.set_exception_return(x[PC], x[PSTATE])
        x[PSTATE] = pe.features.exception_entry(x[PSTATE], x[SCTLR])
        x[PC] = resume & M64
        return Disposition.CONTEXT

    # -- the PE

    def pe_mask(self, pe: Pe, _view: RegisterView) -> Result:
        if pe.masked:
            return 0
        pe.masked = True
        self._delivery.refresh(pe)
        return 1

    def pe_unmask(self, pe: Pe, _view: RegisterView) -> Result:
        if pe.masked:
            pe.masked = False
            self._delivery.refresh(pe)
        return 0

    # -- raising events

    def event_signal(self, _pe: Pe, view: RegisterView) -> Result:
        x = view.x
        event = self._known.get(x[1] & _M32)
        if event is None or not event.signalable:
            return _INVALID
        target = self._by_affinity.get(x[2] & AFFINITY_MASK)
        if target is None:
            return _INVALID
        handler = target.handlers.get(event.index)
        # An unregistered handler, or one about to be, is no target under any policy.
        if handler is None or not handler.state & _REGISTERED:
            return _INVALID
        if not self._policy.signal_pends:
            # One that sleeps is masked only once it wakes up.
            masked = target.masked and not target.wakeable
            if masked or handler.state & _ENABLED_BITS != _ENABLED_BITS:
                return _INVALID
        self._delivery.post(handler)
        return 0

    def interrupt_bind(self, _pe: Pe, view: RegisterView) -> Result:
        return self._bindings.bind(view.x[1] & _M32)

    def interrupt_release(self, _pe: Pe, view: RegisterView) -> Result:
        event = self._known.get(view.x[1] & _M32)
        return _INVALID if event is None else self._bindings.release(event)

    # -- resets

    def private_reset(self, pe: Pe, _view: RegisterView) -> Result:
        return self._reset_all(pe.handlers[index] for index in bits(pe.registered))

    def shared_reset(self, _pe: Pe, _view: RegisterView) -> Result:
        events = self._delivery.events
        registered = self._delivery.shared_registered
        status = self._reset_all(events[index].handler for index in bits(registered))
        return status or self._bindings.release_all()

    def _reset_all(self, handlers: Iterable[Handler]) -> int:
        # All that can go goes, DEN0054C 5.1.18; one that runs becomes unregister-pending.
        status = _SUCCESS
        for handler in handlers:
            if self._unregister(handler) == _PENDING:
                status = _DENIED
        return status
