"""The real clock against the virtual one: rounds of six different devices, on ``federations/paced.yaml``.

What the quotas alone would have given is stated apart: a training loop under a quota, without anything that waits, and
how much less it gets done than its share of a core says.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Iterator
from mmap import mmap
from pathlib import Path
from typing import Any

import torch

from fedge.core.fit import fit
from fedge.core.task import Task
from fedge.emulation import quota
from fedge.emulation.process import die_with_parent
from fedge.errors import LimitError
from fedge.run.launcher import Options, Run, up
from fedge.run.warmup import small_step
from tools.fidelity.seen import against, says

FEDERATION = Path(__file__).parents[2] / "federations" / "paced.yaml"
SHARES = (0.05, 0.10, 0.25, 0.50)


def measure(quick: bool) -> Iterator[dict[str, Any]]:
    """Rounds and devices of one run, its model's bits, and the quotas on their own."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="fedge-clock-") as folder:
        told = [f"stages.customize.rounds={2 if quick else 6}"]
        runs = {
            clock: up(FEDERATION, [*told, f"emulation.clock={clock}"], Options(runs=Path(folder)), _say)
            for clock in ("real", "virtual")
        }
        yield from _rounds(runs["real"])
        same = len({run.summary["model_sha256"] for run in runs.values()}) == 1
        yield says("real and virtual clock, the model's bits", same, "equal" if same else "unequal")
    yield from alone(quick)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _rounds(run: Run) -> Iterator[dict[str, Any]]:
    rounds: dict[int, list[dict[str, Any]]] = {}
    for record in run.metrics:
        if record["device"] and record["round"] is not None:
            rounds.setdefault(record["round"], []).append(record)
    for number, records in sorted(rounds.items()):
        slow = records[0]["slowdown"]
        told = (max(r["arrival"] for r in records) - min(r["began"] for r in records)) * slow
        seen = max(record["wall_s"] for record in records)
        devices = {r["device"]: 100 * (r["wall_s"] / slow / (r["arrival"] - r["began"]) - 1) for r in records}
        worst = max(devices, key=lambda name: abs(devices[name]))
        more = {
            "slowdown": round(slow, 3),
            "devices": len(records),
            "worst_device": worst,
            "worst_device_error": round(devices[worst], 2),
            "behind_s": round(sum(record["behind_s"] for record in records), 4),
        }
        yield {**against(f"round {number + 1} of six devices, real clock", told, [seen], "s", within=10.0), **more}


def alone(quick: bool) -> Iterator[dict[str, Any]]:
    """How much less training gets done under a quota than its share of a core says, in percent of what it says."""
    seconds, repeats = (2.0, 1) if quick else (6.0, 3)
    for name in quota.KINDS:
        try:
            quota.KINDS[name]("fidelity", f"probe-{os.getpid()}").close()
        except LimitError:
            continue
        for share in SHARES[-1:] if quick else SHARES:
            free = _steps(None, 1.0, seconds)
            got = [_steps(name, share, seconds) for _ in range(repeats)]
            lost = sorted(100 * (1 - steps / (free * share)) for steps in got)
            yield {
                "name": f"quota alone, {name}, {share:.0%} of a core: training lost beyond its share",
                "value": round(lost[len(lost) // 2], 1),
                "unit": "%",
                "spread": round(lost[-1] - lost[0], 1),
                "n": len(lost),
                "repeats": [round(value, 1) for value in lost],
            }


def _steps(name: str | None, share: float, seconds: float) -> float:
    """Steps of training a second that a process gets done with a share of a core; None: without a quota."""
    done = mmap(-1, 8)
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        die_with_parent(parent=parent)
        _train(done)
    throttle = None if name is None else quota.KINDS[name]("fidelity", f"train-{child}")
    try:
        if throttle is not None:
            throttle.join(child)
        time.sleep(1.0)
        if throttle is not None:
            throttle.apply(share)
            time.sleep(4 * quota.PERIOD)
        begun, before = time.monotonic(), int.from_bytes(done[:8], "little")
        time.sleep(seconds)
        return (int.from_bytes(done[:8], "little") - before) / (time.monotonic() - begun)
    finally:
        if throttle is not None:
            throttle.lift()
        os.kill(child, 9)
        os.waitpid(child, 0)
        if throttle is not None:
            throttle.close()


def _train(done: mmap) -> None:
    model, batch = small_step()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    loss = Task("image-classification", 4).loss
    steps = 0
    while True:
        fit(model, [batch], loss=loss, optimizer=optimizer, steps=1)
        steps += 1
        done[:8] = steps.to_bytes(8, "little")
