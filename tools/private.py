"""Accuracy against epsilon on AG News: LoRA, FFA-LoRA and the head alone, under central differential privacy.

    python -m tools.private --data FOLDER [--quick] [--model NAME] [--seeds 1] [--rounds 10] [--steps 4] [--json]

Forty devices, all of whom are asked in each round, so no epsilon is won by sampling them; clip and rates are the same
for every epsilon. ``FOLDER`` holds train.csv and test.csv (text, label); ``--quick`` takes bert-nano, six devices and
three rounds. A cell is printed as soon as it is there.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from fedge.run.launcher import Options, up
from tools.figures import figure, show

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
METHODS = {"lora": "lr: 3e-3", "ffa_lora": "lr: 5e-3", "head": "lr: 1e-2"}
EPSILONS = (None, 64.0, 8.0, 2.0)
TEXT = """\
name: private
seed: {seed}
model: {model}
data: {{dataset: {data}, length: 32, rows: {rows}, test: 20%}}
devices:
  pi: {{profile: pi-4b-4g, count: {devices}}}
evaluate: {{every: {rounds}, baselines: false}}
stages:
  - customize: {{method: {method}, rounds: {rounds}, steps: {steps}, batch: 8, {rate}{privacy}}}
"""


@dataclass(frozen=True)
class Size:
    """How large a federation is: rows in all, and local steps in each round."""

    devices: int
    rows: int
    rounds: int
    steps: int


def accuracy(method: str, epsilon: float | None, seed: int, model: str, data: str, size: Size) -> float:
    """The final model's accuracy on the held-out rows; epsilon None: no noise and no clip."""
    privacy = "" if epsilon is None else f", privacy: {{epsilon: {epsilon}, delta: 1e-3, clip: 0.2}}"
    text = TEXT.format(
        seed=seed, model=model, data=data, method=method, rate=METHODS[method], privacy=privacy, **asdict(size)
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "private.yaml"
        path.write_text(text)
        run = up(path, (), Options(runs=Path(folder), inline=True), lambda line: None)
    return float(run.summary["stages"][0]["metrics"]["accuracy"])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.private", description=__doc__.split("\n")[0])
    parser.add_argument("--data", required=True, help="a folder or file with AG News")
    parser.add_argument("--model", help="another model than MiniLM")
    parser.add_argument("--only", help="methods, with commas between them")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epsilons", help="some of none, 64, 8, 2, with commas between them")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--steps", type=int, default=4, help="of a device in a round")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    model = options.model or ("bert-nano" if options.quick else MINILM)
    data = str(Path(options.data).resolve())
    devices, rows, rounds = (6, 400, 3) if options.quick else (40, 2000, 10)
    size = Size(devices, rows, options.rounds or rounds, options.steps)
    words = options.epsilons.split(",") if options.epsilons else []
    epsilons = tuple(None if word == "none" else float(word) for word in words) or EPSILONS
    torch.set_num_threads(1)
    found: list[dict[str, Any]] = []
    for method in options.only.split(",") if options.only else METHODS:
        for epsilon in epsilons:
            values = [accuracy(method, epsilon, seed, model, data, size) for seed in range(options.seeds)]
            name = f"{method}, epsilon {'none' if epsilon is None else f'{epsilon:g}'}: accuracy"
            found.append(figure(name, values, ""))
            if not options.json:
                print(f"{name}: {', '.join(f'{value:.4f}' for value in values)}", flush=True)
    return show(found, options.json)


if __name__ == "__main__":
    raise SystemExit(main())
