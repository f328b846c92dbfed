# SPDX-License-Identifier: Apache-2.0
"""The SDEI service put together: the guest's calls, the host's injections, the PEs' power.

Guests come in through :meth:`Sdei.service`, an SMCCC service; machines tell
of power changes; hosts inject and cancel. Whoever calls must not do so from
two threads at once, and afterwards kicks the PEs in :meth:`Sdei.take_kicks`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..cpu import CpuFeatures, affinity_of_index
from ..errors import EventRunningError, NotRegisteredError, UnknownEventError, UnknownVcpuError, UsageError
from ..smccc.ids import Owner
from ..smccc.router import Service
from .abi import FUNCTION_NUMBERS
from .bindings import Bindings, make_events
from .calls import Calls
from .delivery import Delivery
from .events import EventDefinition, check_events
from .model import Event, Handler, Pe
from .observer import Observer
from .policy import KVM, Policy
from .states import State

__all__ = ["Sdei", "Injection"]


@dataclass(frozen=True, slots=True)
class Injection:
    """What became of an injection.

    `vcpu` is the index of the PE that will take the event, None for a shared
    event that any may take. `waits` says what it still waits for: "" (nothing:
    it is being delivered), "disabled", "running", "masked", "offline", "busy"
    (another handler of the same or a higher priority runs there) or "paused"
    (the machine is).
    `coalesced` tells that it was pending already.
    """

    event: int
    vcpu: int | None
    waits: str
    coalesced: bool


class Sdei:
    """The whole service for PEs of the given affinities (MPIDR_EL1 Aff3..Aff0 each).

    Raises EventFileError where the definitions contradict each other.
    """

    def __init__(
        self,
        pes: int | Sequence[int] = 1,
        events: Iterable[EventDefinition] = (),
        policy: Policy = KVM,
        features: CpuFeatures | None = None,
    ) -> None:
        affinities = [affinity_of_index(i) for i in range(pes)] if isinstance(pes, int) else list(pes)
        if len(set(affinities)) != len(affinities) or not affinities:
            raise UsageError("every PE needs an affinity of its own")
        self.policy = policy
        self.pes = [Pe(i, affinity, features or CpuFeatures()) for i, affinity in enumerate(affinities)]
        self.events = make_events(list(check_events(events)), policy)
        self.delivery = Delivery(self.pes, self.events, clear_registers=policy.clear_registers)
        self.bindings = Bindings(self.events, policy)
        self.calls = Calls(policy, self.delivery, self.bindings)

    def service(self) -> Service:
        """The calls as an SMCCC service; bit 1 of the standard bitmap switches them."""
        return Service(
            name="std-sdei",
            owner=Owner.STANDARD,
            ranges=(FUNCTION_NUMBERS,),
            functions={int(fid): call for fid, call in self.calls.table.items()},
            bit=1,
        )

    def observe(self, observer: Observer) -> None:
        """Call the hooks that `observer` overrides."""
        self.delivery.observe(observer)

    def take_kicks(self) -> int:
        """A bitmap of the PEs that must stop and look for an event; asked once."""
        return self.delivery.take_kicks()

    # -- the host's side

    def event(self, number: int) -> Event:
        """The event of a number. Raises UnknownEventError."""
        event = self.bindings.known.get(number)
        if event is None:
            numbers = [f"{n:#x}" for n in sorted(self.bindings.known)]
            shown = ", ".join(numbers[:8]) + (", ..." if len(numbers) > 8 else "")
            raise UnknownEventError(
                f"no event {number:#x} is defined", f"defined: {shown}; define more with --event or --events FILE"
            )
        return event

    def pe(self, vcpu: int) -> Pe:
        """The PE of an index. Raises UnknownVcpuError."""
        if not 0 <= vcpu < len(self.pes):
            raise UnknownVcpuError(f"there is no vCPU {vcpu}", f"vCPUs are 0 to {len(self.pes) - 1}")
        return self.pes[vcpu]

    def pe_of_affinity(self, affinity: int) -> Pe:
        """The PE of an affinity. Raises UnknownVcpuError."""
        pe = self.calls.target(affinity)
        if pe is None:
            shown = ", ".join(f"{pe.affinity:#x}" for pe in self.pes[:8]) + (", ..." if len(self.pes) > 8 else "")
            raise UnknownVcpuError(f"no vCPU has the affinity {affinity:#x}", f"affinities are {shown}")
        return pe

    def handler(self, number: int, vcpu: int | None) -> Handler:
        """The handler that an injection means.

        Raises UnknownEventError, UnknownVcpuError, UsageError (a vCPU named
        for a shared event that is routed elsewhere), NotRegisteredError.
        """
        event = self.event(number)
        if event.shared:
            if vcpu is not None:
                self.pe(vcpu)
                raise UsageError(
                    f"event {number:#x} is shared: the guest's routing chooses the vCPU", "leave the vCPU out"
                )
            handler, where = event.handler, "the guest"
        else:
            pe = self.pe(0 if vcpu is None else vcpu)
            handler, where = pe.handler_of(event), f"vCPU {pe.index}"
        if not handler.state & State.REGISTERED:
            raise NotRegisteredError(
                f"{where} has no handler registered for event {number:#x}",
                "wait until the guest has registered one: see `sdeivirt status`",
            )
        return handler

    def inject(self, number: int, vcpu: int | None = None) -> Injection:
        """Make an event pending, on `vcpu` (0 where None) if it is private. Errors as :meth:`handler`."""
        handler = self.handler(number, vcpu)
        coalesced = handler.pending
        self.delivery.post(handler)
        target = handler.target
        return Injection(number, target.index if target else None, self.why_it_waits(handler), coalesced)

    def cancel(self, number: int, vcpu: int | None = None) -> bool:
        """Take back a pending event; False if none was pending. Raises EventRunningError besides :meth:`handler`'s."""
        handler = self.handler(number, vcpu)
        if self.delivery.drop(handler):
            return True
        if handler.running_on is not None:
            raise EventRunningError(
                f"the handler of event {number:#x} runs on vCPU {handler.running_on.index}: too late to cancel",
                "it has been delivered; it ends when the guest completes it",
            )
        return False

    def interrupt(self, intid: int, vcpu: int = 0) -> bool:
        """A bound interrupt fired (`vcpu` counts for a PPI). False: it is not SDEI's, the guest takes it itself."""
        event = self.bindings.find(intid)
        if event is None:
            return False
        handler = self.pe(vcpu).handler_of(event)
        if not handler.state & State.REGISTERED:
            return False  # ownership moves at EVENT_REGISTER, DEN0054C 5.1.14
        self.delivery.post(handler)
        return True

    def why_it_waits(self, handler: Handler) -> str:
        """What a pending event waits for: see :attr:`Injection.waits`."""
        if not handler.state & 2:
            return "disabled"
        if handler.state & State.UNREGISTER_PENDING:
            return "running"
        candidates = [handler.target] if handler.target else [pe for pe in self.pes if pe.online]
        if all(not pe.online for pe in candidates):
            return "offline"
        if all(pe.masked for pe in candidates):
            return "masked"
        critical = bool(handler.event.priority)
        if all(pe.masked or pe.critical or (pe.normal and not critical) for pe in candidates):
            return "busy"
        return ""

    # -- power, DEN0054C 6.3

    def pe_on(self, pe: Pe) -> None:
        """A PE starts: masked, nothing private registered."""
        self.delivery.abandon(pe)
        pe.online = True

    def pe_off(self, pe: Pe) -> None:
        """A PE is turned off, or reset."""
        self.delivery.abandon(pe)

    def pe_suspend(self, pe: Pe) -> bool:
        """A PE loses its state in CPU_SUSPEND; it comes back masked with its registrations.

        False where an event is ready for it: it must not go to sleep.
        """
        if self.delivery.next(pe) is not None:
            return False
        pe.suspended = True
        pe.wakeable = not pe.masked
        pe.masked = True
        self.delivery.refresh(pe)
        return True

    def pe_resume(self, pe: Pe) -> None:
        """A suspended PE runs again."""
        pe.suspended = pe.wakeable = False

    def reset(self) -> None:
        """The system is reset: everything is as it was in the beginning, but for the counts."""
        for pe in self.pes:
            self.delivery.abandon(pe)
        for event in self.events:
            if event.shared and event.registrations:
                self.delivery.change(event.handler, State.UNREGISTERED)
                self.delivery.released(event.handler)
        self.bindings.release_all()
        self.delivery.take_kicks()
