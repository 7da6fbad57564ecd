"""Exporting a trained model: for each exit a truncated ONNX graph that answers as PyTorch does, in a folder of its own.

PyTorch computes on several threads here, and a process that has done so must not fork afterwards: export last.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from fedge.core.task import Task
from fedge.data.rows import Pixels, Rows
from fedge.errors import ConfigError, FedgeError
from fedge.export import graph, verify
from fedge.export.card import card
from fedge.export.folder import describe, label_names, whole
from fedge.export.quiet import all_cores, quiet
from fedge.models import lora
from fedge.models.exits import MultiExit
from fedge.models.load import Loaded
from fedge.models.quiet import quiet as quiet_loading
from fedge.models.share import share

Progress = Callable[[str], None]
_Answers = Callable[[], Iterator[tuple[Mapping[str, Tensor], Tensor]]]


@dataclass(frozen=True)
class Exported:
    """One exported file. file: its path from the run's folder; bytes: its size; accuracy: by ONNX Runtime on the rows
    given, None where they have no labels; agreement: the share of labels on which PyTorch agrees."""

    target: str
    file: str
    precision: str
    bytes: int
    accuracy: float | None
    parity_max_abs: float
    agreement: float

    def to_json(self) -> dict[str, Any]:
        """A row of summary.json's ``exports``."""
        return dict(vars(self))


@dataclass(frozen=True)
class _Job:
    """What all targets of one export have in common."""

    loaded: Loaded
    task: Task
    rows: Rows
    folder: Path
    labels: list[str]
    about: Mapping[str, Any]
    names: tuple[str, ...]
    progress: Progress


def export_exits(
    model: MultiExit,
    loaded: Loaded,
    rows: Rows,
    folder: Path,
    *,
    labels: Sequence[str] | None = None,
    about: Mapping[str, Any],
    precision: Sequence[str] = ("fp32",),
    progress: Progress | None = None,
) -> list[Exported]:
    """For each exit, shallowest first, write ``folder/exit-<blocks>/model.onnx`` and what a runtime needs beside it.

    The graph holds the blocks up to the exit and its head alone. loaded: what the model was loaded as (preprocessor,
    task, input names). rows: test rows, at least one, on which every graph is compared with PyTorch before it is kept.
    labels: names of the classes (None: the model's own). about: JSON facts for the file's metadata and its card.
    Folders that are there are replaced, each as a whole.

    ParityError for a graph that differs from PyTorch (its folder is absent then), FedgeError for a model that cannot
    be exported or a disk that does not take it, ConfigError for an unknown precision.
    """
    _known(precision)
    with _still():
        plain = _plain(model)
        assert isinstance(plain, MultiExit)
        job = _job(plain, loaded, plain.classes, rows, folder, labels, about, progress)
        answers = _exit_answers(plain, job)
        return [
            _export(f"exit-{blocks}", plain.cut(blocks), blocks, answers[blocks], job, one)
            for blocks in plain.points
            for one in precision
        ]


def export_model(
    model: nn.Module,
    loaded: Loaded,
    rows: Rows,
    folder: Path,
    *,
    labels: Sequence[str] | None = None,
    about: Mapping[str, Any],
    precision: Sequence[str] = ("fp32",),
    progress: Progress | None = None,
) -> list[Exported]:
    """The same for a model without exits, as the one target ``full``; of a language model, the pass over a prompt."""
    _known(precision)
    with _still():
        plain = _plain(model)
        job = _job(plain, loaded, loaded.task.classes, rows, folder, labels, about, progress)

        def answers() -> Iterator[tuple[Mapping[str, Tensor], Tensor]]:
            for batch in verify.chunks(job.rows, job.task, job.names):
                yield batch, graph.logits_of(plain(**job.task.inputs(batch)))

        return [_export("full", plain, None, answers, job, one) for one in precision]


def _known(precision: Sequence[str]) -> None:
    for one in precision:
        if one not in verify.TOLERANCE:
            raise ConfigError(f"precision '{one}' cannot be exported; there is {', '.join(verify.TOLERANCE)}")


@contextmanager
def _still() -> Iterator[None]:
    with quiet_loading(), quiet(), all_cores(), torch.no_grad():
        yield


