"""Thresholds for leaving early, chosen on rows that no reported figure rests on.

Given every exit's score and whether its label is right, row by row, and what it costs to leave at each exit, thresholds
are taken from the quantiles of the scores: all combinations for up to three early exits, one exit after the other, over
and over, beyond that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from math import sqrt

import numpy as np

from fedge.core.rng import generator
from fedge.errors import InfeasibleError
from fedge.export.budget import Budget
from fedge.export.criteria import taken

_Worth = Callable[[Sequence[float]], tuple[bool, float, float]]

#: Quantiles tried for each exit; besides, never to leave there.
_QUANTILES = 26
_EXACT = 3
_PASSES = 8
#: The share of the rows on which thresholds are chosen, and the most of them.
_SHARE, _MOST = 0.5, 1000
#: What of the last exit's accuracy the thresholds may lose where nothing else is asked of them.
_TOLERATED = 0.01
#: A threshold that no score reaches (a number, so that JSON holds it).
NEVER = 1e9


@dataclass(frozen=True)
class Policy:
    """Thresholds and what they did on the rows on which they were chosen: accuracy, mean cost, share by exit."""

    criterion: str
    thresholds: tuple[float, ...]
    accuracy: float
    cost: float
    shares: tuple[float, ...]


def held_apart(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices for choosing thresholds, and the others, for reporting; the same rows for both where there is but one."""
    import torch

    order = torch.randperm(rows, generator=generator("export", "thresholds")).numpy()
    share = min(_MOST, max(1, round(_SHARE * rows)))
    chosen, rest = np.sort(order[:share]), np.sort(order[share:])
    return chosen, rest if len(rest) else chosen


def calibrate(
    found: np.ndarray, correct: np.ndarray, costs: Sequence[float], criterion: str, budget: Budget | None = None
) -> Policy:
    """With a budget of time or energy the thresholds of best accuracy whose mean cost is within it; with one of
    accuracy the cheapest that reach it; without a budget the cheapest that lose nothing of the last exit's accuracy.

    The last is told by the rows on which an earlier exit is wrong and the last right, h of them, and the other way
    round, g. Thresholds are picked among hundreds, so that h = g on few rows says little: what counts is the upper end
    of (h − g + 1) ± √(h + g), which must stay within ``_TOLERATED`` of all rows. On few rows nothing leaves early.

    found: scores ``[rows, exits]``; correct: bool ``[rows, exits]``; costs: of leaving at each exit, in the budget's
    unit. InfeasibleError when even the first exit costs more than the budget, or no thresholds are so accurate.
    """
    prices = np.asarray(costs, dtype=np.float64)
    most = budget.value if budget is not None and budget.kind != "accuracy" else None
    if most is not None and prices[0] > most:
        raise InfeasibleError(f"the first exit alone costs {prices[0]:.4g}, more than {most:.4g}")
    grids = [_grid(found[:, at], criterion, len(costs)) for at in range(len(costs) - 1)]
    least = budget.value if budget is not None and most is None else 0.0

    def worth(thresholds: Sequence[float]) -> tuple[bool, float, float]:
        """Whether it is allowed, and how good it is, better ones greater."""
        accuracy, cost, _ = _simulated(found, correct, prices, thresholds)
        if budget is None:
            return _as_good(correct, taken(found, thresholds)), -cost, accuracy
        if most is None:
            return accuracy >= least, -cost, accuracy
        return cost <= most, accuracy, -cost

    candidates: Iterable[tuple[float, ...]] = product(*grids) if len(grids) <= _EXACT else _descent(grids, worth)
    best = max(candidates, key=worth)
    accuracy, cost, shares = _simulated(found, correct, prices, best)
    if accuracy < least:
        raise InfeasibleError(f"no thresholds reach an accuracy of {least:.4g}")
    return Policy(criterion, tuple(best), accuracy, cost, tuple(shares))


def _as_good(correct: np.ndarray, exits: np.ndarray) -> bool:
    """Whether leaving at ``exits`` is as good as the last exit, as far as so many rows can tell."""
    if (exits == correct.shape[1] - 1).all():
        return True
    early, last = correct[np.arange(len(exits)), exits], correct[:, -1]
    harmed, gained = int((last & ~early).sum()), int((early & ~last).sum())
    return harmed - gained + 1 + sqrt(harmed + gained) <= _TOLERATED * len(exits)


def _simulated(
    found: np.ndarray, correct: np.ndarray, costs: np.ndarray, thresholds: Sequence[float]
) -> tuple[float, float, list[float]]:
    exits = taken(found, thresholds)
    shares = np.bincount(exits, minlength=len(costs)) / len(exits)
    return float(correct[np.arange(len(exits)), exits].mean()), float(costs[exits].mean()), shares.tolist()


def _grid(scores: np.ndarray, criterion: str, exits: int) -> list[float]:
    if criterion == "patience":
        return [*map(float, range(exits)), NEVER]
    found = np.unique(np.quantile(scores, np.linspace(0, 1, _QUANTILES)).astype(np.float32))
    return [*found.tolist(), NEVER]


def _descent(grids: Sequence[Sequence[float]], worth: _Worth) -> list[tuple[float, ...]]:
    """The ends of one-exit-at-a-time searches from leaving at once and from never leaving early."""
    ends = []
    for start in (0, -1):
        now = [grid[start] for grid in grids]
        for _ in range(_PASSES):
            before = list(now)
            for at, grid in enumerate(grids):
                now[at] = max(grid, key=lambda one, at=at: worth((*now[:at], one, *now[at + 1 :])))  # type: ignore[misc]
            if now == before:
                break
        ends.append(tuple(now))
    return ends
