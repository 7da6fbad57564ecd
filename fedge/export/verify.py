"""Whether an exported graph answers as the PyTorch model does, and how well: ONNX Runtime on real rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import Tensor

from fedge.core.task import IGNORE, Score, Task
from fedge.data.rows import Rows
from fedge.errors import ConfigError, FedgeError, MissingError

#: By precision, the largest difference between a logit of the graph and PyTorch's that is taken for rounding, for
#: logits up to ``_USUAL``. Rounding grows with what is rounded (about 1e-6 of it was seen), so the limit does too.
TOLERANCE = {"fp32": 1e-4}
_USUAL = 10.0
MODEL_FILE = "model.onnx"

#: Rows in a chunk, and the logits that a chunk of token predictions may hold.
_ROWS = 64
_LOGITS = 2**24


class ParityError(FedgeError):
    """The graph's logits are not the model's."""


@dataclass(frozen=True)
class Verdict:
    """How a graph did on rows: the largest difference of a logit, the share of equal labels, accuracy (None without
    labels), PyTorch's largest logit (absolute), and how many rows were compared."""

    parity_max_abs: float
    agreement: float
    accuracy: float | None
    largest: float
    rows: int


def open_session(path: Path) -> Any:
    """An ONNX Runtime session on one thread of the CPU. MissingError where no file is, FedgeError for a bad one."""
    if not path.is_file():
        raise MissingError(f"there is no exported model {path}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise FedgeError(f"ONNX Runtime cannot open {path.name}: {str(error).splitlines()[0]}") from error


def run(session: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    """The graph's logits for a batch's inputs; those that it does not take are left out."""
    names = [one.name for one in session.get_inputs()]
    return torch.from_numpy(session.run(["logits"], {name: inputs[name].numpy() for name in names})[0])


def chunks(rows: Rows, task: Task, names: Iterable[str], *, trim: bool = True) -> Iterator[dict[str, Tensor]]:
    """All rows in order as batches that hold the inputs ``names`` and the labels.

    Rows without an attention mask get one of ones. In a classifier's batch, positions that are padding in every row
    are cut off, unless ``trim`` is false.
    """
    if not len(rows):
        raise ConfigError("there are no rows to compare the exported model on")
    size = _ROWS
    if task.generative:
        positions = max(shape[1] for shape, _ in rows.spec(1).values() if len(shape) == 2)
        size = max(1, min(size, _LOGITS // (positions * task.classes)))
    for batch in rows.chunks(size):
        found = dict(batch)
        if "attention_mask" in names and "attention_mask" not in found:
            found["attention_mask"] = torch.ones_like(found["input_ids"])
        if trim and not task.generative and "attention_mask" in found:
            found = _trimmed(found)
        yield {name: found[name] for name in (*names, "labels")}


def _trimmed(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    used = batch["attention_mask"].any(0).nonzero()
    width = int(used[-1]) + 1 if len(used) else 1
    return {name: column if name == "labels" else column[:, :width] for name, column in batch.items()}


def compare(session: Any, answers: Iterable[tuple[Mapping[str, Tensor], Tensor]], task: Task) -> Verdict:
    """Hold the graph against pairs of (batch with labels, the model's logits for it)."""
    worst = largest = 0.0
    equal = labels = rows = 0
    score = Score()
    for batch, expected in answers:
        logits = run(session, batch)
        difference = (logits - expected).abs().max().item()
        # max() alone would lose a not-a-number that is not its first argument
        worst = difference if difference != difference else max(worst, difference)
        largest = max(largest, expected.abs().max().item())
        mine = score.add(task, logits, batch["labels"])
        theirs, wanted = task.aligned(expected, batch["labels"])
        kept = wanted != IGNORE
        equal += int(((mine == theirs.argmax(-1)) & kept).sum())
        labels += int(kept.sum())
        rows += len(expected)
        if worst != worst:
            break
    return Verdict(worst, equal / max(labels, 1), score.metrics(task).get("accuracy"), largest, rows)


def accept(verdict: Verdict, target: str, precision: str) -> None:
    """ParityError, with the figure, for a graph that is further from the model than its precision explains."""
    limit = TOLERANCE[precision] * max(1.0, verdict.largest / _USUAL)
    worst = verdict.parity_max_abs
    if worst != worst:
        raise ParityError(f"{target}: logits are not numbers (nan), so it was not kept")
    if worst > limit:
        raise ParityError(
            f"{target}: the ONNX graph's logits differ from PyTorch's by {worst:.3g}, more than {limit:.3g} "
            f"({precision}); it was not kept"
        )


def check(folder: Path, rows: Rows, task: Task) -> float:
    """The accuracy on rows of the model in an exported folder, by ONNX Runtime alone."""
    session = open_session(folder / MODEL_FILE)
    names = [one.name for one in session.get_inputs()]
    score = Score()
    for batch in chunks(rows, task, names):
        score.add(task, run(session, batch), batch["labels"])
    return score.metrics(task).get("accuracy", float("nan"))
