# SPDX-License-Identifier: Apache-2.0
"""The guest's firmware: every service behind one door, for engines to call.

An engine calls :meth:`Firmware.hypercall` with the PE that trapped and a
view on its registers, and :meth:`Firmware.deliver` for a PE that it stopped
because it was kicked. After either, :meth:`Firmware.take_kicks` names the PEs
to be stopped next. No engine, thread or file is known here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence

from .asyncpf import OFF, AsyncPfSettings
from .asyncpf.block import ControlMemory, NoMemory
from .asyncpf.events import with_event
from .asyncpf.service import AsyncPf
from .cpu import CpuFeatures, RegisterView
from .sdei import EventDefinition, Policy, Sdei
from .sdei.model import Pe
from .sdei.policy import KVM
from .smccc.arch import arch_service
from .smccc.psci import PowerControl, Psci
from .smccc.router import Disposition, Router, write_result
from .smccc.trng import trng_service
from .smccc.vendor import vendor_hyp_service

__all__ = ["Firmware"]


class Firmware:
    """SMCCC routing with ARCH, PSCI, SDEI, TRNG, vendor-hyp and async-pf services for a set of PEs.

    `entry_ok(address)` tells whether PSCI may start a PE there; `control` does
    what PSCI decides. `entropy(n)` gives n random bytes. `async_pf` is what
    there is of asynchronous page faults, whose control blocks are in `memory`.
    """

    def __init__(
        self,
        pes: int | Sequence[int],
        control: PowerControl,
        *,
        events: Iterable[EventDefinition] = (),
        policy: Policy = KVM,
        features: CpuFeatures | None = None,
        entry_ok: Callable[[int], bool] = lambda _entry: True,
        entropy: Callable[[int], bytes] = os.urandom,
        async_pf: AsyncPfSettings = OFF,
        memory: ControlMemory | None = None,
    ) -> None:
        self.sdei = Sdei(pes, with_event(events, async_pf), policy, features)
        self.pes = self.sdei.pes
        self.asyncpf = AsyncPf(self.sdei, memory or NoMemory(), async_pf)
        self.psci = Psci([pe.affinity for pe in self.pes], control, entry_ok)
        self.router = Router()
        self.router.register(arch_service(self.router))
        self.router.register(self.psci.service())
        self.router.register(self.sdei.service())
        self.router.register(trng_service(entropy))
        self.router.register(vendor_hyp_service(self.router))
        if async_pf.on:
            self.router.register(self.asyncpf.service())
        self._delivery = self.sdei.delivery
        self._functions = self.router.functions

    def freeze(self) -> None:
        """The first vCPU is about to run: service bitmaps are fixed from here on."""
        self.router.freeze()

    def take_kicks(self) -> int:
        """A bitmap of the PEs that must stop and have :meth:`deliver` called; asked once."""
        return self._delivery.take_kicks()

    def hypercall(self, pe: Pe, view: RegisterView) -> bool:
        """Serve the call in the window (x0..x5 valid) and write back; False if the PE does not go on."""
        x = view.x
        fid = x[0] & 0xFFFF_FFFF
        result = (self._functions.get(fid) or self.router.function(fid))(pe, view)
        delivery = self._delivery
        if result.__class__ is int:
            x[0] = result & 0xFFFF_FFFF_FFFF_FFFF
            x[1] = x[2] = x[3] = 0
        elif result is Disposition.STOPPED:
            return False
        elif result is Disposition.CONTEXT:
            # A handler ended. It has emptied the mailbox, if it was that of asynchronous page faults.
            faults = pe.async_pf
            if faults is not None and faults.ready:
                self.asyncpf.tell_ready(pe)
            # What waited for it, if anything, is entered at once.
            if pe.ready or delivery.shared_ready:
                handler = delivery.next(pe)
                if handler is not None:
                    view.flush_context()
                    view.fetch_all()
                    delivery.enter(pe, handler, view)
            view.flush_context()
            return True
        else:
            write_result(x, result)
        if pe.ready or delivery.shared_ready:
            handler = delivery.next(pe)
            if handler is not None:
                view.fetch_rest()
                delivery.enter(pe, handler, view)
                view.flush_context()
                return True
        view.flush_result()
        return True

    def deliver(self, pe: Pe, view: RegisterView) -> bool:
        """Enter the handler that a stopped PE has to enter, if there is one."""
        handler = self._delivery.next(pe)
        if handler is None:
            return False
        view.fetch_all()
        self._delivery.enter(pe, handler, view)
        view.flush_context()
        return True
