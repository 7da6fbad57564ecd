"""Exporting a model without exits: one ONNX graph that answers as PyTorch does, in a folder of its own.

PyTorch computes on several threads here, and a process that has done so must not fork afterwards: export last.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fedge.data.rows import Rows
from fedge.errors import FedgeError
from fedge.export import graph, verify
from fedge.export.job import Exported, Progress, example_of, job_of, plain_of, still, traceable
from fedge.export.precision import known, precise_graph
from fedge.export.target import write_one
from fedge.models.load import Loaded

TARGET = "full"


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
    """Write ``folder/full/model.onnx``, of a language model the pass over a prompt, and what a runtime needs beside it.

    The arguments and errors are those of ``exits.export_exits``.
    """
    for one in precision:
        known(one)
    with still():
        plain = plain_of(model)
        job = job_of(plain, loaded, loaded.task.classes, rows, folder, labels, about, progress)
        job.progress(f"{TARGET}: turning the model into an ONNX graph")
        try:
            proto = graph.convert(traceable(plain), example_of(job))
        except FedgeError as error:
            raise FedgeError(f"{TARGET}: {error.message}", hint=error.hint) from error

        def answers() -> Iterator[tuple[Mapping[str, Tensor], Tensor]]:
            for batch in verify.chunks(job.rows, job.task, job.names):
                yield batch, graph.logits_of(plain(**job.task.inputs(batch)))

        def judge(session: Any) -> verify.Verdict:
            return verify.compare(session, answers(), job.task)

        return [write_one(job, TARGET, one, precise_graph(proto, one), plain, judge) for one in precision]
