# SPDX-License-Identifier: Apache-2.0
"""Warnings, a few a second: whoever writes garbage, or does not read, does so all the time."""

from __future__ import annotations

import logging
import time

__all__ = ["Notices"]

_PER_SECOND = 5


class Notices:
    """Call it with a text. `about` says in a few words what they all concern."""

    def __init__(self, log: logging.Logger, about: str) -> None:
        self._log = log
        self._about = about
        self._second = 0
        self._count = 0

    def __call__(self, text: str) -> None:
        second = int(time.monotonic())
        if second != self._second:
            if self._count > _PER_SECOND:
                self._log.warning("%d more warnings about %s", self._count - _PER_SECOND, self._about)
            self._second, self._count = second, 0
        self._count += 1
        if self._count <= _PER_SECOND:
            self._log.warning("%s", text)
