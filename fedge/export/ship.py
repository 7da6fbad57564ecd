"""For a class of device the file to ship: the most accurate graph that fits its memory and its budget of time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from fedge.emulation.roofline import Rates
from fedge.errors import InfeasibleError
from fedge.export import graph
from fedge.export.budget import Budget
from fedge.export.card import card
from fedge.export.compose import THRESHOLDS
from fedge.export.criteria import scores, taken
from fedge.export.exits import ADAPTIVE, Judged, choose
from fedge.export.folder import whole, write_json
from fedge.export.job import Exported
from fedge.export.mobile import OPERATORS_FILE, ORT_FILE
from fedge.export.policy import Policy, held_apart
from fedge.export.target import EXITS_FILE, name_of


@dataclass(frozen=True)
class Buyer:
    """A class of device: bytes that it grants, what it sustains, watts while it computes."""

    name: str
    memory: int
    rates: Rates
    watts: float


@dataclass(frozen=True)
class Choice:
    """What a device gets, or why nothing. Seconds and joules are modelled, as a mean over the reported rows."""

    device: str
    target: str | None
    precision: str | None
    memory: int
    seconds: float | None = None
    joules: float | None = None
    accuracy: float | None = None
    policy: Policy | None = None
    exits_taken: Mapping[str, int] | None = None
    refused: str | None = None


def best_for(
    buyer: Buyer,
    exported: Sequence[Exported],
    needs: Mapping[tuple[str, str], int],
    judged: Mapping[str, Judged],
    criterion: str,
    budget: Budget | None,
) -> Choice:
    """needs: bytes by (target, precision). budget: None: no limit; then the graph that decides itself is
    set to be as accurate as the last exit. A choice without a target says in ``refused``
    what the closest one lacks."""
    offers: list[Choice] = []
    refusals: list[Choice] = []
    for one in exported:
        need = needs.get((one.target, one.precision))
        if need is None or one.precision not in judged:
            continue
        offer = _offer(buyer, one, need, judged[one.precision], criterion, budget)
        (refusals if offer.refused else offers).append(offer)
    if offers:
        return max(offers, key=lambda offer: (offer.accuracy or 0.0, -(offer.seconds or 0.0)))
    least = min(refusals, key=lambda offer: offer.memory)
    return Choice(buyer.name, None, None, least.memory, refused=least.refused)


def _offer(buyer: Buyer, one: Exported, need: int, judged: Judged, criterion: str, budget: Budget | None) -> Choice:
    told = name_of(one.target, one.precision)
    if need > buyer.memory:
        why = f"{told} needs {need / 2**20:.1f} MiB, {buyer.name} grants {buyer.memory / 2**20:.1f} MiB"
        return Choice(buyer.name, None, None, need, refused=why)
    seconds_at = [cost.seconds(buyer.rates) for cost in judged.costs]
    price = [each * buyer.watts for each in seconds_at] if budget and budget.kind == "joules" else seconds_at
    chosen, rest = held_apart(len(judged.wanted))
    policy = None
    unit = "" if budget is None or budget.kind == "accuracy" else f" {budget.kind}"
    try:
        if one.target == ADAPTIVE:
            policy = choose(criterion, judged.logits, judged.wanted, judged.costs, chosen, budget, price)
            exits = taken(scores(judged.logits, criterion)[rest], policy.thresholds)
        else:
            at = judged.points.index(int(one.target.removeprefix("exit-")))
            if budget is not None and budget.kind != "accuracy" and price[at] > budget.value:
                raise InfeasibleError(f"it costs {price[at]:.4g}, more than {budget.value:.4g}")
            exits = np.full(len(rest), at)
    except InfeasibleError as error:
        return Choice(buyer.name, None, None, need, refused=f"{told} on {buyer.name}: {error.message}{unit}")
    right = np.stack([each[rest].argmax(-1) == judged.wanted[rest] for each in judged.logits])
    seconds = float(np.asarray(seconds_at)[exits].mean())
    accuracy = float(right[exits, np.arange(len(rest))].mean())
    counts = np.bincount(exits, minlength=len(judged.points)).tolist()
    left = {f"exit-{point}": count for point, count in zip(judged.points, counts, strict=True)}
    joules = seconds * buyer.watts
    return Choice(buyer.name, one.target, one.precision, need, seconds, joules, accuracy, policy, left)


def write_choice(choice: Choice, exports: Path, preprocessor: Any) -> Path:
    """Copy what was chosen to ``exports/for/<device>``, with the device's thresholds as the graph's default.

    preprocessor: the model's tokenizer or image processor, of which the card speaks.
    """
    assert choice.target is not None
    assert choice.precision is not None
    source = exports / name_of(choice.target, choice.precision)
    folder = exports / "for" / choice.device
    with whole(folder) as place:
        # the ORT format holds the thresholds too, and is made anew where it is wanted
        shutil.copytree(source, place, dirs_exist_ok=True, ignore=shutil.ignore_patterns(ORT_FILE, OPERATORS_FILE))
        if choice.policy is not None:
            _set_policy(place, choice, preprocessor)
    return folder


def _set_policy(place: Path, choice: Choice, preprocessor: Any) -> None:
    assert choice.policy is not None
    path = place / "model.onnx"
    proto = onnx.load(str(path))
    for tensor in proto.graph.initializer:
        if tensor.name == THRESHOLDS:
            values = np.asarray(choice.policy.thresholds, dtype=np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, THRESHOLDS))
    manifest: dict[str, Any] = json.loads((place / EXITS_FILE).read_text())
    manifest |= {"device": choice.device, "accuracy": choice.accuracy, "exits_taken": choice.exits_taken}
    manifest["policy"] = {
        **manifest["policy"],
        "thresholds": list(choice.policy.thresholds),
        "accuracy_when_chosen": choice.policy.accuracy,
        "modelled_seconds": choice.seconds,
    }
    graph.describe(proto, manifest)
    onnx.save(proto, str(path))
    write_json(place / EXITS_FILE, manifest)
    (place / "README.md").write_text(card(manifest, preprocessor, place), encoding="utf-8")
