"""What fedge costs beyond bare PyTorch: ``python -m tools.overhead [--quick] [--json]``.

A steady round of 32 devices (8 local steps of 32 rows, two processes at work, memory walls up, checkpoint included) is
set against a bare loop: two forked processes that train the same model for the same steps with the same optimizer,
each over its half of the devices, add up what changed, and exchange one sum a round. Both sides run in one program, a
bare round right after each round of fedge, with the same malloc setting on both; so the ratio of a pair says what
fedge adds. Processor time is read from the kernel's counters of every process and thread on either side.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from fedge.errors import FedgeError
from fedge.run.launcher import Options, up
from tools.bare import BATCH, SLOTS, STEPS, Bare, model_of
from tools.figures import figure, show
from tools.kernel import cpu_seconds, tree

DEVICES = 32

_FEDERATION = """\
name: overhead
model: {model}
data: {{dataset: digits, partition: iid}}
devices:
  device: {{profile: jetson-orin-nano-8g, count: {devices}}}
emulation: {{slots: {slots}, wall: {wall}}}
evaluate: {{every: {rounds}, rows: 16}}
stages:
  - train: {{method: fedavg, rounds: {rounds}, steps: {steps}, batch: {batch}, lr: 1e-3, pick: richest}}
"""


@dataclass
class Pairs:
    """Seconds of wall and of processor time, a figure a round, of both sides."""

    fedge: list[float] = field(default_factory=list)
    bare: list[float] = field(default_factory=list)
    fedge_cpu: list[float] = field(default_factory=list)
    bare_cpu: list[float] = field(default_factory=list)

    @property
    def ratios(self) -> list[float]:
        return [one / other for one, other in zip(self.fedge, self.bare, strict=True)]

    @property
    def extra_ms(self) -> list[float]:
        """Processor milliseconds for each visit of a device that the bare loop does not spend."""
        pairs = zip(self.fedge_cpu, self.bare_cpu, strict=True)
        return [(one - other) * 1e3 / DEVICES for one, other in pairs]


def measure(model: str, wall: str, rounds: int, folder: Path) -> Pairs:
    """Run both sides in turn; the first round of each, which still warms up, is not counted."""
    names = {"vit-nano": "vit-nano", "mlp": "{name: 'tools.bare:mlp', task: image-classification}"}
    torch.set_num_threads(1)
    bare = Bare(model_of(model), DEVICES, pinned=wall != "none")
    path = folder / f"{model}-{wall}.yaml"
    path.write_text(
        _FEDERATION.format(
            model=names[model], devices=DEVICES, slots=SLOTS, wall=wall, rounds=rounds, steps=STEPS, batch=BATCH
        )
    )
    pairs = Pairs()
    mine = set(bare.pids)
    began, spent = 0.0, 0.0

    def say(line: str) -> None:
        nonlocal began, spent
        if " round " not in line or "answered" not in line:
            print(line, file=sys.stderr)
            return
        now, used = time.perf_counter(), cpu_seconds(tree(os.getpid(), mine))
        if began:
            pairs.fedge.append(now - began)
            pairs.fedge_cpu.append(used - spent)
        before = cpu_seconds(mine)
        start = time.perf_counter()
        bare.round()
        if began:
            pairs.bare.append(time.perf_counter() - start)
            pairs.bare_cpu.append(cpu_seconds(mine) - before)
        began, spent = time.perf_counter(), cpu_seconds(tree(os.getpid(), mine))

    try:
        up(path, (), Options(runs=folder / "runs", best_effort=wall == "none"), say)
    finally:
        bare.close()
    return pairs


def figures(found: dict[tuple[str, str], Pairs]) -> list[dict[str, Any]]:
    """Ratios of wall time, processor time a visit, and what the pinned malloc costs on its own."""
    lines: list[dict[str, Any]] = []
    for (model, wall), pairs in found.items():
        setting = "malloc as glibc has it, no wall" if wall == "none" else "malloc pinned, wall up"
        goal = 1.15 if model == "vit-nano" else None
        lines.append(figure(f"round of {DEVICES} × {model} against the bare loop ({setting})", pairs.ratios, "×", goal))
        goal = 1.0 if model == "mlp" else None
        name = f"processor time a visit beyond the bare loop's, {model} ({setting})"
        lines.append(figure(name, pairs.extra_ms, "ms", goal))
    for model in ("vit-nano", "mlp"):
        pinned, free = found.get((model, "auto")), found.get((model, "none"))
        if pinned and free:
            ratios = [one / other for one, other in zip(pinned.bare, free.bare, strict=False)]
            lines.append(figure(f"what pinned malloc costs the bare loop, {model}", ratios, "×"))
    return lines


def main() -> int:
    """Measure and print; 0 when the goals hold."""
    parser = argparse.ArgumentParser(prog="python -m tools.overhead", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="walls up only, fewer rounds")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--rounds", type=int, default=9, help="rounds of each side; the first is not counted")
    parser.add_argument("--only", choices=("vit-nano", "mlp"), help="one of the two models")
    told = parser.parse_args()
    rounds = 4 if told.quick else told.rounds
    found: dict[tuple[str, str], Pairs] = {}
    with tempfile.TemporaryDirectory(prefix="fedge-overhead-") as folder:
        try:
            for model in (told.only,) if told.only else ("vit-nano", "mlp"):
                for wall in ("auto",) if told.quick else ("auto", "none"):
                    found[model, wall] = measure(model, wall, rounds, Path(folder))
        except FedgeError as error:
            print(f"tools.overhead: {error}", file=sys.stderr)
            return error.exit_code
    return show(figures(found), told.json)


if __name__ == "__main__":
    raise SystemExit(main())
