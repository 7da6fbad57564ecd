"""What a minority of hostile devices does to digits, with the mean and with each rule.

    python -m tools.robust [--quick] [--seeds 3] [--attacks none,sign_flip] [--json]

Ten devices with random tenths of the digits train a 64-128-10 perceptron with FedAvg for six rounds of five steps,
inline; three of them are hostile. Each line: accuracy on the held-out fifth (and, for the backdoor, how often its
trigger has its way).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits

from fedge.core.method import Method
from fedge.core.task import Task
from fedge.data.rows import Rows
from fedge.methods.combine.robust import Robust
from fedge.methods.customize.fedavg import FedAvg
from fedge.testing.attacks import ATTACKS, Attack, triggered
from fedge.testing.driver import start
from tools.bare import mlp
from tools.figures import figure, show

RULES = ("mean", "median", "trimmed", "krum", "multikrum", "clip", "fltrust")
DEVICES, HOSTILE, ROUNDS, PUBLIC = 10, 3, 6, 100
TASK = Task("image-classification", 10)
INNER = FedAvg(lr=4e-3, steps=5, batch=32)


def measure(rule: str, attack: str | None, seed: int, rounds: int = ROUNDS) -> tuple[float, float]:
    """Accuracy, and the share of triggered digits of other classes that are taken for the attackers' target."""
    digits = load_digits()
    pixels = (digits.images / 16.0).astype(np.float32)[:, None]
    order = np.random.default_rng(seed).permutation(len(pixels))
    held, public, rest = np.split(order, [len(order) // 5, len(order) // 5 + PUBLIC])

    def rows(index: np.ndarray) -> Rows:
        columns = {"pixel_values": torch.from_numpy(pixels[index]), "labels": torch.from_numpy(digits.target[index])}
        return Rows(columns, TASK.kind)

    parts = {f"d{n}": rows(part) for n, part in enumerate(np.array_split(rest, DEVICES))}
    method: Method = INNER if rule == "mean" else Robust(inner=INNER, rule=rule, attackers=HOSTILE / DEVICES)  # type: ignore[arg-type]
    variants = dict.fromkeys(parts, method)
    if attack is not None:
        for name in sorted(parts)[:HOSTILE]:
            variants[name] = Attack(inner=INNER, kind=attack, scale=DEVICES / HOSTILE)  # type: ignore[arg-type]
    torch.manual_seed(seed)
    driven = start(method, mlp(), parts, TASK, variants=variants, public=rows(public), seed=seed).go(rounds)
    test = next(rows(held).chunks(len(held)))
    model = driven.final().eval()

    def said(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        with torch.no_grad():
            output = model(**TASK.inputs(batch))
        return (output if isinstance(output, torch.Tensor) else output.logits).argmax(-1)

    accuracy = float((said(dict(test)) == test["labels"]).float().mean())
    others = test["labels"] != 0
    return accuracy, float((said(triggered(test))[others] == 0).float().mean())


def figures(
    seeds: int, rules: Sequence[str], attacks: Sequence[str | None], rounds: int, tell: bool
) -> list[dict[str, Any]]:
    """A figure for each attack and rule; ``tell``: print each as soon as it is there."""
    found: list[dict[str, Any]] = []
    for attack in attacks:
        for rule in rules:
            both = [measure(rule, attack, seed, rounds) for seed in range(seeds)]
            name = f"{attack or 'no attack'}, {rule}"
            found.append(figure(f"{name}: accuracy", [accuracy for accuracy, _ in both], ""))
            if attack == "backdoor":
                found.append(figure(f"{name}: trigger obeyed", [obeyed for _, obeyed in both], ""))
            if tell:
                print(f"{name}: {', '.join(f'{accuracy:.3f} ({obeyed:.3f})' for accuracy, obeyed in both)}", flush=True)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.robust", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one seed, three rounds")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--attacks", default=",".join(["none", *ATTACKS]), help="some of them, with commas between")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    attacks = [None if word == "none" else word for word in options.attacks.split(",")]
    unknown = {word for word in attacks if word} - set(ATTACKS)
    if unknown:
        parser.error(f"no attack {', '.join(sorted(unknown))}; there are none, {', '.join(ATTACKS)}")
    seeds, rounds = (1, 3) if options.quick else (options.seeds, ROUNDS)
    return show(figures(seeds, RULES, attacks, rounds, not options.json), options.json)


if __name__ == "__main__":
    raise SystemExit(main())
