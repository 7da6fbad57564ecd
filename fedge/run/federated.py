"""``fedge infer RUN --federated``: a run's devices answer its test rows together, over the real processes and links."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn

from fedge.data.rows import Rows
from fedge.errors import ConfigError, MissingError, Problem
from fedge.methods.deploy.ensemble import WEIGHINGS, Ensemble, together
from fedge.methods.table import BUILT
from fedge.models.exits import MultiExit
from fedge.models.load import EXITS_FILE
from fedge.run.checkpoint import Checkpoint
from fedge.run.evaluate import share_of
from fedge.run.folder import RunFolder
from fedge.run.launch import Launch
from fedge.run.launcher import Options
from fedge.run.limits import footprint, limits_of
from fedge.run.prepare import Prepared
from fedge.run.stage import Stage
from fedge.spec import load_federation, resolved
from fedge.spec.federation import FederationSpec
from fedge.spec.stage import StageSpec
from fedge.wire.bus import path_of

if TYPE_CHECKING:
    from fedge.run.brief import Brief
    from fedge.run.watch import See

Say = Callable[[str], None]


@dataclass(frozen=True)
class Question:
    """rows: test rows that are asked in all; queries: at once; deadline: seconds of emulated time for an answer."""

    rows: int = 256
    queries: int = 32
    deadline: float | None = None


def ask(
    run: Path, question: Question, options: Options, say: Say, see: See | None = None
) -> dict[str, list[dict[str, Any]]]:
    """Let the devices of a finished run answer; what they came to together, and a line for each device.

    The events, metrics and devices' logs of it are kept below ``run/federated``. MissingError for a run without a
    model, ConfigError for a model without exits; otherwise the errors of ``launcher.up``.
    """
    folder = RunFolder.open(run)
    spec = _spec(folder, question)
    limits = limits_of(spec, inline=options.inline, best_effort=options.best_effort)
    below = RunFolder.new(spec.name, folder.file("federated"))
    with footprint(below) as left:
        below.write("resolved.yaml", resolved(spec))
        if not options.inline:
            path_of(left.address)
        launch = _Asking(spec, below, options, limits, left, None, say, see)
        launch.question = question
        launch.run()
    rounds = _durations(below)
    return {
        "infer": [{"run": str(run), "folder": str(below.path), **launch.found(), **_spread(rounds)}],
        "devices": launch.lines(),
    }


def _spec(folder: RunFolder, question: Question) -> FederationSpec:
    """The run's federation with one stage, in which its model answers."""
    spec = load_federation(folder.file("resolved.yaml"))
    place = folder.file("model")
    if not place.is_dir():
        raise MissingError(
            f"{folder.path} holds no model: the run is not finished", hint=f"fedge up --resume {folder.path} goes on"
        )
    if not (place / EXITS_FILE).is_file():
        raise ConfigError(
            f"the model in {place} has no exits at which devices could answer; they come from a deploy stage with a "
            "method that trains exits"
        )
    points = json.loads((place / EXITS_FILE).read_text())["exits"]
    method = Ensemble(exits=tuple(points[:-1] or points), queries=question.queries)
    key = next(key for key, target in BUILT.items() if target.endswith(f":{Ensemble.__name__}"))
    stage = StageSpec(
        "deploy",
        0,
        key,
        rounds=ceil(question.rows / question.queries),
        deadline=question.deadline,
        options={name: getattr(method, name) for name in ("exits", "queries", "batch")},
    )
    return replace(
        spec,
        model=spec.model.model_copy(update={"name": str(place.resolve()), "options": {}}),
        data=spec.data.model_copy(update={"public": 0}),
        evaluate=spec.evaluate.model_copy(update={"every": stage.rounds, "baselines": False}),
        stages=(stage,),
    )


