# SPDX-License-Identifier: Apache-2.0
"""Numbers of the SDEI interface, DEN0054C 5.1. All calls are fast SMC64 calls of the standard owner."""

from __future__ import annotations

import enum

__all__ = [
    "Function",
    "Status",
    "Info",
    "Feature",
    "HandlerStatus",
    "REGISTER_RM_PE",
    "REGISTER_RELATIVE",
    "FUNCTION_NUMBERS",
    "version_word",
]

# The range that is SDEI's: function numbers 0x20 to 0x3f.
FUNCTION_NUMBERS = range(0x20, 0x40)


class Function(enum.IntEnum):
    """Function ids, DEN0054C 5.1.1 to 5.1.19. Arguments from x1 on."""

    VERSION = 0xC400_0020
    EVENT_REGISTER = 0xC400_0021  # event, handler, argument, flags, affinity
    EVENT_ENABLE = 0xC400_0022  # event
    EVENT_DISABLE = 0xC400_0023  # event
    EVENT_CONTEXT = 0xC400_0024  # register 0..17
    EVENT_COMPLETE = 0xC400_0025  # status
    EVENT_COMPLETE_AND_RESUME = 0xC400_0026  # resume address
    EVENT_UNREGISTER = 0xC400_0027  # event
    EVENT_STATUS = 0xC400_0028  # event
    EVENT_GET_INFO = 0xC400_0029  # event, info
    EVENT_ROUTING_SET = 0xC400_002A  # event, routing mode, affinity
    PE_MASK = 0xC400_002B
    PE_UNMASK = 0xC400_002C
    INTERRUPT_BIND = 0xC400_002D  # interrupt
    INTERRUPT_RELEASE = 0xC400_002E  # event
    EVENT_SIGNAL = 0xC400_002F  # event, affinity
    FEATURES = 0xC400_0030  # feature
    PRIVATE_RESET = 0xC400_0031
    SHARED_RESET = 0xC400_0032


class Status(enum.IntEnum):
    """Result codes, DEN0054C 5.1.20."""

    SUCCESS = 0
    NOT_SUPPORTED = -1
    INVALID_PARAMETERS = -2
    DENIED = -3
    PENDING = -5
    OUT_OF_RESOURCE = -10


class HandlerStatus(enum.IntFlag):
    """EVENT_STATUS's answer, DEN0054C 5.1.8."""

    REGISTERED = 1
    ENABLED = 2
    RUNNING = 4


class Info(enum.IntEnum):
    """EVENT_GET_INFO's questions, DEN0054C 5.1.9."""

    TYPE = 0  # 0 private, 1 shared
    SIGNALED = 1  # 1 where EVENT_SIGNAL may raise it
    PRIORITY = 2  # 0 normal, 1 critical
    ROUTING_MODE = 3  # shared events: 0 any PE, 1 one PE
    ROUTING_AFFINITY = 4  # shared events routed to one PE: its affinity


class Feature(enum.IntEnum):
    """FEATURES' questions, DEN0054C 5.1.17."""

    BIND_SLOTS = 0  # private slots 15:0, shared slots 31:16
    RELATIVE_MODE = 1


# EVENT_REGISTER's flags, DEN0054C 5.1.2. All others are reserved.
REGISTER_RM_PE = 1 << 0
REGISTER_RELATIVE = 1 << 1


def version_word(major: int, minor: int, vendor: int) -> int:
    """VERSION's answer: major 62:48, minor 47:32, vendor 31:0, DEN0054C 5.1.1."""
    return (major & 0x7FFF) << 48 | (minor & 0xFFFF) << 32 | (vendor & 0xFFFF_FFFF)
