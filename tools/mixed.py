"""A mixed cohort beside its alternatives: ``python -m tools.mixed [--quick] [--json] [--data FOLDER]``.

Each seed runs ``federations/mixed.yaml`` as it is, and on the same rows and devices

- ``top layer`` and ``head``: single methods that every device affords;
- ``strong only``: full fine-tuning, by those alone whose link and processor carry it within the deadline;
- ``flexlora`` and ``hetlora``: mixed ranks of one method, every device the rank that it affords;
- ``ceiling``: full fine-tuning by all, whatever it costs.

Each alternative but the ceiling, which gets the mixed cohort's rounds, is given the mixed cohort's emulated time and
bytes and runs as many rounds as both carry by the plan, the last one begun if not carried, but at most ``--most`` times
the mixed cohort's; where that binds the line says so. Compared are the accuracy on all test rows and the mean
accuracy of the weak devices (the test rows in each one's label mix), seed by seed; the interval is Student's, 95 %.
All runs are inline: the same bits as with processes.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fedge.core.method import Method
from fedge.errors import FedgeError
from fedge.methods.customize.fedavg import FedAvg
from fedge.run.launcher import Options, up
from fedge.run.planning import plan
from fedge.spec.cache import cache_folder
from tools.figures import show
from tools.ladder import FASHION, digest, made

Say = Callable[[str], None]

FEDERATION = Path(__file__).parents[1] / "federations" / "mixed.yaml"
WEAK = ("zero", "phone")
#: Student's t at 97.5 % by degrees of freedom.
_T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


class Whole(FedAvg):
    """FedAvg that offers itself as it is and nothing leaner."""

    def variants(self) -> Sequence[Method]:
        return [self]


def whole(**options: Any) -> Method:
    """For ``method: tools.mixed:whole``."""
    return Whole(**options)


_WHOLE = "stages.0.customize.method=tools.mixed:whole"
_ALONE = "stages.0.customize.candidates=null"
#: What each arm changes in the file; None as deadline: no limit.
ARMS: dict[str, list[str]] = {
    "mixed": [],
    "top layer": [_WHOLE, _ALONE, "stages.0.customize.depth=0.25"],
    "strong only": [_WHOLE, _ALONE],
    "ceiling": [_WHOLE, _ALONE, "stages.0.customize.deadline=null"],
    "head": ["stages.0.customize.method=head", _ALONE, "stages.0.customize.lr=0.01"],
    "flexlora": ["stages.0.customize.method=flexlora", _ALONE, "stages.0.customize.lr=4e-3"],
    "hetlora": ["stages.0.customize.method=hetlora", _ALONE, "stages.0.customize.lr=4e-3"],
}


@dataclass(frozen=True)
class Outcome:
    """What an arm reached and spent in one run. capped: more rounds would have fitted than it was given."""

    accuracy: float
    weak: float
    seconds: float
    sent: int
    rounds: int
    lost: int
    picks: dict[str, int]
    capped: bool = False


@dataclass
class Bench:
    """Runs arms, and keeps what came of them in a file."""

    overrides: list[str]
    cache: Path
    runs: Path
    say: Say

    def run(self, arm: str, seed: int, rounds: int) -> Outcome:
        """An arm for so many rounds, from the file where it ran before."""
        changes = [f"seed={seed}", f"stages.0.customize.rounds={rounds}", f"evaluate.every={rounds}"]
        told = [*self.overrides, *ARMS[arm], *changes]
        key = digest([FEDERATION.read_text(), told])
        known = json.loads(self.cache.read_text()) if self.cache.is_file() else {}
        if key not in known:
            run = up(FEDERATION, told, Options(runs=self.runs, inline=True), lambda line: None)
            found = vars(_outcome(run.summary))
            known = json.loads(self.cache.read_text()) if self.cache.is_file() else {}
            known[key] = {"arm": arm, "seed": seed, **found}
            self.cache.parent.mkdir(parents=True, exist_ok=True)
            beside = self.cache.with_suffix(".new")
            beside.write_text(json.dumps(known, indent=1))
            beside.replace(self.cache)
            self.say(f"{arm}, seed {seed}, {rounds} rounds: {found['accuracy']:.4f}, weak {found['weak']:.4f}")
        return Outcome(**{name: value for name, value in known[key].items() if name not in ("arm", "seed")})

    def carried(self, arm: str, budget: Outcome, most: int) -> tuple[int, bool]:
        """How many rounds of an arm a budget carries, and whether ``most`` cut that short."""
        rows = plan(FEDERATION, [*self.overrides, *ARMS[arm]], lambda line: None)
        chosen = [row for row in rows if row["chosen"]]
        down = sum(row["bytes_down"] for row in chosen)
        sent = down + sum(row["bytes_up"] for row in chosen)
        # nothing has changed yet when the first round begins, so its downloads are empty
        fitting = math.ceil(min(budget.seconds / max(row["virtual_s"] for row in chosen), (budget.sent + down) / sent))
        return max(1, min(fitting, most)), fitting > most


def _outcome(summary: Mapping[str, Any]) -> Outcome:
    stage, devices = summary["stages"][-1], summary["devices"]
    weak = [line["accuracy"] for line in devices if line["name"].startswith(WEAK)]
    picks: dict[str, int] = {}
    for line in devices:
        changes = ", ".join(f"{name}={value}" for name, value in line["variant"].items())
        name = f"{line['method']}({changes})" if line["method"] else "nothing"
        picks[name] = picks.get(name, 0) + 1
    return Outcome(
        accuracy=stage["metrics"]["accuracy"],
        weak=statistics.mean(weak),
        seconds=stage["virtual_s"],
        sent=stage["bytes_up"] + stage["bytes_down"],
        rounds=stage["rounds"],
        lost=stage["lost"],
        picks=picks,
    )


def compare(bench: Bench, arms: Sequence[str], seeds: Sequence[int], rounds: int, most: int) -> list[dict[str, Any]]:
    """Every arm on every seed, then the mixed cohort against each."""
    found: dict[str, list[Outcome]] = {"mixed": [bench.run("mixed", seed, rounds) for seed in seeds]}
    notes: dict[str, str] = {}
    for arm in arms:
        given, capped = rounds, False
        if arm != "ceiling":
            given, capped = bench.carried(arm, found["mixed"][0], most * rounds)
        notes[arm] = f"{given} rounds" + (" (more would have fitted)" if capped else "")
        found[arm] = [bench.run(arm, seed, given) for seed in seeds]
    notes["mixed"] = f"{rounds} rounds; " + ", ".join(f"{n} × {p}" for p, n in found["mixed"][0].picks.items())
    lines = []
    for arm, outcomes in found.items():
        for what in ("accuracy", "weak"):
            values = [getattr(outcome, what) for outcome in outcomes]
            name = f"{arm}: {'accuracy' if what == 'accuracy' else 'weak devices'}"
            lines.append({**_line(name, values), "note": notes[arm]})
    lines += _against(found)
    lines.append({**_line("mixed: devices lost", [float(o.lost) for o in found["mixed"]]), "unit": "devices"})
    return lines


def _against(found: Mapping[str, Sequence[Outcome]]) -> list[dict[str, Any]]:
    lines = []
    for arm, outcomes in found.items():
        if arm in ("mixed", "ceiling"):
            continue
        gains = [mine.accuracy - other.accuracy for mine, other in zip(found["mixed"], outcomes, strict=True)]
        lines.append(_goal(f"mixed above {arm}", gains, 0.0))
    if "strong only" in found:
        gains = [mine.weak - other.weak for mine, other in zip(found["mixed"], found["strong only"], strict=True)]
        lines.append(_goal("mixed above strong only, on weak devices", gains, 0.0))
    singles = [arm for arm in ("top layer", "head") if arm in found]
    if singles and "ceiling" in found:
        best = max(singles, key=lambda arm: statistics.mean(o.accuracy for o in found[arm]))
        pairs = zip(found["mixed"], found[best], found["ceiling"], strict=True)
        shares = [(m.accuracy - a.accuracy) / max(c.accuracy - a.accuracy, 1e-9) for m, a, c in pairs]
        lines.append(_goal(f"share of the gap from {best} to the ceiling that is closed", shares, 0.5))
    return lines


def _line(name: str, values: Sequence[float]) -> dict[str, Any]:
    value, spread = statistics.mean(values), max(values) - min(values)
    return {"name": name, "value": round(value, 4), "unit": "", "spread": round(spread, 4), "n": len(values)}


def _goal(name: str, values: Sequence[float], least: float) -> dict[str, Any]:
    line = _line(name, values)
    if len(values) > 1:
        half = _T[min(len(values) - 1, 9)] * statistics.stdev(values) / math.sqrt(len(values))
        line["interval"] = [round(line["value"] - half, 4), round(line["value"] + half, 4)]
    return {**line, "goal": f">= {least:g}", "holds": statistics.mean(values) >= least}


def main() -> int:
    """Run what isn't known yet and print; the exit code is 0 when every goal holds."""
    parser = argparse.ArgumentParser(prog="python -m tools.mixed", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one seed, two rounds, the mixed cohort and one other")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seed", type=int, help="only this one")
    parser.add_argument("--rounds", type=int, default=12, help="of the mixed cohort")
    parser.add_argument("--most", type=int, default=3, help="times the rounds of the mixed cohort that an arm may have")
    parser.add_argument("--arm", action="append", choices=[arm for arm in ARMS if arm != "mixed"], help="only these")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="the folder with the data sets")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--cache", type=Path, default=cache_folder() / "mixed.json", help="file of what was measured")
    told = parser.parse_args()
    torch.set_num_threads(1)

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    folder = told.data.resolve()
    arms = told.arm or [arm for arm in ARMS if arm != "mixed"]
    seeds, rounds = (range(1), 2) if told.quick else (range(told.seeds), told.rounds)
    if told.seed is not None:
        seeds = range(told.seed, told.seed + 1)
    try:
        base = made(FASHION, folder, say)
        overrides = [f"model={base}", f"data.dataset={folder / 'fsdd_logmel.npz'}"]
        bench = Bench(overrides, told.cache, told.runs, say)
        lines = compare(bench, arms[:1] if told.quick else arms, seeds, rounds, told.most)
    except FedgeError as error:
        print(f"tools.mixed: {error}", file=sys.stderr)
        return error.exit_code
    return show(lines, told.json)


if __name__ == "__main__":
    raise SystemExit(main())