class _Asking(Launch):
    """A launch whose public rows are the queries, and which keeps the answers instead of a model."""

    question: Question

    def _prepare(self) -> Prepared:
        prepared = super()._prepare()
        if prepared.data.test.labels is None:
            message = "devices answer together where there are classes; this run's model predicts tokens"
            raise ConfigError(Problem(message, hint="fedge infer RUN/export/TARGET runs one device"))
        queries = share_of(prepared.data.test, self.question.rows, prepared.spec.seed)
        assert isinstance(queries, Rows)
        prepared.data = replace(prepared.data, test=queries, public=queries)
        stage = replace(self.spec.stages[0], rounds=ceil(len(queries) / self.question.queries))
        self.spec = prepared.spec = replace(self.spec, stages=(stage,))
        return prepared

    def _leave(self, brief: Brief, stage: Stage) -> nn.Module:
        record, model = stage.close()
        assert isinstance(model, MultiExit)
        self.points = model.points
        self.record = record
        self.answers: dict[str, dict[str, Tensor]] = stage.coordinator.state["answers"]
        self.checkpoint = Checkpoint(
            stage=1,
            now=stage.coordinator.now,
            done=[record],
            metrics_size=self.folder.size("metrics.jsonl"),
            wall_s=self.elapsed(),
            task=self.checkpoint.task,
            classes=self.checkpoint.classes,
        )
        self.checkpoint.save(self.folder.file("checkpoints"))
        return model

    def found(self) -> dict[str, Any]:
        """What the answers came to, beside each exit alone on the same rows, and what it cost."""
        labels = self.prepared.data.test.labels
        assert labels is not None
        stage = self.record["stage"]
        alone = {f"accuracy_exit_{point}": stage["metrics"][f"accuracy_exit_{point}"] for point in self.points}
        spent = {name: stage[name] for name in ("virtual_s", "bytes_up", "bytes_down", "energy_j", "lost")}
        return {**judged(self.answers, labels, self.question.queries), **alone, **spent}

    def lines(self) -> list[dict[str, Any]]:
        """A line for each device: its exit, how it did alone on what it answered, what it spent."""
        labels = self.prepared.data.test.labels
        assert labels is not None
        accuracies = by_device(self.answers, labels, self.question.queries)
        kept = ("profile", "peak_memory", "budget_memory", "virtual_s", "bytes_up", "bytes_down", "energy_j", "lost")
        return [
            {
                "device": line["name"],
                "exit": line["variant"].get("deepest", self.points[-1]) if line["method"] else None,
                "answered": accuracies.get(line["name"], (0, None))[0],
                "accuracy": accuracies.get(line["name"], (0, None))[1],
                **{name: line[name] for name in kept},
            }
            for line in self.record["devices"]
        ]


def judged(answers: Mapping[str, Mapping[str, Tensor]], labels: Tensor, queries: int) -> dict[str, int | float | None]:
    """Accuracy of the averaged answers by weighing, over the queries that anybody answered.

    answers: logits ``[queries, classes]`` by round and device, rounds in order; of the last round, rows that came
    before count once.
    """
    right = dict.fromkeys(WEIGHINGS, 0)
    asked = answered = 0
    for number, said in enumerate(answers.values()):
        wanted = labels[number * queries : (number + 1) * queries]
        asked += len(wanted)
        if not said:
            continue
        answered += len(wanted)
        for weigh in WEIGHINGS:
            right[weigh] += int((together(said, weigh)[: len(wanted)].argmax(-1) == wanted).sum())
    shares = {f"accuracy_{weigh}": right[weigh] / answered if answered else None for weigh in WEIGHINGS}
    return {"queries": asked, "answered": answered, **shares}


def by_device(
    answers: Mapping[str, Mapping[str, Tensor]], labels: Tensor, queries: int
) -> dict[str, tuple[int, float]]:
    """For each device how many queries it answered, and its accuracy on them."""
    hits: dict[str, list[int]] = {}
    for number, said in enumerate(answers.values()):
        wanted = labels[number * queries : (number + 1) * queries]
        for device, logits in said.items():
            hits.setdefault(device, []).extend((logits[: len(wanted)].argmax(-1) == wanted).int().tolist())
    return {device: (len(each), sum(each) / len(each)) for device, each in sorted(hits.items())}


def _durations(folder: RunFolder) -> list[float]:
    """Seconds of emulated time that each round took."""
    ends = {line["round"]: line["virtual_s"] for line in folder.read_lines("metrics.jsonl") if _of_round(line)}
    times = [0.0, *(ends[number] for number in sorted(ends))]
    return [after - before for before, after in pairwise(times)]


def _of_round(line: Mapping[str, Any]) -> bool:
    return line.get("round") is not None and "virtual_s" in line


def _spread(rounds: Sequence[float]) -> dict[str, float | None]:
    found = {f"round_s_p{at}": float(np.percentile(rounds, at)) if rounds else None for at in (50, 90, 95)}
    return {"rounds": len(rounds), **found}
