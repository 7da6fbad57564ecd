"""``fedge audit RUN``: what a run's last stage sends, attacked, and whether its model tells who trained it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fedge.audit import inversion, membership
from fedge.audit.seen import seen
from fedge.codecs.make import chain
from fedge.core.method import Method, Rows
from fedge.core.rng import generator, seed_everything
from fedge.core.server import ServerOptimizer
from fedge.core.task import Task
from fedge.errors import FedgeError
from fedge.methods.combine.private import Private
from fedge.methods.combine.secagg import SecAgg
from fedge.models.save import restore
from fedge.plan.menu import method_of
from fedge.run.brief import Brief
from fedge.run.folder import RunFolder, read_sealed
from fedge.run.launcher import Run
from fedge.run.prepare import prepare
from fedge.run.server import StageServer
from fedge.run.trust import trusted
from fedge.spec import load_federation

Say = Callable[[str], None]
#: Rows on each side of the membership test at most.
_MOST = 1000


def audit(run: Path, *, victims: int = 2, rows: int = 1, steps: int = 200, say: Say = print) -> list[dict[str, Any]]:
    """One row: what the server sees of a round, what attacks make of it, and membership in the final model.

    victims: devices whose round is attacked, each with ``rows`` of its rows (one is the worst case). steps: of the
    inversion. Raises FedgeError for a run that did not end.
    """
    folder = RunFolder.open(run)
    summary = folder.read_json("summary.json")
    if summary["status"] != "done":
        raise FedgeError(f"{run} is {summary['status']}", hint="only a run that is done has a model to audit")
    spec = load_federation(folder.file("resolved.yaml"))
    prepared = prepare(spec, say)
    stage = spec.stages[-1]
    method, variants = method_of(spec, stage, prepared.data.task.kind)
    around = trusted(spec, stage, method, variants, len(prepared.largest()))
    base = prepared.loaded.model
    kept = folder.file("checkpoints", f"base-{stage.index}.safetensors")
    if kept.is_file():
        base = restore(base, read_sealed(kept))
    settings = stage.server
    optimizer = ServerOptimizer(settings.optimizer, settings.lr, settings.momentum, settings.beta2, settings.tau)
    say("audit: one round, attacked")
    brief = Brief(
        spec.seed,
        stage.index,
        stage.stage,
        stage.method,
        around.method,
        (around.method,),
        (),
        stage.rounds,
        optimizer=optimizer,
        chain=chain(stage.codec),
    )
    server = StageServer(brief, base, prepared.data.task, prepared.data.public)
    names = sorted(prepared.rows)[:victims]
    own = {name: prepared.data.train.take(torch.from_numpy(prepared.rows[name][:rows])) for name in names}
    found = inverted(server, own, steps)
    say("audit: who trained the model")
    model = Run(folder.path, summary).model()
    trained = np.concatenate([prepared.rows[name] for name in sorted(prepared.rows)])
    told = members(
        model,
        around.method,
        prepared.data.task,
        prepared.data.train.take(torch.from_numpy(trained)),
        prepared.data.test,
    )
    return [{"run": folder.path.name, "stage": stage.stage, **found, **told}]


def inverted(server: StageServer, own: Mapping[str, Rows], steps: int = 200) -> dict[str, Any]:
    """The first round's answers of devices that have these rows, attacked."""
    brief, base = server.brief, server.base()
    method = brief.method
    server.cohort = tuple(own)
    server.variants = dict.fromkeys(own, method)
    seed_everything(*brief.seeds, "server", "init")
    state = method.init(server)
    what = seen(server, state, own, brief.chain)
    found: dict[str, Any] = {
        "method": brief.key,
        "protection": protection(method),
        "sees": ", ".join(what.roles) + (f", of {len(what.of)} devices together" if len(what.of) > 1 else ""),
        "bytes_up": what.nbytes,
        "reconstruction": None,
        "tokens": None,
    }
    batches = [next(iter(own[name].chunks(len(own[name])))) for name in what.of]
    if what.change and "pixel_values" in batches[0]:
        images = torch.cat([batch["pixel_values"] for batch in batches])
        labels = torch.cat([batch["labels"] for batch in batches])
        drawn = generator(*brief.seeds, "audit")
        guess = inversion.invert(what.model, server.task, what.change, labels, images, steps=steps, generator=drawn)
        found["reconstruction"] = None if guess is None else inversion.correlation(guess, images)
    if "input_ids" in batches[0]:
        truth = {int(token) for batch in batches for token in batch["input_ids"][batch["attention_mask"] > 0]}
        vocabulary = int(getattr(getattr(base, "config", None), "vocab_size", 0))
        told = inversion.tokens(what.change, vocabulary)
        # a table that moved everywhere (noise) says nothing: what is named must be right, too
        right = len(told & truth) / max(len(told), 1)
        found["tokens"] = len(told & truth) / len(truth) if right > 0.5 else 0.0
    return found


def protection(method: Method) -> str:
    """What is around the method, in words."""
    words = []
    while hasattr(method, "inner"):
        if isinstance(method, SecAgg):
            words.append("secure aggregation" + (", distributed noise" if method.noise else ""))
        if isinstance(method, Private):
            words.append(f"{method.where} noise {method.noise:g}")
        method = method.inner
    return "; ".join(words) or "none"


def members(model: nn.Module, method: Method, task: Task, trained: Rows, others: Rows, seed: int = 0) -> dict[str, Any]:
    """Loss-threshold membership inference on a model: AUC, and the true positive rate at 1 % false positives."""
    rng = np.random.default_rng(seed)

    def scores(rows: Rows) -> np.ndarray:
        chosen = np.sort(rng.permutation(len(rows))[:_MOST])
        return -membership.losses(model, rows.take(torch.from_numpy(chosen)), task, method.predict)

    inside, outside = scores(trained), scores(others)
    return {
        "mia_auc": membership.auc(inside, outside),
        "mia_tpr_at_1_fpr": membership.tpr_at(inside, outside),
        "mia_members": len(inside),
        "mia_others": len(outside),
    }
