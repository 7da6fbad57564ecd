"""Methods with exits beside the same model trained without them, at the same rounds, steps, devices and rows.

    python -m tools.exits [--quick] [--json] [--only joint,reefl] [--seeds N]

vit-nano is trained on half of the digits; then six devices, two of each depth (1, 2 and 4 of its 4 blocks), train on
rows dealt by Dirichlet 0.5. Those that train blocks are held against FedAvg from the same start, those that rest them
against head tuning, each by six devices of full depth. All in one process: what is compared is what is learnt.
Figures are medians over seeds, in points of accuracy on the test rows; ``short`` is how far the last exit falls behind.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fedge.core.method import Method
from fedge.data.encode import Data, encode
from fedge.data.partition import partition
from fedge.data.source import read
from fedge.methods.customize.fedavg import FedAvg
from fedge.methods.customize.head import Head
from fedge.methods.make import make
from fedge.models.load import load
from fedge.testing.driver import drive
from tools.figures import figure, show

#: Method -> whether it trains the blocks too.
METHODS = {
    "joint": True,
    "depthfl": True,
    "inclusivefl": True,
    "scalefl": True,
    "anytime": False,
    "reefl": False,
}
NUMBERS = {"steps": 8, "batch": 32}
DEPTHS = (1, 2, None)
GOAL = 1.5


def main() -> int:
    """Measure, print, and answer 1 where a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, four rounds, joint and anytime alone")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", help="methods, separated by commas")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keys = (arguments.only or ("joint,anytime" if arguments.quick else ",".join(METHODS))).split(",")
    rounds, seeds = (4, 1) if arguments.quick else (8, arguments.seeds)
    found: dict[str, list[float]] = {}
    for seed in range(seeds):
        for name, value in _one(seed, keys, rounds).items():
            found.setdefault(name, []).append(value)
            print(f"seed {seed}: {name} {value:.2f}", file=sys.stderr, flush=True)
    goal = {name: GOAL for name in found if name.endswith(", short")}
    return show([figure(name, values, "points", goal.get(name)) for name, values in found.items()], arguments.json)


def _one(seed: int, keys: list[str], rounds: int) -> dict[str, float]:
    """Every figure for one seed, in points."""
    raw = read("digits", folder=Path(), seed=seed)
    loaded = load("vit-nano", "image-classification", classes=10, seed=seed)
    data = encode(raw, (1, 8), loaded.task, 0, loaded.input_names)
    half = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(seed))
    first, rest = half[: len(half) // 2], half[len(half) // 2 :]
    start = FedAvg(steps=200, batch=32, lr=2e-3)
    base = drive(start, loaded.model, {"a": data.train.take(first)}, loaded.task, seed=seed).final()
    base.eval().requires_grad_(False)
    labels = data.labels[rest.numpy()] if data.labels is not None else None
    parts = partition(labels, None, 6, "dirichlet", 0.5, seed, len(rest))
    rows = {f"d{number}": data.train.take(rest[torch.from_numpy(part)]) for number, part in enumerate(parts)}
    found: dict[str, float] = {}

    def trained(method: Method, picks: dict[str, Method] | None) -> nn.Module:
        return drive(method, base, rows, loaded.task, rounds, variants=picks, seed=seed).final().eval()

    without: dict[bool, float] = {}
    for blocks in sorted({METHODS[key] for key in keys}):
        plain: Any = FedAvg(**NUMBERS, lr=1e-3) if blocks else Head(**NUMBERS, lr=1e-2)
        without[blocks] = _accuracies(trained(plain, None), data)[-1]
        found["without exits, " + ("blocks trained" if blocks else "blocks at rest")] = without[blocks]
    for key in keys:
        options: dict[str, Any] = {**NUMBERS, "exits": (1, 2)}
        if key == "scalefl":
            options["widths"] = (0.5, 0.75)
        method = make(key, options)
        picks = {name: replace(method, deepest=DEPTHS[n % 3]) for n, name in enumerate(rows)}  # type: ignore[call-arg]
        accuracies = _accuracies(trained(method, picks), data)
        for point, accuracy in zip((1, 2, 4), accuracies, strict=True):
            found[f"{key}, exit {point}"] = accuracy
        found[f"{key}, short"] = without[METHODS[key]] - accuracies[-1]
    return found


@torch.no_grad()
def _accuracies(model: nn.Module, data: Data) -> list[float]:
    """Accuracy on the test rows of each exit, in points; of a model without exits, its own."""
    batch = next(data.test.chunks(len(data.test)))
    output: Any = model(**data.task.inputs(batch))
    logits = output if isinstance(output, list) else [output.logits]
    return [100 * float((each.argmax(-1) == batch["labels"]).float().mean()) for each in logits]


if __name__ == "__main__":
    sys.exit(main())
