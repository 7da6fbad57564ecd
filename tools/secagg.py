"""What secure aggregation costs beside plain averaging: bytes a device and processor time a round, inline.

    python -m tools.secagg [--quick] [--devices 32] [--json]

A 64-128-10 perceptron (9,610 numbers) trained by FedAvg on digits, ten steps of 16 rows; the same rounds with and
without masks, in turn. Everything runs in one process, so the processor time is that of all devices and the server.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from sklearn.datasets import load_digits

from fedge.core.method import Method
from fedge.core.task import Task
from fedge.data.rows import Rows
from fedge.methods.combine.secagg import SecAgg
from fedge.methods.customize.fedavg import FedAvg
from fedge.testing.driver import Driven, start
from tools.bare import mlp
from tools.figures import figure, show

INNER = FedAvg(lr=2e-3, steps=10, batch=16)


def begun(method: Method, devices: int) -> Driven:
    digits = load_digits()
    pixels = torch.from_numpy((digits.images / 16.0).astype(np.float32)[:, None])
    labels = torch.from_numpy(digits.target)
    task = Task("image-classification", 10)
    rows = {
        f"d{at:03d}": Rows({"pixel_values": pixels[part], "labels": labels[part]}, task.kind)
        for at, part in enumerate(np.array_split(np.arange(len(labels)), devices))
    }
    torch.manual_seed(0)
    return start(method, mlp(), rows, task).go(1)  # the first round pays what is paid once


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.secagg", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="eight devices, one round of each")
    parser.add_argument("--devices", type=int, default=32)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    devices, rounds = (8, 1) if options.quick else (options.devices, 4)
    plain, masked = begun(INNER, devices), begun(SecAgg(inner=INNER, largest=64.0), devices)
    spent: list[tuple[float, float]] = []
    for _ in range(rounds):
        pair = []
        for driven in (plain, masked):
            before = time.process_time()
            driven.go(1)
            pair.append(time.process_time() - before)
        spent.append((pair[0], pair[1]))
    up = [masked.up[-1][name] / plain.up[-1][name] for name in plain.devices]
    down = [masked.down[-1][name] / plain.down[-1][name] for name in plain.devices]
    found = [
        figure(f"{devices} devices, bytes up, masked over plain", up, "x"),
        figure(f"{devices} devices, bytes down, masked over plain", down, "x"),
        figure(f"{devices} devices, processor time of a round, masked over plain", [m / p for p, m in spent], "x"),
        figure("masks, keys and shares of one device", [1e3 * (m - p) / devices for p, m in spent], "ms"),
    ]
    return show(found, options.json)


if __name__ == "__main__":
    raise SystemExit(main())
