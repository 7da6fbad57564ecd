"""A figure of fidelity: what was asked, what was measured, how often, and by how much the one misses the other."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any


def against(
    name: str, asked: float, measured: Sequence[float], unit: str, *, within: float, relative: bool = True
) -> dict[str, Any]:
    """The median error of what was measured: in percent of what was asked, or (not ``relative``) in ``unit`` itself.

    within: how large it may be, either way. spread: between the least and the greatest of the repeats, in ``unit``.
    """
    middle = statistics.median(measured)
    error = 100 * (middle / asked - 1) if relative else middle - asked
    sort = "%" if relative else unit
    return {
        "name": name,
        "value": _short(error),
        "unit": sort,
        "goal": f"within {within:g} {sort}",
        "holds": abs(error) <= within,
        "asked": _short(asked),
        "measured": _short(middle),
        "in": unit,
        "spread": _short(max(measured) - min(measured)),
        "n": len(measured),
        "repeats": [_short(value) for value in measured],
    }


def says(name: str, holds: bool, told: str, **more: Any) -> dict[str, Any]:
    """Something that holds or doesn't, such as two runs being equal bit for bit."""
    return {"name": name, "value": told, "unit": "", "goal": "holds", "holds": holds, "spread": 0, "n": 1, **more}


def line(found: dict[str, Any]) -> str:
    """A figure in one line."""
    spread = f", spread {found['spread']:g} {found.get('in', found['unit'])}" if found["n"] > 1 else ""
    asked = f"asked {found['asked']:g}, measured {found['measured']:g} {found['in']}: " if "asked" in found else ""
    value = found["value"] if isinstance(found["value"], str) else f"{found['value']:+g} {found['unit']}"
    verdict = "" if "holds" not in found else f"  ({found['goal']}: {'holds' if found['holds'] else 'MISSED'})"
    return f"{found['name']}: {asked}{value}{spread}, n {found['n']}{verdict}"


def _short(value: float) -> float:
    """Five digits."""
    return float(f"{value:.5g}")
