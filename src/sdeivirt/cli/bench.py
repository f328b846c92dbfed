# SPDX-License-Identifier: Apache-2.0
"""`sdeivirt bench`: how fast it is, against what is possible."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Annotated

from cyclopts import App, Parameter

from ..errors import UsageError

app = App(name="bench", help="Measure the service and the machine against bare engine exits.")


@app.default
def bench(
    *,
    rounds: Annotated[int, Parameter(help="How often each pair is measured.")] = 7,
    quick: Annotated[bool, Parameter(help="Fewer turns: a look, not a figure.", negative="")] = False,
    check: Annotated[bool, Parameter(help="Exit with 1 if a target is missed.", negative="")] = False,
    json_: Annotated[bool, Parameter(name="--json", help="Print JSON.", negative="")] = False,
) -> int:
    """Measure the service and the machine; every figure stands beside its baseline of the same run."""
    from ..benchmarks import run_all
    from ..benchmarks.report import render

    if not 1 <= rounds <= 1000:
        raise UsageError(f"{rounds} rounds cannot be measured", "1 to 1000 can; 7 is a good number")
    print("measuring, a few seconds a round ...", file=sys.stderr)
    rows = run_all(rounds, quick)
    if json_:
        print(json.dumps([{**dataclasses.asdict(row), "met": row.met} for row in rows], indent=2))
    else:
        print(render(rows))
    return 1 if check and any(row.met is False for row in rows) else 0
