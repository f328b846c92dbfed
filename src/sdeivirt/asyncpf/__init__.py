# SPDX-License-Identifier: Apache-2.0
"""Asynchronous page faults: a guest is told of a page that will take a while, and goes on with another task.

The interface is in docs/async-page-faults.md. No I/O and no machine in here.

abi.py        numbers: the call, the control word, the control block
settings.py   what a platform offers
state.py      what is known of a PE
block.py      the control block in the guest's memory
calls.py      the guest's calls
service.py    not present and ready; power, moving
"""

from .settings import OFF, AsyncPfSettings

__all__ = ["OFF", "AsyncPfSettings"]
