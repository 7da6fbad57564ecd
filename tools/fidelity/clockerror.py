"""The virtual clock against processor time measured on this host, each model predicted from the others.

The cases are steps of training, counted as a plan counts them: six transformers from tiny to large, trained whole, by
LoRA, by their biases and by their head. What `fedge devices calibrate` fits is fitted here to five of the models, and
judged on the sixth.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from fedge.run.calibrate import WAYS, Timed, fitted, measured, told, transformers

#: Goals for the median and the 90th percentile of the relative errors, in percent.
MEDIAN, NINETIETH = 8.0, 20.0


def measure(quick: bool) -> Iterator[dict[str, Any]]:
    """The errors of all cases; each is the best of several passes over them all, so that a busy second costs none."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        best: dict[str, Timed] = {}
        for _ in range(1 if quick else 3):
            for one in measured(transformers(WAYS), lambda line: print(line, file=sys.stderr)):
                if one.name not in best or one.seconds < best[one.name].seconds:
                    best[one.name] = one
    finally:
        torch.set_num_threads(before)
    cases = list(best.values())
    errors = []
    for model in sorted({one.of for one in cases}):
        rates = fitted([one for one in cases if one.of != model])
        errors += [100 * abs(told(rates, one) / one.seconds - 1) for one in cases if one.of == model]
    low, high = np.quantile(errors, (0.25, 0.75))
    for name, value, goal in (
        ("virtual clock, a model left out: median error", np.median(errors), MEDIAN),
        ("virtual clock, a model left out: 90th percentile", np.quantile(errors, 0.9), NINETIETH),
    ):
        yield {
            "name": name,
            "value": round(float(value), 2),
            "unit": "%",
            "goal": f"<= {goal:g} %",
            "holds": bool(value <= goal),
            "spread": round(float(high - low), 2),
            "n": len(errors),
        }
