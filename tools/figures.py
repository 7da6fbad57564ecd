"""How the tools give their figures: a median with its spread beside its goal, as lines or as one JSON document."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from typing import Any


def figure(
    name: str, values: Sequence[float], unit: str, goal: float | None = None, *, least: float | None = None
) -> dict[str, Any]:
    """The median of ``values`` under a name; ``goal``: the most that it may be; ``least``: the least."""
    value = statistics.median(values)
    line: dict[str, Any] = {"name": name, "value": _short(value), "unit": unit}
    if goal is not None:
        line |= {"goal": f"<= {goal:g}", "holds": value <= goal}
    if least is not None:
        line |= {"goal": f">= {least:g}", "holds": value >= least}
    return {**line, "spread": _short(max(values) - min(values)), "n": len(values)}


def _short(value: float) -> float:
    """Three places after the point, or three digits of what is smaller than that."""
    return round(value, 3) if abs(value) >= 0.01 else float(f"{value:.3g}")


def show(found: Sequence[dict[str, Any]], as_json: bool) -> int:
    """Print figures; the exit code is 0 when every goal holds, else 1."""
    if as_json:
        print(json.dumps({"figures": list(found)}, indent=2))
    else:
        for line in found:
            spread = f", spread {line['spread']}" if "spread" in line else ""
            low, high = line.get("interval", (None, None))
            between = "" if low is None else f", 95 % {low:+g} to {high:+g}"
            goal = f"  (goal {line['goal']})" if "goal" in line else ""
            note = f"  [{line['note']}]" if "note" in line else ""
            print(f"{line['name']}: {line['value']} {line['unit']}{spread}{between}, n {line['n']}{goal}{note}")
    return 0 if all(line.get("holds", True) for line in found) else 1
