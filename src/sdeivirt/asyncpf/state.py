# SPDX-License-Identifier: Apache-2.0
"""What is known of a PE's asynchronous page faults. A plain record; the rules are elsewhere."""

from __future__ import annotations

from dataclasses import dataclass, field

from .abi import CONTROL_FLAGS, TOKEN_ID_SHIFT, TOKEN_IDS, WAKE_ALL
from .settings import AsyncPfSettings

__all__ = ["PeFaults"]


@dataclass(slots=True, eq=False)
class PeFaults:
    """Of one PE. A token is *outstanding* from not-present on until its page comes, and *ready* until that is told.

    `mailbox` is the token of the last not-present, until its mailbox was seen
    empty. `deliveries` is how often the event's handler had been entered
    before it was told: if that is all, nobody has read it yet.
    """

    settings: AsyncPfSettings
    control: int = 0  # the control word; 0 while the service is not enabled
    sdei: bool = False  # not-present is told by the event, else by the PPI
    unacknowledged: bool = False  # a ready token is in the mailbox, or was, and IRQ_ACK has not come
    refused: bool = False  # the access that a refusal was about will be tried again, and waits then
    last_id: int = 0
    mailbox: int = 0
    deliveries: int = -1
    head: int = 0  # of the ring
    outstanding: dict[int, None] = field(default_factory=dict)  # in the order in which they were told
    ready: list[int] = field(default_factory=list)
    # Counts since the machine started.
    told: int = 0  # not-present notifications
    answered: int = 0  # ready tokens told, without WAKE_ALL
    refusals: int = 0
    waits: int = 0  # faults that were not told: the PE waited

    @property
    def address(self) -> int:
        """Where the control block is."""
        return self.control & ~CONTROL_FLAGS

    @property
    def pending(self) -> int:
        """How many slots are taken."""
        return len(self.outstanding) + len(self.ready)

    def next_token(self, vcpu: int) -> int:
        """A token that no page is waited for with."""
        while True:
            self.last_id = self.last_id % TOKEN_IDS + 1
            token = self.last_id << TOKEN_ID_SHIFT | vcpu
            if token not in self.outstanding and token not in self.ready:
                return token

    def forget(self, token: int) -> bool:
        """A token is void; whether the page had not come yet."""
        if token in self.outstanding:
            del self.outstanding[token]
            return True
        if token in self.ready:
            self.ready.remove(token)
        return False

    def wake_all(self) -> None:
        """Answer all that the guest has read with one token. What still lies in the mailbox gets its own answer."""
        kept, unread = self.mailbox in self.ready, self.mailbox in self.outstanding
        self.outstanding = {self.mailbox: None} if unread else {}
        self.ready = [WAKE_ALL, self.mailbox] if kept else [WAKE_ALL]

    def disable(self) -> None:
        """As after reset, but for the counts, and the running number: a page may still come for an old token."""
        self.control = self.mailbox = self.head = 0
        self.sdei = self.unacknowledged = self.refused = False
        self.deliveries = -1
        self.outstanding = {}
        self.ready = []
