"""What each method gives away, on digits: a row a method, with and without noise and secure aggregation.

    python -m tools.audit [--quick] [--only lora,head] [--steps 120] [--json]

A vit-nano (two blocks of width 16). Reconstruction: the correlation of an inverted image with the true one, a device
with a single row, one local step, two victims; beside it what a stranger's guess, the mean of rows that nobody trained
on, correlates with the same images, and an attack has to do better to have seen anything. Membership: four devices
with 25 rows each train for some rounds; loss threshold on those 100 rows against 300 others.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedge.audit import inversion
from fedge.audit.report import inverted, members
from fedge.core.method import Method, Rows
from fedge.core.rng import seed_everything
from fedge.data.encode import encode
from fedge.data.source import read
from fedge.methods.combine.private import Private
from fedge.methods.combine.secagg import SecAgg
from fedge.methods.make import make
from fedge.models.load import load
from fedge.plan.rehearsal import repeated
from fedge.run.brief import Brief
from fedge.run.server import StageServer
from fedge.testing.driver import start

METHODS = ("fedavg", "lora", "ffa_lora", "bitfit", "houlsby", "promptfl", "head", "fedmd", "fedkseed")
VICTIMS, MEMBERS, OTHERS, PUBLIC = 2, 100, 300, 40
#: Rounds and steps of the training whose members are looked for.
ROUNDS, STEPS = 6, 10


def settings(method: Method) -> dict[str, Method]:
    """The method alone, and with what can be around it."""
    found = {"none": method}
    roles = method.card.roles
    found["local noise, z = 1"] = Private(inner=method, where="local", clip=0.1, noise=1.0)
    if method.linear and set(roles) <= {"delta", "scalars"}:
        found["secure aggregation"] = SecAgg(inner=method, largest=32.0)
    return found


def rows_of(key: str, steps: int, seed: int = 0) -> list[dict[str, Any]]:
    """A line for each setting of one method."""
    raw = read("digits", folder=Path(), rows=MEMBERS + OTHERS + PUBLIC, seed=seed, test=0.1)
    options = {"hidden": 16, "layers": 2, "mlp": 32}
    loaded = load("vit-nano", "image-classification", classes=10, options=options, seed=seed)
    size = (int(loaded.config["num_channels"]), int(loaded.config["image_size"]))
    data = encode(raw, size, loaded.task, 16, loaded.input_names)
    order = np.random.default_rng(seed).permutation(len(data.train))
    inside, outside, public = np.split(order, [MEMBERS, len(order) - PUBLIC])
    task, base = data.task, loaded.model
    shared = data.train.take(torch.from_numpy(public))
    found = []
    for name, method in settings(make(key)).items():
        once = repeated(method, {"steps": 1, "digest": 1, "batch": 1})
        brief = Brief(seed, 0, "audit", key, once, (once,), (), 1)
        server = StageServer(brief, base, task, shared)
        own = {f"d{at}": data.train.take(torch.from_numpy(inside[at : at + 1])) for at in range(VICTIMS)}
        line = inverted(server, own, steps)
        trained = repeated(method, {"steps": STEPS, "digest": STEPS, "batch": 16})
        parts = np.array_split(inside, 4)
        devices = {f"d{at}": data.train.take(torch.from_numpy(part)) for at, part in enumerate(parts)}
        seed_everything(seed)
        driven = start(trained, base, devices, task, public=shared, seed=seed).go(ROUNDS)
        model = driven.final()
        told = members(
            model, method, task, data.train.take(torch.from_numpy(inside)), data.train.take(torch.from_numpy(outside))
        )
        together = VICTIMS if isinstance(method, SecAgg) else 1
        victims, strangers = (_images(data.train, index) for index in (inside[:together], outside))
        guess = inversion.correlation(strangers.mean(0, keepdim=True), victims)
        found.append({**line, **told, "protection": name, "stranger": guess})
    return found


def _images(rows: Rows, index: np.ndarray) -> torch.Tensor:
    images: torch.Tensor = next(iter(rows.take(torch.from_numpy(index)).chunks(len(index))))["pixel_values"]
    return images


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.audit", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="two methods, few steps")
    parser.add_argument("--only", help="methods, with commas between them")
    parser.add_argument("--steps", type=int, default=120, help="of the inversion")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    chosen = tuple(options.only.split(",")) if options.only else METHODS[:2] if options.quick else METHODS
    figures = []
    for key in chosen:
        for line in rows_of(key, 30 if options.quick else options.steps):
            figures.append(line)
            if not options.json:
                image = "–" if line["reconstruction"] is None else f"{line['reconstruction']:.3f}"
                auc, low = f"{line['mia_auc']:.3f}", f"{line['mia_tpr_at_1_fpr']:.3f}"
                print(
                    f"{key:9} {line['protection']:20} sees {line['sees']:40} {line['bytes_up']:7} B up"
                    f"  image {image:6} (a stranger's guess {line['stranger']:.3f})  AUC {auc}  TPR at 1 % FPR {low}",
                    flush=True,
                )
    if options.json:
        print(json.dumps({"audit": figures}, indent=2))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
