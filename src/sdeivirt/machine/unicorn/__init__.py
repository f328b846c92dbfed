# SPDX-License-Identifier: Apache-2.0
"""The embedded machine: Unicorn runs EL1 and EL0, Python is EL2.

binding.py     the engine by raw ctypes
stub.py        the native stop, which is also the time slice
stage2.py      translation tables that Python owns
exceptions.py  what happened, and the syndrome
vcpu.py        one vCPU: window, traps, exception entry, reports
gic.py, icc.py the interrupt controller, and its system registers
schedulers.py  fast and deterministic
watchdog.py    handlers that never end
machine.py     the machine
"""

from .machine import UnicornMachine

__all__ = ["UnicornMachine"]
