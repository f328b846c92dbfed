# SPDX-License-Identifier: Apache-2.0
"""What we do to the guest's interrupt controller, from outside, through qtest. GICv3, Arm IHI 0069.

EL2 takes FIQs, which are the interrupts of group 0. One software-generated
interrupt per vCPU is ours for kicks, and interrupts that are bound to SDEI
events are ours as long as the event is registered. The guest has the controller's
registers before it and resets them when it boots; so a kick writes all that it
depends on, and a kick that shows no effect has the rest looked at as well.
"""

from __future__ import annotations

from .layout import KICK_SGI
from .qtest import Qtest

__all__ = ["Gic"]

KICK_PRIORITY = 0
BOUND_PRIORITY = 8

GICD_CTLR = 0x0000
GICD_CTLR_GROUP0 = 1
GICD_IGROUPR = 0x0080
GICD_ISENABLER = 0x0100
GICD_ICENABLER = 0x0180
GICD_IPRIORITYR = 0x0400
GICD_ICFGR = 0x0C00
GICD_IROUTER = 0x6000
GICR_STRIDE = 0x20000
GICR_WAKER = 0x14
GICR_SGI_BASE = 0x10000
GICR_ISPENDR0 = 0x0200
GICD_ICPENDR = 0x0280
GICR_ICACTIVER0 = 0x0380
FIRST_SPI = 32
LAST_INTID = 1019


