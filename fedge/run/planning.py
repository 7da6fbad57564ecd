"""``plan`` and ``profile``: what a round would cost every device, and one measured round beside it. Trains nothing.

A plan that was made before is found again without importing torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedge import units
from fedge.errors import ConfigError, Problem, nearest
from fedge.plan import invert, table
from fedge.run.budgets import budget_of
from fedge.run.launcher import USUAL, Options, up
from fedge.run.plans import StagePlan, keep, menu_in, recall
from fedge.spec import load_federation
from fedge.spec.device import DeviceSpec, Group, LinkSpec, expand, load_links
from fedge.spec.federation import FederationSpec

Say = Callable[[str], None]
#: Rounds that a profile runs of each stage; the last is what it reports.
_ROUNDS = 2


@dataclass(frozen=True)
class WhatIf:
    """A device that isn't in the file: what isn't said is the first device's, or the profile's. Texts as typed."""

    profile: str | None = None
    memory: str | None = None
    network: str | None = None
    compute: str | None = None

    def __bool__(self) -> bool:
        return any((self.profile, self.memory, self.network, self.compute))


NOTHING = WhatIf()


@dataclass(frozen=True)
class Look:
    """A federation's plan: what was read, each stage's menu, and the rows that ``plan`` prints."""

    spec: FederationSpec
    plans: list[StagePlan]
    rows: list[dict[str, Any]]


def plan(
    federation: str | Path, overrides: Sequence[str] = (), say: Say = print, what_if: WhatIf = NOTHING
) -> list[dict[str, Any]]:
    """For each stage, device and variant: costs, whether it fits, what breaks first, and what the device picks."""
    return look(federation, overrides, say, what_if).rows


def look(federation: str | Path, overrides: Sequence[str] = (), say: Say = print, what_if: WhatIf = NOTHING) -> Look:
    """``plan`` with what it rests on; of devices that can afford nothing it also says what they could do."""
    spec = load_federation(federation, overrides)
    devices = (hypothetical(spec, what_if),) if what_if else spec.devices
    plans = planned(spec, say)
    rows = list(rows_of(spec, plans, devices))
    if any(row["left_out"] for row in rows) and any(staged.rescue is None for staged in plans):
        plans = planned(spec, say, rescue=True)
        rows = list(rows_of(spec, plans, devices))
    return Look(spec, plans, rows)


def max_budget(
    federation: str | Path, overrides: Sequence[str] = (), say: Say = print, what_if: WhatIf = NOTHING
) -> list[dict[str, Any]]:
    """For each stage, group of devices and method: the least memory, link and compute that still make the deadline."""
    spec = load_federation(federation, overrides)
    first: dict[str, DeviceSpec] = {}
    for device in (hypothetical(spec, what_if),) if what_if else spec.devices:
        first.setdefault(device.group, device)
    found: list[dict[str, Any]] = []
    for staged in planned(spec, say):
        stage = spec.stages[staged.index]
        budgets = [(name, budget_of(device, stage.deadline, stage.rounds)) for name, device in first.items()]
        found += invert.rows(staged.stage, staged.menu, budgets)
    return found


def planned(spec: FederationSpec, say: Say, *, rescue: bool = False) -> list[StagePlan]:
    """Every stage's menu with its costs; ``rescue``: also what a device could do that can afford none of it."""
    plans = recall(spec)
    if plans is not None and not (rescue and any(found.rescue is None for found in plans)):
        say("plan: costs as traced before")
        return plans
    import torch

    from fedge.run.prepare import briefs, prepare, rescues

    torch.set_num_threads(1)
    prepared = prepare(spec, say, weights=False)
    plans = [
        StagePlan(
            brief.index,
            brief.stage,
            brief.menu,
            tuple(rescues(prepared, spec.stages[brief.index], say)) if rescue else None,
            prepared.assumed,
        )
        for brief in briefs(prepared, say)
    ]
    keep(spec, plans)
    return plans


def rows_of(
    spec: FederationSpec, plans: Sequence[StagePlan], devices: Sequence[DeviceSpec]
) -> Iterator[dict[str, Any]]:
    """The rows of ``fedge plan``, and of a run's plan.json."""
    for staged in plans:
        stage = spec.stages[staged.index]
        budgets = {device.name: budget_of(device, stage.deadline, stage.rounds) for device in devices}
        menu = menu_in(spec, stage, staged.menu)
        known = {device.name: {"stack": device.stack, "rates": device.rates_basis} for device in devices}
        for row in table.rows(
            staged.stage,
            menu,
            budgets,
            index=staged.index,
            prefer=stage.prefer,
            freely=stage.pick == "auto",
            rescue=staged.rescue or (),
            assumed=staged.assumed,
        ):
            yield row | known[row["device"]]


def hypothetical(spec: FederationSpec, what_if: WhatIf) -> DeviceSpec:
    """The device that is asked about. ConfigError, naming the option, for what can't be read."""
    base = spec.devices[0]
    if what_if.profile is not None:
        group = Group(profile=what_if.profile)
        before = len(spec.source.problems)
        found = expand({"what-if": group}, spec.source, spec.folder)
        problems = spec.source.problems[before:]
        del spec.source.problems[before:]
        if problems or not found:
            raise ConfigError([Problem(f"--profile: {problem.message}", hint=problem.hint) for problem in problems])
        base = found[0]
    changes: dict[str, Any] = {"name": "what-if", "group": "what-if"}
    if what_if.memory is not None:
        changes["memory"] = _read("--memory", what_if.memory, units.parse_bytes)
    if what_if.compute is not None:
        changes["flops"] = _read("--compute", what_if.compute, units.parse_flops)
    if what_if.network is not None:
        links = load_links()
        if what_if.network not in links:
            hint = nearest(what_if.network, links) or f"known: {', '.join(links)}"
            raise ConfigError(Problem(f"--network: no link class '{what_if.network}'", hint=hint))
        link = links[what_if.network]
        changes["link"] = LinkSpec(what_if.network, link.down, link.up, link.latency, link.jitter, link.loss)
    return replace(base, **changes)


def _read(option: str, text: str, parse: Callable[[object], Any]) -> Any:
    try:
        return parse(text)
    except ValueError as error:
        raise ConfigError(f"{option}: {error}") from error


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
    spec = load_federation(federation, [*overrides, *short, *calm])  # a battery is spread over the rounds that are run
    foretold = {
        (row["stage_index"], row["device"], row["method"], _key(row["variant"])): row
        for row in rows_of(spec, planned(spec, say), spec.devices)
    }
    run = up(federation, [*overrides, *short, *calm], replace(options, resume=None), say)
    picked = {(line["stage_index"], line["device"]): line for line in run.metrics if line.get("variant") is not None}
    found = []
    for line in run.metrics:
        chosen = picked.get((line["stage_index"], line["device"]))
        if line["round"] != _ROUNDS - 1 or chosen is None or "began" not in line:
            continue
        row = foretold.get((line["stage_index"], line["device"], chosen["method"], _key(chosen["variant"])))
        if row is None:
            continue
        measured = {f"measured_{name}": line[name] for name in ("peak_memory", "bytes_up", "bytes_down", "energy_j")}
        seconds = line["arrival"] - line["began"]
        # phases by the host's clock: what of a turn was forward, backward, optimizer, packing
        measured |= {"measured_virtual_s": seconds, "measured_phases": line.get("seconds", {})}
        found.append({**row, **measured, "run": str(run.folder)})
    return found


def _key(variant: dict[str, Any]) -> str:
    return repr(sorted(variant.items()))
