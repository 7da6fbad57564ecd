"""How well the traced peak of memory meets the wall's own count: ``python -m tools.memory [--quick] [--json]``.

Each case is a stage of two rounds on one device, run in a real process behind the host's wall, as ``fedge up`` does.
The error is (measured − traced) / traced, of the whole peak, the frozen weights included. The second round counts
too, because a device's first download is empty.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedge.errors import FedgeError
from fedge.run.launcher import Options, up
from fedge.units import format_bytes

#: Goals for the middle and for the worst of the relative errors, in percent.
MEDIAN, WORST = 3.0, 8.0

_FEDERATION = """\
name: memory
model: {{name: {model}, options: {{hidden: 256, layers: 6, heads: 4, mlp: 1024}}}}
data: {data}
devices:
  device: {{profile: pi-4b-4g, memory: 8GiB}}
evaluate: {{every: 1, rows: 16}}
stages:
{stages}
"""
_DATA = {
    "vit-nano": "{dataset: digits, test: 5%}",
    "bert-nano": "{dataset: words.csv, test: 5%, length: 32}",
}
_CASES = (
    "fedavg",
    "fedavg, micro_batch: 8",
    "fedavg, depth: 0.5",
    "lora",
    "lora, batch: 96, checkpointing: true",
    "bitfit",
    "head, batch: 96",
)
_QUICK = ("fedavg, depth: 0.5", "lora", "head, batch: 96")


@dataclass(frozen=True)
class Case:
    """One stage: traced and measured peaks in bytes."""

    name: str
    traced: int
    measured: int

    @property
    def error(self) -> float:
        """Relative error in percent; positive when more was held than was traced."""
        return 100.0 * (self.measured - self.traced) / self.traced


def measure(model: str, cases: tuple[str, ...], folder: Path) -> list[Case]:
    """Run ``cases`` on ``model`` in real processes."""
    written = [case if "batch:" in case.replace("micro_batch:", "") else f"{case}, batch: 32" for case in cases]
    stages = "\n".join(f"  - customize: {{method: {w}, rounds: 2, steps: 2, pick: richest}}" for w in written)
    path = folder / f"{model}.yaml"
    path.write_text(_FEDERATION.format(model=model, data=_DATA[model], stages=stages))
    run = up(path, (), Options(runs=folder / "runs"), lambda line: print(line, file=sys.stderr))
    lines = [line for line in run.metrics if line["round"] is None]
    return [
        Case(f"{model} {case}", line["predicted_peak_memory"], line["peak_memory"])
        for case, line in zip(cases, lines, strict=True)
    ]


def words(path: Path, rows: int = 400) -> None:
    """Write texts of random words in two classes."""
    chance = random.Random(0)
    kinds = (("ship", "sail", "harbour", "wave", "tide"), ("field", "plough", "barley", "sheep", "gate"))
    lines = [f"{' '.join(chance.choices(kinds[row % 2], k=30))},{row % 2}" for row in range(rows)]
    path.write_text("\n".join(["text,label", *lines]) + "\n")


def figures(cases: list[Case]) -> list[dict[str, Any]]:
    """Each case's error, and the middle and the worst of them beside their goals."""
    errors = [abs(case.error) for case in cases]
    middle, worst = statistics.median(errors), max(errors)
    found: list[dict[str, Any]] = [
        {"name": f"error of the traced peak: {case.name}", "value": round(case.error, 2), "unit": "%", "n": 1}
        | {"traced": case.traced, "measured": case.measured}
        for case in cases
    ]
    for name, value, goal in (("median", middle, MEDIAN), ("worst", worst, WORST)):
        summary = {"name": f"{name} error of the traced peak", "value": round(value, 2), "unit": "%"}
        spread = round(worst - min(errors), 2)
        found.append({**summary, "goal": f"<= {goal:g}", "holds": value <= goal, "spread": spread, "n": len(cases)})
    return found


def main() -> int:
    """Measure and print; 0 when the goals hold."""
    parser = argparse.ArgumentParser(prog="python -m tools.memory", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one model and three cases")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    told = parser.parse_args()
    cases: list[Case] = []
    with tempfile.TemporaryDirectory(prefix="fedge-memory-") as folder:
        words(Path(folder) / "words.csv")
        try:
            for model in ("vit-nano",) if told.quick else ("vit-nano", "bert-nano"):
                cases += measure(model, _QUICK if told.quick else _CASES, Path(folder))
        except FedgeError as error:
            print(f"tools.memory: {error}", file=sys.stderr)
            return error.exit_code
    found = figures(cases)
    if told.json:
        print(json.dumps({"figures": found}, indent=2))
    else:
        for case in cases:
            traced, measured = format_bytes(case.traced), format_bytes(case.measured)
            print(f"{case.name:45} traced {traced:>10}  measured {measured:>10}  {case.error:+5.1f} %")
        for line in found[-2:]:
            print(f"{line['name']}: {line['value']} % (goal {line['goal']})")
    return 0 if all(line.get("holds", True) for line in found) else 1


if __name__ == "__main__":
    raise SystemExit(main())
