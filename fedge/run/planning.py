"""``plan`` and ``profile``: what a round would cost every device, and one measured round beside it. Trains nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedge.plan import table
from fedge.run.brief import budget_of
from fedge.run.launcher import USUAL, Options, up
from fedge.run.prepare import briefs, prepare
from fedge.spec import load_federation

Say = Callable[[str], None]


def plan(federation: str | Path, overrides: Sequence[str] = (), say: Say = print) -> list[dict[str, Any]]:
    """For each stage, device and variant: costs, whether it fits, what breaks first, and what the device picks."""
    spec = load_federation(federation, overrides)
    prepared = prepare(spec, say)
    found: list[dict[str, Any]] = []
    for brief in briefs(prepared, say):
        budgets = {device.name: budget_of(device, brief.deadline) for device in spec.devices}
        found += table.rows(brief, budgets)
    return found


def profile(
    federation: str | Path,
    overrides: Sequence[str] = (),
    options: Options = USUAL,
    say: Say = print,
) -> list[dict[str, Any]]:
    """One really run round of every stage, each device in the variant that it picks: measurement beside prediction."""
    spec = load_federation(federation, overrides)
    one_round = [f"stages.{stage.index}.rounds=1" for stage in spec.stages]
    calm = ["evaluate.baselines=false", "evaluate.rows=64"]
    planned = {
        (row["stage"], row["device"], row["method"], _key(row["variant"])): row
        for row in plan(federation, overrides, say)
    }
    run = up(federation, [*overrides, *one_round, *calm], replace(options, resume=None), say)
    found = []
    for line in run.metrics:
        if line.get("round", 0) is not None or "profile" not in line:
            continue
        row = planned.get((line["stage"], line["name"], line["method"], _key(line["variant"])))
        if row is None or not line["rounds"]:
            continue
        found.append(
            {
                **row,
                "measured_peak_memory": line["peak_memory"],
                "measured_virtual_s": line["virtual_s"],
                "measured_bytes_up": line["bytes_up"],
                "measured_bytes_down": line["bytes_down"],
                "measured_energy_j": line["energy_j"],
                "run": str(run.folder),
            }
        )
    return found


def _key(variant: dict[str, Any]) -> str:
    return repr(sorted(variant.items()))
