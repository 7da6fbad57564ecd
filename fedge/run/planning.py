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
#: Rounds that a profile runs of each stage; the last is what it reports.
_ROUNDS = 2


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
    """A really run round of every stage, each device in the variant that it picks: measurement beside prediction.

    Two rounds are run and the second is reported, since the first download of most methods is empty.
    """
    spec = load_federation(federation, overrides)
    short = [f"stages.{stage.index}.rounds={_ROUNDS}" for stage in spec.stages]
    calm = ["evaluate.baselines=false", "evaluate.rows=64"]
    planned = {
        (row["stage"], row["device"], row["method"], _key(row["variant"])): row
        for row in plan(federation, overrides, say)
    }
    run = up(federation, [*overrides, *short, *calm], replace(options, resume=None), say)
    picked = {(line["stage"], line["device"]): line for line in run.metrics if line.get("variant") is not None}
    found = []
    for line in run.metrics:
        chosen = picked.get((line["stage"], line["device"]))
        if line["round"] != _ROUNDS - 1 or chosen is None or "began" not in line:
            continue
        row = planned.get((line["stage"], line["device"], chosen["method"], _key(chosen["variant"])))
        if row is None:
            continue
        measured = {f"measured_{name}": line[name] for name in ("peak_memory", "bytes_up", "bytes_down", "energy_j")}
        seconds = line["arrival"] - line["began"]
        found.append({**row, **measured, "measured_virtual_s": seconds, "run": str(run.folder)})
    return found


def _key(variant: dict[str, Any]) -> str:
    return repr(sorted(variant.items()))
