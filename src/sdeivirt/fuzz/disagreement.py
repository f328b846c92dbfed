# SPDX-License-Identifier: Apache-2.0
"""The firmware and the oracle do not agree."""

from __future__ import annotations

__all__ = ["Disagreement"]


class Disagreement(Exception):
    """What differs. `kind` is the sort of difference, without numbers: what is shortened keeps it."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
