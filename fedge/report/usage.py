"""What each device used of its memory: measured peak, prediction and budget, stage by stage."""

from __future__ import annotations

from dataclasses import dataclass

from fedge.report.record import Record
from fedge.units import format_bytes


@dataclass(frozen=True)
class Usage:
    """One device in one stage, in bytes. peak: 0 where nothing measured it. over: it was killed at its limit."""

    stage: int
    title: str
    budget: int
    peak: int = 0
    predicted: int = 0
    over: bool = False

    @property
    def share(self) -> float:
        return (self.budget if self.over else self.peak or self.predicted) / self.budget

    def short(self) -> str:
        """'8.3 of 9 MiB', as it fits beside a bar."""
        if self.over:
            return f"over {format_bytes(self.budget)}"
        return f"{format_bytes(self.peak or self.predicted)} of {format_bytes(self.budget)}"

    def told(self) -> str:
        """All of it in three lines."""
        lines = [
            self.title,
            f"peak {format_bytes(self.peak)} of {format_bytes(self.budget)}" if self.peak else "peak not measured",
        ]
        if self.predicted:
            lines.append(f"predicted {format_bytes(self.predicted)}")
        if self.over:
            lines.append("went over its memory and was killed")
        return "\n".join(lines)


def usages(record: Record) -> dict[str, list[Usage]]:
    """Each device's stages; from its closing line, else from its answers and picks as far as the run got."""
    over = {(loss.stage, loss.device) for loss in record.losses if loss.said.get("cause") == "memory"}
    peaks: dict[tuple[int, str], int] = {}
    for answer in record.answers:
        key = answer.stage, answer.device
        peaks[key] = max(peaks.get(key, 0), answer.said.get("peak_memory") or 0)
    predicted = {(pick.stage, pick.device): pick.said.get("predicted_peak") or 0 for pick in record.picks}
    found: dict[str, list[Usage]] = {}
    for device in record.devices:
        for stage in record.stages:
            key = stage.index, device
            line = next((line for line in stage.devices if line.get("device") == device), {})
            budget = line.get("budget_memory") or record.budgets.get(device, (None, 0))[1]
            peak = line.get("peak_memory") or peaks.get(key, 0)
            expected = line.get("predicted_peak_memory") or predicted.get(key, 0)
            if budget and (peak or expected or key in over):
                found.setdefault(device, []).append(
                    Usage(*(stage.index, stage.title, budget, peak, expected, key in over))
                )
    return found
