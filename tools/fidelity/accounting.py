"""What the virtual clock costs training: the same steps with a device's meter on and without, in pairs.

Work is counted once for each variant and shape, on tensors without data, before a round begins; what a device does
while it trains is to note its phases, and that share is told here. The one count comes before the clock of a run
begins and is no part of it: ``python -m tools.planning`` says what it takes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from fedge.core.fit import Spans
from fedge.core.fit import fit as train
from fedge.meter.spans import SpanMeter
from fedge.run.calibrate import stepping

#: The most that counting may add, in percent.
GOAL = 3.0


def measure(quick: bool) -> Iterator[dict[str, Any]]:
    """The median over pairs of how much longer the metered half took, in processor time; first one half goes first,
    then the other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for size in ("tiny", "small"):
            yield _pairs(size, 8 if quick else 24)
    finally:
        torch.set_num_threads(before)


def _pairs(size: str, pairs: int) -> dict[str, Any]:
    model, rows, loss, optimizer = stepping(size, "whole")

    def half(spans: Spans | None) -> float:
        start = time.process_time()
        train(model, [rows] * 8, loss=loss, optimizer=optimizer, steps=8, spans=spans)
        return time.process_time() - start

    half(None)
    more: list[float] = []
    for number in range(pairs):
        order: list[Callable[[], Spans | None]] = [SpanMeter, lambda: None]
        taken = {}
        for made in order if number % 2 else reversed(order):
            taken[made is SpanMeter] = half(made())
        more.append(100 * (taken[True] / taken[False] - 1))
    value = statistics.median(more)
    return {
        "name": f"counting while a {size} transformer trains",
        "value": round(value, 2),
        "unit": "%",
        "goal": f"<= {GOAL:g} %",
        "holds": value <= GOAL,
        "spread": round(statistics.quantiles(more, n=4)[2] - statistics.quantiles(more, n=4)[0], 2),
        "n": pairs,
    }
