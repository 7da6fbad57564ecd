"""Exporting a model with exits, composed from stages that are traced once, in targets that each have a folder:

- ``adaptive``: all exits in one graph that decides by itself where to leave;
- ``exit-<blocks>``: the model up to one exit, for a device that cannot hold more;
- ``chain``: the stages as graphs of their own, for batches and for handing over between devices, and every truncated
  graph once more, all over one file of weights.

PyTorch computes on several threads here, and a process that has done so must not fork afterwards: export last.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnx
import torch
from torch import Tensor

from fedge.data.rows import Rows
from fedge.errors import ConfigError
from fedge.export import graph, verify, work
from fedge.export.budget import Budget
from fedge.export.chain import Chain
from fedge.export.compose import adaptive, truncated
from fedge.export.criteria import CRITERIA, scores
from fedge.export.job import Exported, Job, Progress, example_of, job_of, manifest_of, plain_of, still, traceable
from fedge.export.policy import Policy, calibrate, held_apart
from fedge.export.precision import known, precise
from fedge.export.quiet import workers
from fedge.export.shared import WEIGHTS_FILE, save_shared
from fedge.export.stages import Stage, trace
from fedge.export.target import EXITS_FILE, finish, kept, name_of, write_one
from fedge.models.exits import MultiExit
from fedge.models.load import Loaded

ADAPTIVE, CHAIN = "adaptive", "chain"
_Kind = TypeVar("_Kind")


def export_exits(
    model: MultiExit,
    loaded: Loaded,
    rows: Rows,
    folder: Path,
    *,
    labels: Sequence[str] | None = None,
    about: Mapping[str, Any],
    precision: Sequence[str] = ("fp32",),
    exits: Sequence[int] | None = None,
    criterion: str = "max_prob",
    progress: Progress | None = None,
    judged: Callable[[str, Judged], None] | None = None,
) -> list[Exported]:
    """Write ``exit-<blocks>/model.onnx`` for each exit, ``adaptive/model.onnx`` and ``chain/`` below ``folder``, and
    beside each graph what a runtime needs; precisions other than fp32 in folders that end in their name.

    loaded: what the model was loaded as (preprocessor, task, input names). rows: test rows, at least one, on which
    every graph is compared with PyTorch before it is kept; a part of them chooses the thresholds and is left out of
    what is reported of the adaptive graph. labels: names of the classes (None: the model's own). about: JSON facts for
    the metadata and the card. exits: only these (None: all); the deepest of them is then the last. criterion: one of
    ``criteria.CRITERIA``. judged: told of each precision what thresholds can be chosen from again. Folders that are
    there are replaced, each as a whole.

    ParityError for a graph that differs from PyTorch (its folder is absent then), FedgeError for a model that cannot be
    exported or a disk that does not take it, ConfigError for an unknown precision, criterion or exit.
    """
    for one in precision:
        known(one)
    if criterion not in CRITERIA:
        raise ConfigError(f"criterion '{criterion}' is none of {', '.join(CRITERIA)}")
    model = _limited(model, exits)
    with still():
        plain = plain_of(model)
        assert isinstance(plain, MultiExit)
        job = job_of(plain, loaded, plain.classes, rows, folder, labels, about, progress)
        traced = traceable(plain)
        assert isinstance(traced, MultiExit)
        stages = trace(traced, example_of(job), job.progress)
        row = next(verify.chunks(job.rows.take([0]), job.task, job.names))
        made = _Made(
            plain, stages, job, criterion, work.by_exit(plain, job.task.inputs(row)), _answers(plain, job), judged
        )
        return [exported for each in precision for exported in _in_precision(made, each)]


@dataclass(frozen=True)
class Judged:
    """What an export found out in one precision: every exit's deciding logits ``[rows, classes]``, the right label of
    each row, and what leaving costs."""

    points: tuple[int, ...]
    logits: list[np.ndarray]
    wanted: np.ndarray
    costs: list[work.Leaving]


@dataclass(frozen=True)
class _Made:
    """A model, its stages in fp32, what leaving costs, and PyTorch's answers to the rows."""

    model: MultiExit
    stages: list[Stage]
    job: Job
    criterion: str
    costs: list[work.Leaving]
    answers: _Answers
    judged: Callable[[str, Judged], None] | None

    @property
    def points(self) -> tuple[int, ...]:
        return self.model.points


def _limited(model: MultiExit, exits: Sequence[int] | None) -> MultiExit:
    """The model with some of its exits alone, cut after the deepest of them."""
    if exits is None:
        return model
    unknown = sorted(set(exits) - set(model.points))
    if unknown or not exits:
        which = f"no exit after block {unknown[0]}" if unknown else "no exit was named"
        raise ConfigError(f"{which}; the model has exits after {', '.join(map(str, model.points))}")
    short = model.cut(max(exits))
    short.points = tuple(sorted(set(exits)))
    for name in [name for name in short.exits if int(name) not in short.points]:
        del short.exits[name]
    return short


class _Answers:
    """The rows in batches, with PyTorch's logits of every exit. A classifier's are computed once and kept; those of a
    language model, which are too large for that, each time."""

    def __init__(self, model: MultiExit, job: Job, kept: list[list[Tensor]] | None):
        self._model, self._job, self._kept = model, job, kept

    def __call__(self) -> Iterator[tuple[Mapping[str, Tensor], Sequence[Tensor]]]:
        job = self._job
        batches = verify.chunks(job.rows, job.task, job.names)
        if self._kept is not None:
            return zip(batches, self._kept, strict=True)
        return ((batch, self._model(**job.task.inputs(batch))) for batch in batches)

    def at(self, index: int) -> Iterator[tuple[Mapping[str, Tensor], Tensor]]:
        """The same for one exit."""
        return ((batch, logits[index]) for batch, logits in self())


def _answers(model: MultiExit, job: Job) -> _Answers:
    if job.task.generative:
        return _Answers(model, job, None)
    job.progress(f"PyTorch's answers to {len(job.rows)} rows")
    batches = verify.chunks(job.rows, job.task, job.names)
    return _Answers(model, job, [model(**job.task.inputs(batch)) for batch in batches])


def _in_precision(made: _Made, precision: str) -> list[Exported]:
    """Every target in one precision: the single exits and the chain, whose logits choose the thresholds.

    They are judged side by side, each on one thread, so that what they say does not depend on how many there are. Where
    one of them differs from PyTorch, none of this precision is left.
    """
    stages = precise(made.stages, precision)
    costs = work.scaled(made.costs, made.stages[-1].proto, stages[-1].proto)
    try:
        with workers() as pool:
            rest = pool.submit(_still, _chain, made, stages, precision, costs) if len(stages) > 1 else None
            # the deepest, which takes longest, first
            begun = {
                at: pool.submit(_still, _exit, made, stages, precision, at, costs)
                for at in reversed(range(len(stages)))
            }
            exits = [begun[at].result() for at in range(len(stages))]
            if rest is None:
                return exits
            chain, logits, by_exit = rest.result()
            if made.judged is not None:
                made.judged(precision, Judged(made.points, logits, _wanted(made.job, logits), costs))
            return [*exits, _adaptive(made, stages, precision, logits, costs, by_exit, pool), chain]
    except verify.ParityError:
        for target in (ADAPTIVE, CHAIN, *(f"exit-{blocks}" for blocks in made.points)):
            shutil.rmtree(made.job.folder / name_of(target, precision), ignore_errors=True)
        raise


def _still(function: Callable[..., _Kind], *given: Any) -> _Kind:
    """Gradients are kept or not thread by thread."""
    with torch.no_grad():
        return function(*given)


def _exit(made: _Made, stages: list[Stage], precision: str, at: int, costs: list[work.Leaving]) -> Exported:
    blocks = made.points[at]

    def judge(session: Any) -> verify.Verdict:
        return verify.compare(session, made.answers.at(at), made.job.task)

    def more() -> dict[str, Any]:
        return {"cost": vars(costs[at])}

    proto = truncated(stages, at)
    model = made.model.cut(blocks)
    return write_one(made.job, f"exit-{blocks}", precision, proto, model, judge, blocks=blocks, more=more)


def _adaptive(
    made: _Made,
    stages: list[Stage],
    precision: str,
    logits: list[np.ndarray],
    costs: list[work.Leaving],
    by_exit: dict[str, float | None],
    pool: Executor,
) -> Exported:
    """Thresholds from a part of the rows, the graph judged on all of them, its accuracy taken on the others."""
    task = made.job.task
    chosen, rest = held_apart(len(logits[0]))
    policy = choose(made.criterion, logits, _wanted(made.job, logits), costs, chosen)
    found: dict[str, Any] = {}

    def judge(session: Any) -> verify.Verdict:
        verdict, counts, astray = verify.compare_adaptive(
            session, made.answers(), task, policy.criterion, policy.thresholds, rest, pool
        )
        if astray and precision == "fp32":
            raise verify.ParityError(
                f"{ADAPTIVE}: {astray} of {verdict.rows} rows leave at another exit than PyTorch's scores say; "
                "it was not kept"
            )
        found["exits_taken"] = {f"exit-{blocks}": count for blocks, count in zip(made.points, counts, strict=True)}
        return verdict

    def more() -> dict[str, Any]:
        return {**facts(made.points, policy, costs, len(chosen), len(rest)), "accuracy_by_exit": by_exit, **found}

    proto = adaptive(stages, policy.criterion, policy.thresholds, tokens=task.generative)
    return write_one(made.job, ADAPTIVE, precision, proto, made.model, judge, more=more)


def choose(
    criterion: str,
    logits: Sequence[np.ndarray],
    wanted: np.ndarray,
    costs: Sequence[work.Leaving],
    chosen: np.ndarray,
    budget: Budget | None = None,
    price: Sequence[float] | None = None,
) -> Policy:
    """Thresholds from the rows ``chosen``. logits: ``[rows, classes]`` by exit; wanted: the right label of each row;
    price: of each exit, in the budget's unit (None: operations)."""
    found = scores(logits, criterion)[chosen]
    correct = np.stack([each.argmax(-1) == wanted for each in logits], axis=1)[chosen]
    return calibrate(found, correct, price or [cost.flops for cost in costs], criterion, budget)


def facts(
    points: Sequence[int], policy: Policy, costs: Sequence[work.Leaving], chosen: int, rest: int
) -> dict[str, Any]:
    """What a manifest says of exits and policy."""
    return {
        "exits": list(points),
        "policy": {
            "criterion": policy.criterion,
            "thresholds": list(policy.thresholds),
            "chosen_on_rows": chosen,
            "reported_on_rows": rest,
            "accuracy_when_chosen": policy.accuracy,
        },
        "cost": [vars(cost) for cost in costs],
    }


def _wanted(job: Job, logits: Sequence[np.ndarray]) -> np.ndarray:
    """The right label of each row; for a language model, which has none at the end, what the last exit says."""
    labels = job.rows.labels
    if labels is None:
        last: np.ndarray = logits[-1].argmax(-1)
        return last
    return labels.numpy()


def _chain(
    made: _Made, stages: list[Stage], precision: str, costs: list[work.Leaving]
) -> tuple[Exported, list[np.ndarray], dict[str, float | None]]:
    """The chain's folder, judged by the worst of its exits, every exit's deciding logits, and how good each exit is on
    all rows."""
    job, named = made.job, name_of(CHAIN, precision)
    with kept(job, CHAIN, precision) as place:
        graphs: dict[str, onnx.ModelProto] = {}
        for at, blocks in enumerate(made.points):
            graphs[f"stage-{at + 1}"] = stages[at].proto
            graphs[f"exit-{blocks}"] = truncated(stages, at)
        reaches = save_shared(graphs, place)
        job.progress(f"{named}: comparing it with PyTorch on {len(job.rows)} rows")
        runner = Chain(place, len(stages), verify.open_session)
        verdicts, logits = verify.compare_chain(runner, made.answers(), job.task)
        for blocks, verdict in zip(made.points, verdicts, strict=True):
            verify.accept(verdict, f"{named}, exit after block {blocks}", precision)
        _same_as_chain(made, place, logits, precision)
        worst = max(verdicts, key=lambda verdict: verdict.parity_max_abs)
        by_exit = {f"exit-{point}": verdict.accuracy for point, verdict in zip(made.points, verdicts, strict=True)}
        policy = choose(made.criterion, logits, _wanted(job, logits), costs, held_apart(len(logits[0]))[0])
        manifest = {
            **manifest_of(CHAIN, None, stages[0].proto, verdicts[-1], job, precision),
            **facts(made.points, policy, costs, *map(len, held_apart(len(logits[0])))),
            "accuracy_by_exit": by_exit,
            "weights": {"file": WEIGHTS_FILE, "bytes": reaches},
        }
        for name in graphs:
            proto = onnx.load(str(place / f"{name}.onnx"), load_external_data=False)
            graph.describe(proto, {"target": f"{CHAIN}/{name}", "precision": precision, "exits": list(made.points)})
            onnx.save(proto, str(place / f"{name}.onnx"))
        finish(place, manifest, made.model, job)
        size = sum(path.stat().st_size for path in (*place.glob("*.onnx"), place / WEIGHTS_FILE))
    last = verdicts[-1]
    file = f"{job.folder.name}/{named}/{EXITS_FILE}"
    agreement = min(verdict.agreement for verdict in verdicts)
    exported = Exported(CHAIN, file, precision, size, last.accuracy, worst.parity_max_abs, agreement)
    return exported, logits, by_exit


def _same_as_chain(made: _Made, place: Path, logits: list[np.ndarray], precision: str) -> None:
    """ParityError for a truncated graph over the shared weights that does not say what the exit says."""
    job = made.job
    batch = next(verify.chunks(job.rows, job.task, job.names))
    for at, blocks in enumerate(made.points):
        session = verify.open_session(place / f"exit-{blocks}.onnx")
        found = verify.deciding(verify.run(session, batch).numpy(), batch)
        expected = logits[at][: len(found)]
        apart = float(np.abs(found - expected).max())
        if precision == "fp32":
            same = apart <= verify.TOLERANCE["fp32"] * max(1.0, float(np.abs(expected).max()))
        else:  # a runtime fuses more within one graph, which rounds otherwise
            same = bool((found.argmax(-1) == expected.argmax(-1)).mean() >= verify.AGREEMENT[precision])
        if not same:
            raise verify.ParityError(
                f"{name_of(CHAIN, precision)}: exit-{blocks}.onnx differs from its stages by {apart:.3g}"
            )
