"""The table of claims: as lines on a terminal, as figures in JSON, and as Markdown."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tools.claims.claim import Claim
from tools.claims.stored import Result


@dataclass(frozen=True)
class Row:
    """A claim and what is known of it. why: the reason for which there is no result, or only an old one."""

    claim: Claim
    result: Result | None
    why: str = ""

    @property
    def holds(self) -> bool | None:
        return None if self.result is None else self.result.holds(self.claim)

    @property
    def verdict(self) -> str:
        """'holds', 'does not hold', or why it is not known."""
        known = {True: "holds", False: "does not hold", None: self.why}[self.holds]
        return f"{known} ({self.why})" if self.result is not None and self.why else known

    @property
    def ours(self) -> str:
        """Every figure's mean, and how far its seeds are apart."""
        if self.result is None:
            return "–"
        unit = self.claim.unit
        return "; ".join(f"{name} {_spread(values, unit)}" for name, values in self.result.figures.items())


def figures(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """A line for each claim that has a result, in the form of all tools."""
    found = []
    for row in rows:
        claim, result = row.claim, row.result
        if result is None:
            continue
        first = next(iter(result.figures.values()))
        line: dict[str, Any] = {"name": claim.key, "value": _mean(first), "unit": claim.unit, "goal": claim.goal}
        line |= {"holds": row.holds, "spread": max(first) - min(first), "n": len(first), "method": claim.method}
        line |= {"claim": claim.says, "paper": claim.paper, "data": list(claim.data), "figures": result.figures}
        found.append({**line, "seconds": result.seconds, "stale": bool(row.why)})
    return found


def lines(rows: Iterable[Row]) -> Iterable[str]:
    """Text for a terminal: three lines a claim."""
    for row in rows:
        claim = row.claim
        seconds = f", {row.result.seconds:.0f} s" if row.result else ""
        yield f"{claim.key}: {row.verdict}{seconds}"
        yield f"    paper  {claim.says}: {claim.paper}"
        yield f"    here   {row.ours}  (asked: {claim.goal})"


def markdown(rows: Iterable[Row]) -> Iterable[str]:
    """A table of GitHub's Markdown."""
    yield "| method | the paper's claim | its figure | here: mean ± half the seeds' spread | asked | holds | s |"
    yield "|---|---|---|---|---|---|---|"
    for row in rows:
        claim = row.claim
        seconds = f"{row.result.seconds:.0f}" if row.result else "–"
        answer = {True: "yes", False: "**no**", None: row.why}[row.holds]
        if row.result is not None and row.why:
            answer += f" ({row.why})"
        cells = (f"`{claim.method}`", claim.says, claim.paper, row.ours, claim.goal, answer, seconds)
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _spread(values: list[float], unit: str) -> str:
    times = 100 if unit == "%" else 1
    mean, half = times * _mean(values), times * (max(values) - min(values)) / 2
    off = f" ± {_short(half)}" if half > 1e-12 * abs(mean) else ""
    return f"{_short(mean)}{off}{' ' + unit if unit else ''}"


def _short(value: float) -> str:
    return f"{value:.1f}" if 10 <= abs(value) < 1e5 else f"{value:.3g}"
