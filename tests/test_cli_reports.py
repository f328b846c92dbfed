# SPDX-License-Identifier: Apache-2.0
"""A series of reports: how far apart they are, and which processor a report names."""

from __future__ import annotations

import time
from typing import Any, cast

import pytest

from sdeivirt.cli.reports import Series
from sdeivirt.control.client import VmClient
from sdeivirt.ras.processors import midr_of_model

INTERVAL = 0.05


class Client:
    """A VM that takes its time for the first report."""

    def __init__(self) -> None:
        self.asked: list[float] = []

    def report_error(self, _limit: float, **_arguments: object) -> dict[str, Any]:
        self.asked.append(time.monotonic())
        if len(self.asked) == 1:
            time.sleep(4 * INTERVAL)
        return {"outcome": "acknowledged", "seconds": 0.001}


def test_after_a_slow_report_the_others_are_no_closer_together() -> None:
    client = Client()
    Series(5, 0).run(cast(VmClient, client), 10.0, INTERVAL, {})
    assert min(after - before for before, after in zip(client.asked, client.asked[1:], strict=False)) >= INTERVAL * 0.99


@pytest.mark.parametrize(
    ("model", "midr"),
    [("cortex-a72", 0x410F_D083), ("max,pauth-impdef=on", 0x000F_0510), ("neoverse-n1", 0x414F_D0C1), ("other", 0)],
)
def test_a_model_has_the_midr_that_qemu_gives_it(model: str, midr: int) -> None:
    assert midr_of_model(model) == midr
