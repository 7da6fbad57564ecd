"""The plan of a federation: each stage's menu, kept in the user's cache, and whether enough devices can afford it.

A kept plan is found again without importing torch. What it rests on is its key: the file's model, data, stages and
device names, the files that model and data lie in, and the versions and sources of all that could change a cost.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

import fedge
from fedge.core.cost import Budget, Cost
from fedge.errors import ConfigError, InfeasibleError
from fedge.plan.choose import Choice, Offer, choose
from fedge.plan.worth import read_learned, weighed
from fedge.run.budgets import budget_of
from fedge.spec import catalogue as catalogues
from fedge.spec import resolved
from fedge.spec.cache import cache_folder, store
from fedge.spec.federation import FederationSpec
from fedge.spec.stage import StageSpec

#: Keys of a stage that change a choice and no cost.
_CHOICE = ("prefer", "learned", "pick", "quorum", "deadline", "export")


@dataclass(frozen=True)
class StagePlan:
    """A stage's menu, and what a device could still do that can afford nothing on it.

    assumed: what was taken for granted where model or data are not all there.
    """

    index: int
    stage: str
    menu: tuple[Offer, ...]
    rescue: tuple[Offer, ...] | None = None
    assumed: tuple[str, ...] = ()


def menu_in(spec: FederationSpec, stage: StageSpec, menu: Sequence[Offer]) -> tuple[Offer, ...]:
    """The menu with what was learned of it, where the stage names a file of that. Raises ConfigError with the place."""
    if stage.learned is None:
        return weighed(menu, {"rows": []})
    try:
        learned = read_learned(spec.folder / stage.learned)
    except ConfigError as error:
        problem = error.problems[0]
        place = spec.problem(f"stages.{stage.index}.learned", problem.message, hint=problem.hint)
        raise ConfigError(place) from error
    return weighed(menu, learned)


def choices(spec: FederationSpec, plan: StagePlan) -> dict[str, Choice]:
    """What each device picks; devices alike are asked once."""
    stage = spec.stages[plan.index]
    menu = menu_in(spec, stage, plan.menu)
    known: dict[Budget, Choice] = {}
    found = {}
    for device in spec.devices:
        budget = budget_of(device, stage.deadline, stage.rounds)
        if budget not in known:
            known[budget] = choose(menu, budget, prefer=stage.prefer, freely=stage.pick == "auto")
        found[device.name] = known[budget]
    return found


def require_enough(spec: FederationSpec, plans: Sequence[StagePlan]) -> None:
    """Refuse before anything starts when too few devices can afford a stage: InfeasibleError with the place."""
    for plan in plans:
        stage = spec.stages[plan.index]
        if stage.pick != "auto":
            continue
        found = choices(spec, plan)
        able = sum(choice.index is not None for choice in found.values())
        if able >= (max(1, stage.quorum) if isinstance(stage.quorum, int) else 1):
            continue
        name, choice = next((n, c) for n, c in found.items() if c.index is None)
        key = f"stages.{stage.index}." + ("deadline" if "deadline" in choice.reason else "method")
        message = f"{able} of {len(found)} devices can afford anything in {stage.stage}; {name}: {choice.reason}"
        raise InfeasibleError(str(spec.problem(key, message)), hint="fedge plan shows every device and method")


def recall(spec: FederationSpec) -> list[StagePlan] | None:
    """The plan as it was kept, or None."""
    path = _path(spec)
    if path is None:
        return None
    try:
        found = json.loads(path.read_text())
        return [_revived(plain) for plain in found]
    except (OSError, ValueError, TypeError, KeyError):
        return None


def keep(spec: FederationSpec, plans: Sequence[StagePlan]) -> None:
    """Keep the plan for ``recall``; one that can't be kept costs time and nothing else."""
    path = _path(spec)
    if path is not None:
        store(path, json.dumps([asdict(plan) for plan in plans]))


def _revived(plain: dict[str, Any]) -> StagePlan:
    rescue = plain["rescue"]
    return StagePlan(
        plain["index"],
        plain["stage"],
        tuple(_offer(offer) for offer in plain["menu"]),
        None if rescue is None else tuple(_offer(offer) for offer in rescue),
        tuple(plain["assumed"]),
    )


def _offer(plain: dict[str, Any]) -> Offer:
    return Offer(**{**plain, "cost": Cost(**plain["cost"])})


def _path(spec: FederationSpec) -> Path | None:
    """Where this federation's plan is kept; None where what it rests on can't all be seen (code of the user's own)."""
    known = catalogues.load()
    for stage in spec.stages:
        for key, options in stage.methods():
            info = known.find(key)
            if info is None or info.package or any(":" in str(value) for value in options.values()):
                return None
        if any(":" in key for key, _ in stage.codec):
            return None
    if ":" in spec.model.name or ":" in str(spec.data.dataset):
        return None
    document = yaml.safe_load(resolved(spec))
    stages = [
        {k: v for k, v in body.items() if k not in _CHOICE} for entry in document["stages"] for body in entry.values()
    ]
    about = {
        "model": document["model"],
        "data": document["data"],
        "seed": spec.seed,
        "stages": [[stage.stage for stage in spec.stages], stages],
        "devices": sorted(device.name for device in spec.devices),
        "files": [
            _seen(Path(spec.folder) / spec.model.name),
            _seen(Path(str(spec.data.dataset))),
            _hub(spec.model.name),
        ],
        "versions": [_version(name) for name in ("torch", "transformers", "peft", "numpy")],
        "sources": _sources(),
    }
    digest = sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()[:32]
    return cache_folder() / "plans" / f"{digest}.json"


def _sources() -> list[Any]:
    """Every source file of fedge by size and time of change."""
    root = Path(fedge.__file__).parent
    return [_stat(path) for path in sorted(root.rglob("*.py"))]


def _seen(path: Path) -> list[Any]:
    """A file, or the files of a folder, by size and time of change; empty for what is no path."""
    if path.is_dir():
        return [_stat(entry) for entry in sorted(path.rglob("*"))[:10_000]]
    return _stat(path) if path.is_file() else []


def _hub(name: str) -> list[Any]:
    """What the Hub's local cache holds of a model: which snapshots, and which files in each."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    cache = Path(os.environ.get("HF_HUB_CACHE") or home / "hub") / f"models--{name.replace('/', '--')}"
    return sorted(str(path) for path in cache.glob("snapshots/*/*")) if cache.is_dir() else []


def _stat(path: Path) -> list[Any]:
    seen = path.stat()
    return [str(path), seen.st_size, seen.st_mtime_ns]


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
