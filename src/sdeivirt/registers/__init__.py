# SPDX-License-Identifier: Apache-2.0
"""Pseudo-firmware registers: all state of the SDEI service as numbers, to look at, to set and to move.

    registers = Registers(machine.firmware.sdei)      # with the machine's lock held
    with registers.transaction() as transaction:
        transaction.set(registers.find("SDEI_EVENT_PENDING"), 1, vcpu=0)
        transaction.set(registers.find("SDEI_PE_STATE"), 0, vcpu=0)
    other.load(registers.dump())

ids.py        ids, sizes, names
values.py     the bits and structures in them
capture.py    from records to numbers
draft.py      from numbers to records, each alone
rules.py      which states can be; going on from one
asyncpf.py    those of asynchronous page faults
origin.py     what a service is made of, which must be the same
access.py     list, get, set, dump, load
text.py       registers for people, and as JSON
sections.py   registers in a stream, and the rest of the firmware's state
bitmaps.py    KVM's bitmaps of services, which a VM has beside them
running.py    the registers of a running VM
"""

from .access import RegisterInfo, Registers, Transaction
from .capture import Dump

__all__ = ["Registers", "RegisterInfo", "Transaction", "Dump"]
