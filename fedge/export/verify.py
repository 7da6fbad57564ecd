"""Whether an exported graph answers as the PyTorch model does, and how well: ONNX Runtime on real rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from fedge.core.task import IGNORE, Score, Task
from fedge.data.rows import Rows
from fedge.errors import ConfigError, FedgeError, MissingError
from fedge.export.chain import Chain
from fedge.export.criteria import scores, taken

#: By precision, the largest difference between a logit of the graph and PyTorch's that is taken for rounding, for
#: logits up to ``USUAL``. Rounding grows with what is rounded (about 1e-6 of it was seen), so the limit does too.
TOLERANCE = {"fp32": 1e-4}
#: In other precisions, the least share of labels that are PyTorch's.
AGREEMENT = {"fp16": 0.98, "int8": 0.92, "int4": 0.85}
#: A score this close to its threshold may be on either side of it.
NEAR = 1e-4
USUAL = 10.0
MODEL_FILE = "model.onnx"

#: Rows in a chunk, and the logits that a chunk of token predictions may hold.
_ROWS = 64
_LOGITS = 2**24


#: Batches with labels, and PyTorch's logits of every exit for each.
Answers = Iterable[tuple[Mapping[str, Tensor], Sequence[Tensor]]]


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
        if trim and not task.generative:
            found = _trimmed(found)
        yield {name: found[name] for name in (*names, "labels")}


def _trimmed(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    if "attention_mask" not in batch:
        return batch
    used = batch["attention_mask"].any(0).nonzero()
    width = int(used[-1]) + 1 if len(used) else 1
    return {name: column if column.dim() == 1 else column[:, :width] for name, column in batch.items()}


@dataclass
class Tally:
    """Answers of a graph held against PyTorch's, batch by batch."""

    task: Task
    worst: float = 0.0
    largest: float = 0.0
    equal: int = 0
    labels: int = 0
    rows: int = 0
    score: Score = field(default_factory=Score)

    def add(self, logits: Tensor, expected: Tensor, labels: Tensor, *, scored: bool = True) -> None:
        """A batch's logits from the graph and from PyTorch; ``scored``: whether its accuracy counts."""
        difference = (logits - expected).abs().max().item()
        # max() alone would lose a not-a-number that is not its first argument
        self.worst = difference if difference != difference else max(self.worst, difference)
        self.largest = max(self.largest, expected.abs().max().item())
        theirs, wanted = self.task.aligned(expected, labels)
        mine = self.score.add(self.task, logits, labels) if scored else self.task.aligned(logits, labels)[0].argmax(-1)
        kept = wanted != IGNORE
        self.equal += int(((mine == theirs.argmax(-1)) & kept).sum())
        self.labels += int(kept.sum())
        self.rows += len(expected)

    def verdict(self) -> Verdict:
        """What it came to."""
        accuracy = self.score.metrics(self.task).get("accuracy")
        return Verdict(self.worst, self.equal / max(self.labels, 1), accuracy, self.largest, self.rows)


def compare(session: Any, answers: Iterable[tuple[Mapping[str, Tensor], Tensor]], task: Task) -> Verdict:
    """Hold the graph against pairs of (batch with labels, the model's logits for it)."""
    tally = Tally(task)
    for batch, expected in answers:
        tally.add(run(session, batch), expected, batch["labels"])
        if tally.worst != tally.worst:
            break
    return tally.verdict()


def compare_chain(chain: Chain, answers: Answers, task: Task) -> tuple[list[Verdict], list[np.ndarray]]:
    """The same for every exit of a chain; and the logits of each exit that decide, float32 ``[rows, classes]``."""
    tallies: list[Tally] = []
    kept: list[list[np.ndarray]] = []
    for batch, expected in answers:
        found = chain.all_exits({name: column.numpy() for name, column in task.inputs(batch).items()})
        tallies = tallies or [Tally(task) for _ in found]
        kept = kept or [[] for _ in found]
        for at, logits in enumerate(found):
            tallies[at].add(torch.from_numpy(logits), expected[at], batch["labels"])
            kept[at].append(deciding(logits, batch))
    return [tally.verdict() for tally in tallies], [np.concatenate(each) for each in kept]


