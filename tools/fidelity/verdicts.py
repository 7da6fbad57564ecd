"""Whom each memory wall kills, over the cases of ``tools.fidelity.memory``.

A device that grants 5 % less than the accounted peak has to be killed, one that grants 10 % more must not be, and
RLIMIT_DATA with its watch must judge as a cgroup does.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedge.errors import FedgeError
from tools.fidelity.memory import Bench, walls
from tools.fidelity.seen import says

UNDER, OVER = 0.05, 0.10


def measure(quick: bool) -> Iterator[dict[str, Any]]:
    """Every wall's verdict on every case, and how many were right."""
    kinds = walls()
    right: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="fedge-verdicts-") as folder:
        bench = Bench(Path(folder))
        cases = bench.cases(quick)
        for case in cases:
            under, over = round(case.need * (1 - UNDER)), round(case.need * (1 + OVER))
            for kind in reversed(kinds):
                peaks: dict[str, int] = {}
                try:
                    peaks, lost = bench.run(case, kind, under, over)
                except FedgeError as error:
                    lost = {f"the run failed: {error.message}"}
                holds = lost == {"under"}
                right[kind] += holds
                told = f"killed: {', '.join(sorted(lost)) or 'nobody'}"
                yield says(f"verdict, {case.name}, {kind}", holds, told, need=case.need, peaks=peaks)
    for kind in kinds:
        yield says(f"verdicts of {kind}", right[kind] == len(cases), f"{right[kind]} of {len(cases)} right")
