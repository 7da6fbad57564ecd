"""What finished runs say that methods are worth on a task: the file that ``prefer: quality`` reads (``learned:``)."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedge.errors import ConfigError, FedgeError, Problem
from fedge.plan.worth import fingerprint
from fedge.report.record import Record, Stage

#: The metrics by which a model is judged; of the second less is better, so its worth is its negative.
_METRICS = ("accuracy", "perplexity")


def write(path: Path, runs: Sequence[Path]) -> None:
    """Write the file, whole or not at all."""
    found = json.dumps(learn(runs), indent=2, ensure_ascii=False)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(found + "\n")
        beside.replace(path)
    except OSError as error:
        raise FedgeError(f"{path} can't be written: {error.strerror}") from error


def learn(runs: Sequence[Path]) -> dict[str, Any]:
    """One row for each method and variant that some run trained alone: the mean, its spread over runs, their number.

    Of each run the last stage counts that is no deployment. A run whose devices trained different variants says nothing
    of any of them and is left out. ConfigError for runs of different tasks, and where nothing is left.
    """
    records = {run: Record(run) for run in runs}
    tasks = {run: _task(record) for run, record in records.items()}
    first = next(iter(tasks))
    for run, task in tasks.items():
        if task != tasks[first]:
            raise ConfigError(f"{run} and {first} are not of one task: {_said(records[run])}, {_said(records[first])}")
    found: dict[str, list[tuple[str, dict[str, Any], float]]] = {}
    metric = _METRICS[0]
    for record in records.values():
        alone = _alone(record)
        if alone is None:
            continue
        method, variant, metric, value = alone
        place = json.dumps([method, variant], sort_keys=True)
        found.setdefault(place, []).append((method, variant, -value if metric != _METRICS[0] else value))
    if not found:
        hint = "run each candidate on its own: --set stages.customize.method=lora"
        raise ConfigError(Problem("none of these runs is done and had one method in one variant alone", hint=hint))
    return {"task": tasks[first], "metric": metric, "rows": [_row(values) for values in found.values()]}


def _row(values: Sequence[tuple[str, dict[str, Any], float]]) -> dict[str, Any]:
    method, variant, _ = values[0]
    worths = [worth for _, _, worth in values]
    return {
        "method": method,
        "variant": variant,
        "worth": statistics.mean(worths),
        "spread": max(worths) - min(worths),
        "n": len(worths),
    }


def _alone(record: Record) -> tuple[str, dict[str, Any], str, float] | None:
    """The method and variant that all devices of a run's stage trained, and what came of it."""
    stages = [stage for stage in record.stages if stage.closed and stage.name != "deploy"]
    if not stages:
        return None
    stage: Stage = stages[-1]
    took = [line for line in stage.devices if line.get("method") and line.get("rounds")]
    if not took or any((line["method"], line["variant"]) != (took[0]["method"], took[0]["variant"]) for line in took):
        return None
    metrics: Mapping[str, float] = (stage.closed or {}).get("metrics", {})
    metric = next((name for name in _METRICS[::-1] if name in metrics), None)
    return None if metric is None else (took[0]["method"], dict(took[0]["variant"]), metric, metrics[metric])


def _task(record: Record) -> str:
    return fingerprint(*_about(record))


def _about(record: Record) -> tuple[str, str, str]:
    model, data = record.settings.get("model"), record.settings.get("data")
    named = model.get("name") if isinstance(model, Mapping) else model
    dataset = data.get("dataset") if isinstance(data, Mapping) else data
    return str(named), str(dataset), str(record.summary.get("task"))


def _said(record: Record) -> str:
    return " on ".join(Path(word).name for word in _about(record)[:2])
