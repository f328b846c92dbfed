# SPDX-License-Identifier: Apache-2.0
"""The registers of a service: list, get, set, dump and load."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

from ..errors import RegisterError
from . import ids
from .capture import Dump, dump, read
from .draft import Draft, draft
from .ids import MAX_EVENTS, Catalog, Impossible, Kind
from .origin import check_affinities, check_origin
from .rules import install, judge
from .values import power

if TYPE_CHECKING:
    from ..sdei.service import Sdei

__all__ = ["RegisterInfo", "Registers", "Transaction"]


@dataclass(frozen=True, slots=True)
class RegisterInfo:
    """A register. `size` in bits; `vcpu` is None for one of the VM's."""

    id: int
    name: str
    size: int
    vcpu: int | None


class Registers:
    """All state of a service as registers.

    Values are integers of the register's size; what is longer than 64 bits is
    a structure in little endian. Whoever calls does so with the lock of the
    machine, as for the service itself, and afterwards kicks the PEs in
    :meth:`Sdei.take_kicks`, which have an event to take.

    With `fixed_power` the vCPUs' power states can be read and not be changed:
    an engine runs them, and knows what they are.
    """

    def __init__(self, sdei: Sdei, *, fixed_power: bool = False) -> None:
        if len(sdei.events) > MAX_EVENTS:
            raise RegisterError(
                f"{len(sdei.events)} events are more than registers can name", f"{MAX_EVENTS} can be, with slots"
            )
        self._sdei = sdei
        self._fixed_power = fixed_power
        self.catalog = Catalog(sdei)

    def find(self, register: str) -> int:
        """The id of a register by name, such as SDEI_PE_STATE, or by number. Raises RegisterError."""
        id = self.catalog.parse(register)
        if id is None:
            kind, _, event = register.partition(".")
            where = f": no event {event} is defined" if event and self.catalog.parse(f"{kind}.0") is not None else ""
            raise RegisterError(
                f"there is no register {register[:60]!r}{where[:60]}",
                "`sdeivirt registers VM list` names those that there are",
            )
        self.is_of_vcpu(id)
        return id

    def is_of_vcpu(self, id: int) -> bool:
        """Whether each vCPU has the register, or the VM. Raises RegisterError for one that does not exist."""
        try:
            return self.catalog.find(id).of_vcpu
        except Impossible as impossible:
            raise self._error(impossible) from None

    def list(self, vcpu: int | None = None) -> list[RegisterInfo]:
        """Those of a vCPU, or all: the VM's first, then vCPU by vCPU.

        The handlers of private events that a vCPU has never registered, and
        those of free slots, are not listed, though they can be read and set, too.
        """
        found = []
        for each in (None, *range(len(self._sdei.pes))) if vcpu is None else (vcpu,):
            for id in self.read(each):
                register = self.catalog.find(id)
                found.append(RegisterInfo(id, register.name, register.kind.size, each))
        return found

    def read(self, vcpu: int | None) -> dict[int, int]:
        """The values of all that :meth:`list` has of a vCPU, or of the VM. Raises UnknownVcpuError."""
        if vcpu is not None:
            self._sdei.pe(vcpu)
        return dict(sorted(read(self._sdei, self.catalog, vcpu, True).items(), key=_order))

    def get(self, id: int, vcpu: int | None = None) -> int:
        """The value of a register. Raises RegisterError, UnknownVcpuError."""
        kind = self._kind(id, vcpu)
        return read(self._sdei, self.catalog, vcpu, True).get(id, kind.reset)

    def set(self, id: int, value: int, vcpu: int | None = None) -> None:
        """Set one register. Raises RegisterError where that cannot be beside the others; nothing has changed then."""
        with self.transaction() as transaction:
            transaction.set(id, value, vcpu)

    def transaction(self) -> Transaction:
        """Set several registers at once, in any order: only what they make together has to be possible."""
        return Transaction(self)

    def dump(self) -> Dump:
        """All that is not as after reset, and what the service is made of."""
        return dump(self._sdei, self.catalog)

    def load(self, dump: Dump) -> None:
        """Take over a whole state: what the dump does not name is as after reset.

        Raises RegisterError for what cannot be; nothing has changed then.
        """
        try:
            self.install(self.check(dump))
        except Impossible as impossible:
            raise self._error(impossible) from None

    # -- in two steps, for those who have more to take over than this

    def check(self, dump: Dump) -> Draft:
        """The first half of :meth:`load`. Raises Impossible."""
        check_origin(self._sdei, dump.vm, len(dump.vcpus))
        check_affinities(self._sdei, dump)
        made = draft(self._sdei, self.catalog, dump)
        judge(self._sdei, made)
        if self._fixed_power:
            for pe, new in zip(self._sdei.pes, made.pes, strict=True):
                if new.power != power(pe):
                    reason = f"it is {power(pe):#x}, and cannot become {new.power:#x}"
                    raise Impossible(ids.POWER.id, pe.index, reason, "vCPUs are turned on and off by the guest")
        return made

    def install(self, draft: Draft) -> None:
        """The second half, which cannot fail."""
        install(self._sdei, draft)

    def _kind(self, id: int, vcpu: int | None) -> Kind:
        """The register's kind. Raises RegisterError, also where it is the VM's and a vCPU is named or the reverse."""
        if vcpu is not None:
            self._sdei.pe(vcpu)
        if self.is_of_vcpu(id) != (vcpu is not None):
            which, what = ("the VM", "name no vCPU") if vcpu is not None else ("each vCPU", "name one")
            raise RegisterError(f"register {self.catalog.name(id)} is one of {which}", what)
        return self.catalog.find(id).kind

    def _error(self, impossible: Impossible) -> RegisterError:
        where = "" if impossible.vcpu is None else f" of vCPU {impossible.vcpu}"
        return RegisterError(
            f"register {self.catalog.name(impossible.id)}{where}: {impossible.reason}", impossible.hint
        )


def _order(item: tuple[int, int]) -> tuple[int, int]:
    """KVM's first, then rows and ours, by coprocessor and index; the size, above them in the id, does not count."""
    return item[0] >> 16 & 0xFFF, item[0] & 0xFFFF


class Transaction:
    """Values that are to be set together, when the block ends without an exception.

    RegisterError is raised by :meth:`set` where there is no such register, and
    at the end of the block for all else.
    """

    def __init__(self, registers: Registers) -> None:
        self._registers = registers
        self._values: dict[tuple[int, int | None], int] = {}

    def set(self, id: int, value: int, vcpu: int | None = None) -> None:
        """A register's new value; the last one counts."""
        self._registers._kind(id, vcpu)
        self._values[id, vcpu] = value

    def __enter__(self) -> Transaction:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None or not self._values:
            return
        whole = self._registers.dump()
        for (id, vcpu), value in self._values.items():
            whole.of(vcpu)[id] = value
        self._registers.load(whole)
