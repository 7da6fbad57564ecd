"""What every target of an export has in common: the model as it is traced, the rows that judge it, the manifest."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from fedge.core.task import Task
from fedge.data.rows import Pixels, Rows
from fedge.errors import ConfigError
from fedge.export import graph, verify
from fedge.export.folder import label_names
from fedge.export.quiet import all_cores, quiet
from fedge.models import lora
from fedge.models.load import Loaded
from fedge.models.quiet import quiet as quiet_loading
from fedge.models.share import share

Progress = Callable[[str], None]


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
    #: For a graph that decides itself, how many of those rows left at each exit, by its name.
    exits_taken: Mapping[str, int] | None = None

    def to_json(self) -> dict[str, Any]:
        """A row of summary.json's ``exports``."""
        return dict(vars(self))


@dataclass(frozen=True)
class Job:
    """What all targets of one export have in common."""

    loaded: Loaded
    task: Task
    rows: Rows
    folder: Path
    labels: list[str]
    about: Mapping[str, Any]
    names: tuple[str, ...]
    progress: Progress


@contextmanager
def still() -> Iterator[None]:
    """Silence, every core and no gradients while an export works."""
    with quiet_loading(), quiet(), all_cores(), torch.no_grad():
        yield


def plain_of(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode, in float32 on the CPU, its adapters merged and no cache kept; shares what it can."""
    plain = (lora.merge(model) if lora.factors(model) else share(model)).cpu().float().eval()
    config: Any = getattr(plain, "config", None)
    if hasattr(config, "use_cache"):
        config.use_cache = False
    return plain


def job_of(
    model: nn.Module,
    loaded: Loaded,
    classes: int,
    rows: Rows,
    folder: Path,
    labels: Sequence[str] | None,
    about: Mapping[str, Any],
    progress: Progress | None,
) -> Job:
    """The job for rows of which the model takes at least one column; ConfigError where there is none."""
    task = Task(loaded.task.kind, classes)
    names = tuple(name for name in loaded.input_names if name in rows.columns or name == "attention_mask")
    if not names:
        raise ConfigError(f"the rows have none of the model's inputs {', '.join(loaded.input_names)}")
    return Job(
        loaded, task, rows, folder, label_names(model, task, labels), about, names, progress or (lambda line: None)
    )


def traceable(model: nn.Module) -> nn.Module:
    """A copy that computes attention step by step: the fused kernel's guard for rows without any token would become
    operators that runtimes cannot fuse."""
    model = share(model).eval()
    for module in model.modules():
        config: Any = getattr(module, "config", None)
        if getattr(config, "_attn_implementation", None) == "sdpa":
            config._attn_implementation = "eager"
    return model


def example_of(job: Job) -> dict[str, Tensor]:
    """Two rows as an example to trace, at full length, since tracing takes a dimension of 1 for a fixed one."""
    if not len(job.rows):
        raise ConfigError("there are no rows to compare the exported model on")
    two = job.rows.take([0, len(job.rows) - 1])
    batch = next(verify.chunks(two, job.task, job.names, trim=False))
    return {name: batch[name] for name in job.names}


def manifest_of(
    target: str, blocks: int | None, proto: onnx.ModelProto, verdict: verify.Verdict, job: Job, precision: str
) -> dict[str, Any]:
    """What a target says of itself, as JSON."""
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
