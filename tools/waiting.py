"""What waiting for slow devices costs: ``python -m tools.waiting [--quick] [--json]``.

``federations/speeds.yaml`` (speeds twenty times apart) is run to a target accuracy by synchronous FedAvg, by FedAvg
with a deadline and over-selection, and by FedBuff; the figures are ratios of emulated seconds to the target, by seed.
A method that does not reach it within its rounds counts with all the time that it had, so its ratio is a bound, and
the line says so. All runs are inline: the same bits as with processes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from fedge.errors import FedgeError
from fedge.report.record import Record
from fedge.report.target import Target, reached
from fedge.run.launcher import Options, up
from tools.figures import figure, show

FEDERATION = Path(__file__).parents[1] / "federations" / "speeds.yaml"
#: What each arm changes; rounds are enough for the target, since a round of FedBuff takes a third of the answers.
ARMS: dict[str, list[str]] = {
    "synchronous": [],
    "deadline": ["stages.train.cohort=8", "stages.train.over=1.5", "stages.train.deadline=2s"],
    "fedbuff": ["stages.train.method=fedbuff", "stages.train.buffer=4", "stages.train.rounds=36"],
}


def seconds(arm: str, seed: int, target: Target, runs: Path, shorter: int) -> tuple[float, bool]:
    """Emulated seconds to the target, and whether it was reached; else all that the run took."""
    rounds = {"fedbuff": 36}.get(arm, 12) // shorter
    told = [*ARMS[arm], f"seed={seed}", f"stages.train.rounds={rounds}"]
    run = up(FEDERATION, told, Options(runs=runs, inline=True), lambda line: None)
    cost = reached(Record(run.folder), 0, target)
    spent = run.summary["stages"][0]["virtual_s"] if cost is None else cost.virtual_s
    print(f"{arm}, seed {seed}: {spent:.2f} s{'' if cost else ', not reached'}", file=sys.stderr, flush=True)
    return float(spent), cost is not None


def figures(found: dict[str, Sequence[tuple[float, bool]]]) -> list[dict[str, Any]]:
    """FedBuff's time as a share of each other arm's, and every arm's own."""
    lines = []
    for arm, goal in (("synchronous", 0.6), ("deadline", 1.0)):
        shares = [mine / other for (mine, _), (other, _) in zip(found["fedbuff"], found[arm], strict=True)]
        lines.append(figure(f"FedBuff's time to the target as a share of {arm}", shares, "×", goal))
    for arm, runs in found.items():
        line = figure(f"{arm}: emulated time to the target", [spent for spent, _ in runs], "s")
        lines.append({**line, "reached": sum(there for _, there in runs)})
    return lines


def main() -> int:
    """Run and print; 0 when the goals hold."""
    parser = argparse.ArgumentParser(prog="python -m tools.waiting", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one seed, a lower target")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--target", type=float, default=0.7, help="accuracy to be reached")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    told = parser.parse_args()
    torch.set_num_threads(1)
    target = Target("accuracy", 0.5 if told.quick else told.target)
    try:
        found: dict[str, Sequence[tuple[float, bool]]] = {
            arm: [
                seconds(arm, seed, target, told.runs, 2 if told.quick else 1)
                for seed in range(1 if told.quick else told.seeds)
            ]
            for arm in ARMS
        }
    except FedgeError as error:
        print(f"tools.waiting: {error}", file=sys.stderr)
        return error.exit_code
    return show(figures(found), told.json)


if __name__ == "__main__":
    raise SystemExit(main())
