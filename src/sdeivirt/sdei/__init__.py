# SPDX-License-Identifier: Apache-2.0
"""The SDEI service, Arm DEN0054C: policy only. No I/O, threads, clocks or engines in here.

abi.py        function ids, arguments, result codes
states.py     the handler state machine, one literal table
events.py     event definitions
policy.py     what firmwares differ in, as a record with presets
model.py      PEs, events, handlers and frames: the whole state
delivery.py   pending events, which PE takes them, entry and completion
bindings.py   dynamic events: INTERRUPT_BIND and RELEASE
calls.py      the nineteen calls
service.py    the service put together: what machines and hosts use
"""

from .abi import Function, Info, Status
from .events import EventDefinition, Priority
from .policy import POLICIES, Policy
from .service import Sdei

__all__ = ["Sdei", "EventDefinition", "Priority", "Policy", "POLICIES", "Function", "Status", "Info"]