class Gic:
    """The controller of a machine; `distributor` and `redistributor` are addresses, the latter vCPU 0's."""

    def __init__(self, qtest: Qtest, distributor: int, redistributor: int, affinities: list[int]) -> None:
        self._qtest = qtest
        self._distributor = distributor
        self._redistributor = redistributor
        self._affinities = affinities
        self._group0 = [1 << KICK_SGI] * len(affinities)  # of the 32 private interrupts of each vCPU
        self._group0_spi: dict[int, int] = {}  # of each word of shared ones
        self._priorities: dict[tuple[int, int], int] = {}  # what the guest had given to those that are ours
        self._kicks = [self._kick_lines(i) for i in range(len(affinities))]

    def _private(self, vcpu: int) -> int:
        return self._redistributor + vcpu * GICR_STRIDE + GICR_SGI_BASE

    def _kick_lines(self, vcpu: int) -> bytes:
        base, bit = self._private(vcpu), 1 << KICK_SGI
        return (
            f"writel {base + GICD_IGROUPR:#x} {~self._group0[vcpu] & 0xFFFF_FFFF:#x}\n"
            f"writeb {base + GICD_IPRIORITYR + KICK_SGI:#x} {KICK_PRIORITY}\n"
            f"writel {base + GICD_ISENABLER:#x} {bit:#x}\n"
            f"writel {base + GICR_ISPENDR0:#x} {bit:#x}\n"
        ).encode()

    def kick(self, vcpus: list[int]) -> None:
        """Stop vCPUs. From any thread."""
        self._qtest.send(b"".join([self._kicks[vcpu] for vcpu in vcpus]))

    def pulse(self, intid: int, vcpu: int) -> None:
        """An edge of a private interrupt, whoever owns it. From any thread."""
        self._qtest.send(b"writel %#x %#x\n" % (self._private(vcpu) + GICR_ISPENDR0, 1 << intid))

    async def repair(self, vcpu: int) -> None:
        """Undo what a guest can do against kicks, and kick again."""
        control = await self._qtest.read32(self._distributor + GICD_CTLR)
        waker = self._redistributor + vcpu * GICR_STRIDE + GICR_WAKER
        self._qtest.send(
            f"writel {self._distributor + GICD_CTLR:#x} {control | GICD_CTLR_GROUP0:#x}\n"
            f"writel {waker:#x} 0x0\n"
            f"writel {self._private(vcpu) + GICR_ICACTIVER0:#x} {1 << KICK_SGI:#x}\n".encode()
        )
        self.kick([vcpu])

    def settle(self) -> None:
        """Return when the controller has done all that was asked for so far. On the event loop's thread."""
        self._qtest.ask(b"readl %#x\n" % (self._distributor + GICD_CTLR))

    # -- bound interrupts: an INTID, and for a private one the vCPU

    def take(self, intid: int, vcpu: int) -> bool:
        """Move an interrupt to group 0, disabled, with a priority below that of kicks; whether it is a level."""
        base = self._bank(intid, vcpu)
        read = self._qtest.ask(
            f"readb {base + GICD_IPRIORITYR + intid:#x}\n"
            f"readl {base + GICD_ICFGR + intid // 16 * 4:#x}\n"
            f"{self._group_lines(intid, vcpu, ours=True)}"
            f"writeb {base + GICD_IPRIORITYR + intid:#x} {BOUND_PRIORITY:#x}\n".encode()
        )
        priority, trigger = read if len(read) == 2 else (0, 0)  # QEMU has ended
        self._priorities[intid, vcpu] = priority
        return not trigger >> intid % 16 * 2 & 2

    def give_back(self, intid: int, vcpu: int) -> None:
        """The interrupt is the guest's again when this returns, disabled and with the priority that it had."""
        priority = self._priorities.pop((intid, vcpu), 0)
        address = self._bank(intid, vcpu) + GICD_IPRIORITYR + intid
        lines = f"{self._group_lines(intid, vcpu, ours=False)}writeb {address:#x} {priority:#x}\n"
        self._qtest.ask(lines.encode())

    def _bank(self, intid: int, vcpu: int) -> int:
        return self._private(vcpu) if intid < FIRST_SPI else self._distributor

    def _group_lines(self, intid: int, vcpu: int, ours: bool) -> str:
        """Disable an interrupt and move it to group 0, or back to group 1.

        An edge that came before was for its old owner, so it is forgotten. A level that is still up stays pending.
        """
        word, bit = intid // 32, 1 << intid % 32
        if intid < FIRST_SPI:
            self._group0[vcpu] = group = self._group0[vcpu] | bit if ours else self._group0[vcpu] & ~bit
            self._kicks[vcpu] = self._kick_lines(vcpu)
        else:
            group = self._group0_spi.get(word, 0)
            group = self._group0_spi[word] = group | bit if ours else group & ~bit
        base = self._bank(intid, vcpu) + 4 * word
        return (
            f"writel {base + GICD_ICENABLER:#x} {bit:#x}\n"
            f"writel {base + GICD_ICPENDR:#x} {bit:#x}\n"
            f"writel {base + GICD_IGROUPR:#x} {~group & 0xFFFF_FFFF:#x}\n"
        )

    def enable(self, intid: int, vcpu: int, on: bool) -> None:
        """Let a bound interrupt through, or not; a shared one goes to the vCPU."""
        lines = ""
        if intid < FIRST_SPI:
            base, word = self._private(vcpu), 0
        else:
            base, word = self._distributor, intid // 32
            if on:
                lines = f"writeq {base + GICD_IROUTER + 8 * intid:#x} {self._affinities[vcpu]:#x}\n"
        register = GICD_ISENABLER if on else GICD_ICENABLER
        self._qtest.send(f"{lines}writel {base + register + 4 * word:#x} {1 << intid % 32:#x}\n".encode())

    # -- moving

    @property
    def ours(self) -> tuple[list[int], dict[int, int], dict[tuple[int, int], int]]:
        """Which interrupts are ours, and the priorities that they had: private ones, words of shared ones, and both."""
        return self._group0, self._group0_spi, self._priorities

    def take_over(self, private: list[int], shared: dict[int, int], priorities: dict[tuple[int, int], int]) -> None:
        """The controller's own state is there already; this is what we know of it."""
        self._group0 = [bits | 1 << KICK_SGI for bits in private]
        self._group0_spi = shared
        self._priorities = priorities
        self._kicks = [self._kick_lines(i) for i in range(len(private))]
