"""Writing one target of an export: its folder appears whole once the graph has been held against PyTorch."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any

import onnx
from torch import nn

from fedge.export import graph, verify
from fedge.export.card import card
from fedge.export.folder import describe, whole, write_json
from fedge.export.job import Exported, Job, manifest_of

#: What a folder says of its exits and policy, for people and for ``fedge infer``.
EXITS_FILE = "exits.json"
_ONE_AT_A_TIME = Lock()


def name_of(target: str, precision: str) -> str:
    """The folder of a target: precisions other than fp32 have one of their own."""
    return target if precision == "fp32" else f"{target}-{precision}"


@contextmanager
def kept(job: Job, target: str, precision: str) -> Iterator[Path]:
    """A place that becomes the target's folder. Nothing is left there after a ParityError: what an earlier export
    left would pass for this model's."""
    folder = job.folder / name_of(target, precision)
    try:
        with whole(folder) as place:
            yield place
    except verify.ParityError:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def write_one(
    job: Job,
    target: str,
    precision: str,
    proto: onnx.ModelProto,
    model: nn.Module,
    judge: Callable[[Any], verify.Verdict],
    *,
    blocks: int | None = None,
    more: Callable[[], Mapping[str, Any]] = dict,
) -> Exported:
    """Write ``model.onnx`` and what a runtime needs beside it.

    model: whose configuration lies beside. judge: holds an open session against PyTorch. more: facts for the manifest,
    asked for after judging. ParityError for a graph that differs from PyTorch.
    """
    named = name_of(target, precision)
    with kept(job, target, precision) as place:
        path = place / verify.MODEL_FILE
        onnx.save(proto, str(path))
        job.progress(f"{named}: comparing it with PyTorch on {len(job.rows)} rows")
        verdict = judge(verify.open_session(path))
        verify.accept(verdict, named, precision)
        manifest = {**manifest_of(target, blocks, proto, verdict, job, precision), **more()}
        graph.describe(proto, manifest)
        onnx.save(proto, str(path))
        finish(place, manifest, model, job)
        size = path.stat().st_size
    file = f"{job.folder.name}/{named}/{verify.MODEL_FILE}"
    return Exported(
        target,
        file,
        precision,
        size,
        verdict.accuracy,
        verdict.parity_max_abs,
        verdict.agreement,
        manifest.get("exits_taken"),
    )


def finish(place: Path, manifest: Mapping[str, Any], model: nn.Module, job: Job) -> None:
    """Write the configuration, the preprocessor, the card, and ``exits.json`` where there is more than one exit."""
    with _ONE_AT_A_TIME:  # targets are judged side by side, and a tokenizer is no thread's own
        describe(place, model, job.loaded, job.labels)
        (place / "README.md").write_text(card(manifest, job.loaded.preprocessor, place), encoding="utf-8")
    if "exits" in manifest:
        write_json(place / EXITS_FILE, manifest)
