# SPDX-License-Identifier: Apache-2.0
"""Deviations from the specification that a policy has on purpose, because the firmware that it is like has them.

A test named here still fails, in every output; it is marked, and does not make the run a failure.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["KNOWN", "known_deviations"]

# policy -> test id -> why
KNOWN: Mapping[str, Mapping[str, str]] = {
    "kvm": {},
    "tf-a": {
        "calls.info.event0-signaled": "TF-A answers whether an event can not be signalled",
    },
}


def known_deviations(policy: str) -> Mapping[str, str]:
    """The reasons by test id; none for a policy that nobody has looked at."""
    return KNOWN.get(policy, {})
