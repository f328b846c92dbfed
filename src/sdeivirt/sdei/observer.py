# SPDX-License-Identifier: Apache-2.0
"""Looking on: hooks that cost nothing unless somebody overrode them."""

from __future__ import annotations

from .model import Handler, Pe

__all__ = ["Observer"]


class Observer:
    """Override what you want to see; only overridden hooks are ever called.

    The hooks run inside the service, on the thread of the vCPU or of the
    injection: be quick, and do not call back.
    """

    def posted(self, handler: Handler) -> None:
        """An event became pending."""

    def delivered(self, pe: Pe, handler: Handler) -> None:
        """A PE was put into a handler."""

    def completed(self, pe: Pe, handler: Handler, failed: bool) -> None:
        """A handler ended, by a call or because its PE was turned off."""

    def abandoned(self, pe: Pe) -> None:
        """A PE was turned off or reset, or is about to start: it has no handlers, and is masked."""