def _plain(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode, in float32 on the CPU, its adapters merged and no cache kept; shares what it can."""
    plain = (lora.merge(model) if lora.factors(model) else share(model)).cpu().float().eval()
    config: Any = getattr(plain, "config", None)
    if hasattr(config, "use_cache"):
        config.use_cache = False
    return plain


def _job(
    model: nn.Module,
    loaded: Loaded,
    classes: int,
    rows: Rows,
    folder: Path,
    labels: Sequence[str] | None,
    about: Mapping[str, Any],
    progress: Progress | None,
) -> _Job:
    task = Task(loaded.task.kind, classes)
    names = tuple(name for name in loaded.input_names if name in rows.columns or name == "attention_mask")
    if not names:
        raise ConfigError(f"the rows have none of the model's inputs {', '.join(loaded.input_names)}")
    return _Job(
        loaded, task, rows, folder, label_names(model, task, labels), about, names, progress or (lambda line: None)
    )


def _exit_answers(model: MultiExit, job: _Job) -> dict[int, _Answers]:
    """For each exit the rows with its logits. A classifier runs once for all of its exits; those of a language model,
    whose logits are too large to keep, run one by one."""

    def one_by_one(blocks: int) -> Iterator[tuple[Mapping[str, Tensor], Tensor]]:
        for batch in verify.chunks(job.rows, job.task, job.names):
            yield batch, model(depth=blocks, **job.task.inputs(batch))[-1]

    if job.task.generative:
        return {blocks: partial(one_by_one, blocks) for blocks in model.points}
    job.progress(f"PyTorch's answers to {len(job.rows)} rows")
    kept = [model(**job.task.inputs(batch)) for batch in verify.chunks(job.rows, job.task, job.names)]

    def remembered(at: int) -> Iterator[tuple[Mapping[str, Tensor], Tensor]]:
        batches = verify.chunks(job.rows, job.task, job.names)
        return ((batch, logits[at]) for batch, logits in zip(batches, kept, strict=True))

    return {blocks: partial(remembered, at) for at, blocks in enumerate(model.points)}


def _export(
    target: str, model: nn.Module, blocks: int | None, answers: _Answers, job: _Job, precision: str
) -> Exported:
    job.progress(f"{target}: turning the model into an ONNX graph")
    try:
        proto = graph.convert(_traceable(model), _example(job))
    except FedgeError as error:
        raise FedgeError(f"{target}: {error.message}", hint=error.hint) from error
    try:
        with whole(job.folder / target) as place:
            path = place / verify.MODEL_FILE
            onnx.save(proto, str(path))
            job.progress(f"{target}: comparing it with PyTorch on {len(job.rows)} rows")
            verdict = verify.compare(verify.open_session(path), answers(), job.task)
            verify.accept(verdict, target, precision)
            manifest = _manifest(target, blocks, proto, verdict, job, precision)
            graph.describe(proto, manifest)
            onnx.save(proto, str(path))
            describe(place, model, job.loaded, job.labels)
            (place / "README.md").write_text(card(manifest, job.loaded.preprocessor, place), encoding="utf-8")
            size = path.stat().st_size
    except verify.ParityError:
        # what an earlier export left there would pass for this model's
        shutil.rmtree(job.folder / target, ignore_errors=True)
        raise
    file = f"{job.folder.name}/{target}/{verify.MODEL_FILE}"
    return Exported(target, file, precision, size, verdict.accuracy, verdict.parity_max_abs, verdict.agreement)


def _traceable(model: nn.Module) -> nn.Module:
    """A copy that computes attention step by step: the fused kernel's guard for rows without any token would become
    operators that runtimes cannot fuse."""
    model = share(model).eval()
    for module in model.modules():
        config: Any = getattr(module, "config", None)
        if getattr(config, "_attn_implementation", None) == "sdpa":
            config._attn_implementation = "eager"
    return model


def _example(job: _Job) -> dict[str, Tensor]:
    """Two rows as an example to trace, at full length, since tracing takes a dimension of 1 for a fixed one."""
    if not len(job.rows):
        raise ConfigError("there are no rows to compare the exported model on")
    two = job.rows.take([0, len(job.rows) - 1])
    batch = next(verify.chunks(two, job.task, job.names, trim=False))
    return {name: batch[name] for name in job.names}


def _manifest(
    target: str, blocks: int | None, proto: onnx.ModelProto, verdict: verify.Verdict, job: _Job, precision: str
) -> dict[str, Any]:
    pixels = job.rows.pixels or (Pixels() if job.task.kind == "image-classification" else None)
    limits = [
        getattr(job.loaded.preprocessor, "model_max_length", None),
        job.loaded.config.get("max_position_embeddings") or job.loaded.config.get("n_positions"),
    ]
    return {
        "about": dict(job.about),
        "target": target,
        "exit": blocks,
        "task": job.task.kind,
        "labels": job.labels,
        "inputs": graph.inputs_of(proto),
        "pixels": None if pixels is None else dict(vars(pixels)),
        "length": min((int(limit) for limit in limits if limit), default=512),
        "precision": precision,
        "accuracy": verdict.accuracy,
        "parity": {"max_abs": verdict.parity_max_abs, "agreement": verdict.agreement, "rows": verdict.rows},
        "torch": torch.__version__,
    }