def compare_adaptive(
    session: Any,
    answers: Answers,
    task: Task,
    criterion: str,
    thresholds: Sequence[float],
    scored: np.ndarray,
    pool: Executor,
) -> tuple[Verdict, list[int], int]:
    """Hold a graph that decides itself against PyTorch, row by row and without padding.

    scored: indices of the rows whose accuracy and exits count. Returns the verdict against PyTorch's logits at the exit
    that was taken, how many rows left at each exit, and how many left elsewhere than PyTorch's scores say (a score
    within ``NEAR`` of its threshold can go either way).
    """
    tally, counted = Tally(task), set(scored.tolist())
    counts: list[int] = []
    astray = row = 0
    names = [given.name for given in session.get_inputs()]

    def answer(one: Mapping[str, Tensor]) -> tuple[np.ndarray, int]:
        logits, index = session.run(["logits", "exit_index"], {name: one[name].numpy() for name in names})
        return logits, int(index)

    for batch, expected in answers:
        counts = counts or [0] * len(expected)
        found = scores([deciding(each.numpy(), batch) for each in expected], criterion)
        wanted = taken(found, thresholds)
        near = np.abs(found[:, :-1] - np.asarray(thresholds, dtype=np.float32)).min(axis=1) <= NEAR
        ones = [_trimmed({name: column[at : at + 1] for name, column in batch.items()}) for at in range(len(found))]
        for at, (one, (logits, exit_)) in enumerate(zip(ones, pool.map(answer, ones), strict=True)):
            counts[exit_] += row in counted
            astray += int(exit_ != wanted[at] and not near[at])
            theirs = expected[exit_][at : at + 1]
            theirs = theirs[:, : logits.shape[1]] if task.generative else theirs
            tally.add(torch.from_numpy(logits), theirs, one["labels"], scored=row in counted)
            row += 1
    return tally.verdict(), counts, astray


def deciding(logits: np.ndarray, batch: Mapping[str, Tensor]) -> np.ndarray:
    """The logits by which a row leaves, ``[rows, classes]``: its only ones, or those at its last token."""
    if logits.ndim == 2:
        return logits
    mask = batch["attention_mask"].numpy()
    last = (mask * np.arange(mask.shape[1])).max(axis=1)
    found: np.ndarray = logits[np.arange(len(logits)), last]
    return found


def accept(verdict: Verdict, target: str, precision: str) -> None:
    """ParityError, with the figure, for a graph that is further from the model than its precision explains."""
    worst = verdict.parity_max_abs
    if worst != worst:
        raise ParityError(f"{target}: logits are not numbers (nan), so it was not kept")
    if precision in TOLERANCE:
        limit = TOLERANCE[precision] * max(1.0, verdict.largest / USUAL)
        if worst > limit:
            raise ParityError(
                f"{target}: the ONNX graph's logits differ from PyTorch's by {worst:.3g}, more than {limit:.3g} "
                f"({precision}); it was not kept"
            )
    elif verdict.agreement < AGREEMENT[precision]:
        raise ParityError(
            f"{target}: in {precision} the graph gives PyTorch's label for {100 * verdict.agreement:.1f} % of the "
            f"answers, fewer than {100 * AGREEMENT[precision]:.0f} %; it was not kept",
            hint="a precision with more bits keeps more of the model",
        )


def check(folder: Path, rows: Rows, task: Task) -> float:
    """The accuracy on rows of the model in an exported folder, by ONNX Runtime alone."""
    session = open_session(folder / MODEL_FILE)
    names = [one.name for one in session.get_inputs()]
    score = Score()
    for batch in chunks(rows, task, names):
        score.add(task, run(session, batch), batch["labels"])
    return score.metrics(task).get("accuracy", float("nan"))
