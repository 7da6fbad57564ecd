"""After a stage's rounds: every device takes its own model, tests it in its own process, and keeps it.

It is one more conversation, of a round that lies behind the last one: each device is sent where the global model is and
answers by figures. What it takes in time, bytes, energy and memory is charged as the rounds are. Nothing of it goes
into a checkpoint, so a run that was stopped on the way does all of it again, with the same result.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from fedge.codecs.chain import Chain
from fedge.core.method import Ask, Device, Method, Replies, Rows, Server, State
from fedge.core.payload import Payload, pack
from fedge.core.personal import judged
from fedge.emulation.presence import Presence
from fedge.models.save import own_part, state
from fedge.run.coordinator import Coordinator
from fedge.run.folder import write_whole

_RESULTS = "personal"
#: Where a run keeps the devices' own models: in the folder of the model that they have in common.
FOLDER = "devices"


@dataclass(frozen=True, kw_only=True)
class _Testing(Method):
    """The method whose round is the test."""

    of: Method

    def round(self, srv: Server, state: State) -> Generator[Ask, Replies, State]:
        replies = yield Ask({device: self.of.down(srv, state, device) for device in srv.cohort})
        return {_RESULTS: {device: reply.meta for device, reply in replies.items()}}


def testing(of: Coordinator, rows: Mapping[str, int]) -> Coordinator | None:
    """A coordinator of the test after ``of``'s rounds, on accounts of its own; None where there is nothing to test.

    rows: how many each device tests its model on.
    """
    brief = of.brief
    if not brief.method.personalises:
        return None
    tested = max(rows.values(), default=0)
    menu = tuple(replace(offer, cost=offer.cost.own_test(tested)) for offer in brief.menu)
    told = replace(
        brief,
        method=_Testing(of=brief.method),
        menu=menu,
        rounds=brief.rounds + 1,
        cohort=None,
        quorum=0,
        deadline=None,
        chain=Chain(),
    )
    accounts = [replace(deepcopy(account), availability=1.0, presence=Presence()) for account in of.accounts.values()]
    other = Coordinator(
        told, of.server, accounts, slots=of.slots, restart=of.restart, now=of.now, elsewhere=of.elsewhere
    )
    other.round, other.state = brief.rounds, of.state
    return other


def take_over(of: Coordinator, other: Coordinator) -> dict[str, dict[str, Any]]:
    """Charge the stage with what the test took; returns each device's figures."""
    of.now = other.now
    # the round of the test is none of the stage's
    of.notes += [{**note, "event": "own-models"} if note["event"] == "round" else note for note in other.notes]
    for name, account in of.accounts.items():
        spent = other.accounts[name]
        for figure in (
            "free_at",
            "virtual_s",
            "energy_j",
            "energy_parts",
            "bytes_up",
            "bytes_down",
            "peak_memory",
            "restarts",
        ):
            setattr(account, figure, getattr(spent, figure))
        if spent.losses > account.losses:
            account.lost, account.losses = spent.lost, spent.losses
    found: dict[str, dict[str, Any]] = other.state.get(_RESULTS, {})
    return found


def judge_own(variant: Method, device: Device, down: Payload, rows: Rows, base: nn.Module, place: Path) -> Payload:
    """On the device: take the own model, test it, and write what of it differs from the stage's base to ``place``."""
    model = variant.personal(device, down)
    if model is None:
        return Payload()
    found = judged(variant, model, rows, device.task)
    write_whole(place, pack(own_part(model, base)))
    return Payload(meta=found)


def own_file(folder: Path, device: str, stage: int) -> Path:
    """Where a device leaves its own model of a stage, in the folder of checkpoints."""
    return folder / f"{device}.{stage}.own.safetensors"


def keep_own(model: nn.Module, checkpoints: Path, stage: int, folder: Path | None) -> list[str]:
    """Move what the devices left into ``folder`` (None: away), without what is as in ``model``, the common one.

    Returns the names of the devices whose models are kept.
    """
    kept = []
    for path in sorted(checkpoints.glob(f"*.{stage}.own.safetensors")):
        if folder is not None:
            name = path.name.removesuffix(f".{stage}.own.safetensors")
            common = state(model)
            own = {n: t for n, t in load_file(path).items() if n not in common or not torch.equal(t, common[n])}
            folder.mkdir(exist_ok=True)
            write_whole(folder / f"{name}.safetensors", pack(own))
            kept.append(name)
        path.unlink()
    return kept


def accuracy(found: Mapping[str, Any], mix: np.ndarray | None) -> float | None:
    """A device's figure: its accuracy, on the test rows reweighted to its label mix where there is one."""
    if mix is None or "seen" not in found:
        value = found.get("metrics", {}).get("accuracy")
        return None if value is None else float(value)
    hits, seen = np.asarray(found["hits"], dtype=np.float64), np.asarray(found["seen"], dtype=np.float64)
    known = np.where(seen > 0, mix, 0.0)
    if not known.sum():
        return None
    return float((known * hits / np.maximum(seen, 1)).sum() / known.sum())
