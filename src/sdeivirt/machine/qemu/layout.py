# SPDX-License-Identifier: Apache-2.0
"""The memory shared with the EL2 monitor: guests/monitor/layout.h in Python; a test compares the two.

It is one block behind the guest's RAM, which stage 2 hides from the guest:

    +0x00000  the monitor            +0x50000  a page of ones
    +0x0f000  the global page        +0x60000  stage-2 tables, for all of RAM in single pages
    +0x10000  mailboxes, a page a vCPU  +0x51000  what is asked of fw_cfg for a guest that boots by UEFI

A guest that moves takes all but tables and ones along, since its vCPUs may stand in the middle of
the monitor: LAYOUT_VERSION is to be raised when something here gets another place or meaning.
"""

from __future__ import annotations

import enum

__all__ = ["LAYOUT_VERSION", "Action", "Global", "Mailbox", "Reason"]

LAYOUT_VERSION = 1

GLOBAL_PAGE = 0x0F000
MAILBOXES = 0x10000
MAX_VCPUS = 64
BLANK_PAGE = 0x50000
FW_CFG_PAGE = 0x51000
STAGE2_TABLES = 0x60000
MAILBOX_SIZE = 0x1000

FLAG_STAGE2 = 1
KICK_SGI = 15


class Mailbox:
    """Words of 8 bytes in a mailbox. The first 21 are the window of :class:`~sdeivirt.cpu.RegisterView`."""

    X0 = 0
    PC = 18
    PSTATE = 19
    SCTLR = 20
    X18 = 21
    REQUEST = 34
    RESPONSE = 35
    REASON = 36
    ESR = 37
    FAR = 38
    HPFAR = 39
    VBAR = 40
    INTID = 41
    ELR1 = 42
    SPSR1 = 43
    ESR1 = 44
    FAR1 = 45
    ACTION = 46
    ARGUMENT = 47
    BOOT_PC = 48
    BOOT_X0 = 49
    PROBE = 50
    SP_EL0 = 51
    SP_EL1 = 52
    PAR = 53
    CONTEXT_VALID = 54
    CONTEXT = 55
    CONTEXTS_READ = 73
    PMR = 74


class Reason(enum.IntEnum):
    """Why the guest was left."""

    HVC = 1
    SMC = 2
    KICK = 3
    INTERRUPT = 4
    ABORT = 5
    TRAP = 6
    BOOT = 7
    DEAD = 8
    FLUSHED = 9


class Action(enum.IntEnum):
    """What the monitor does before the guest goes on."""

    NONE = 0
    CPU_ON = 1
    CPU_OFF = 2
    STANDBY = 3
    PARK = 4
    WAIT = 5
    FLUSH = 6


class Global:
    """Words of 8 bytes in the global page."""

    FLAGS = 0
    BELL = 1
    BELL_CONFIG = 2
    BELL_BAR = 3
    ID_PFR0 = 4
    ID_PFR1 = 5
    ID_MMFR1 = 6
    ID_MMFR2 = 7
    GICD = 8
    GICR = 9
    COUNT = 10
