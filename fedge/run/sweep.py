"""A grid of runs of one federation: resumable, a cell a combination, with the mean and deviation over seeds.

What has been run stands in ``sweeps/<digest>.json`` beside the runs, by its resolved settings; a run that is done isn't
run again, one that was interrupted goes on from its checkpoint.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from fedge.errors import ConfigError, FedgeError, Problem
from fedge.run.launcher import Options, up
from fedge.spec import load_federation, resolved

Say = Callable[[str], None]
_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)")
_SEED = "seed"
#: Runs that a grid may have, so that a slip of the pen doesn't start a year of work.
MOST = 10_000


@dataclass(frozen=True)
class Axis:
    """A key and the values that it takes, as texts for ``--set``."""

    key: str
    values: tuple[str, ...]


def read_axis(text: str) -> Axis:
    """``seed=0..4`` or ``stages.customize.method=lora,head``; commas in brackets part no values. ConfigError."""
    key, equals, given = text.partition("=")
    where = f"--over {text}"
    if not equals or not key.strip():
        raise ConfigError(Problem("expected KEY=VALUES, such as seed=0..4 or rounds=5,10", file=where))
    if (found := _RANGE.fullmatch(given.strip())) is not None:
        first, last = int(found[1]), int(found[2])
        if last < first:
            raise ConfigError(Problem(f"the range {given} is empty", file=where, hint=f"{last}..{first}?"))
        if last - first >= MOST:
            raise ConfigError(Problem(f"the range {given} has more than {MOST} values", file=where))
        return Axis(key.strip(), tuple(str(value) for value in range(first, last + 1)))
    values = tuple(value.strip() for value in _parted(given))
    if not all(values):
        raise ConfigError(Problem("a value is missing", file=where, hint=f"{key}=first,second"))
    if len(set(values)) < len(values):
        raise ConfigError(Problem("a value stands there twice", file=where))
    return Axis(key.strip(), values)


def _parted(text: str) -> list[str]:
    """Split at the commas that stand in no bracket."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "[{(") - (letter in ")}]")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def cells(axes: Sequence[Axis]) -> Iterator[dict[str, str]]:
    """Every combination, the last axis fastest."""
    for values in itertools.product(*(axis.values for axis in axes)):
        yield dict(zip((axis.key for axis in axes), values, strict=True))


def sweep(
    federation: str | Path, axes: Sequence[Axis], overrides: Sequence[str], options: Options, say: Say
) -> list[dict[str, Any]]:
    """Run what has not been run; returns a row for each stage of each cell, a cell being all seeds of a combination.

    Every combination is checked before the first one runs. Raises what ``up`` raises.
    """
    keys = [axis.key for axis in axes]
    if len(set(keys)) < len(keys):
        raise ConfigError(Problem("a key is swept twice", file="--over"))
    grid = list(cells(axes))
    if len(grid) > MOST:
        raise ConfigError(Problem(f"{len(grid)} runs: more than {MOST}", file="--over"))
    told = [[*overrides, *(f"{key}={value}" for key, value in cell.items())] for cell in grid]
    settings = [resolved(load_federation(federation, each)) for each in told]
    book = _Book(options.runs / "sweeps" / f"{_digest([str(federation), *overrides])}.json")
    summaries = []
    for number, (cell, each, text) in enumerate(zip(grid, told, settings, strict=True), 1):
        label = ", ".join(f"{key}={value}" for key, value in cell.items())
        summary = book.done(text)
        if summary is None:
            say(f"sweep {number}/{len(grid)}: {label}")
            summary = _run(federation, each, text, options, book, say)
        else:
            say(f"sweep {number}/{len(grid)}: {label}: done before, {summary['run']}")
        summaries.append((cell, summary))
    return _rows(summaries)


def _run(federation: str | Path, told: list[str], text: str, options: Options, book: _Book, say: Say) -> dict[str, Any]:
    begun = book.begun(text)
    before = set(_folders(options.runs))

    def noted(line: str) -> None:
        if book.begun(text) is None and (new := set(_folders(options.runs)) - before):
            book.note(text, max(new))
        say(line)

    run = up(federation, told, replace(options, resume=begun), noted)
    book.note(text, run.folder)
    return run.summary


def _folders(runs: Path) -> list[Path]:
    return [path for path in runs.iterdir() if (path / "resolved.yaml").is_file()] if runs.is_dir() else []


class _Book:
    """Which settings were run where."""

    def __init__(self, path: Path):
        self._path = path
        try:
            self._known: dict[str, str] = json.loads(path.read_text())
        except (OSError, ValueError):
            self._known = {}

    def begun(self, text: str) -> Path | None:
        """The folder of a run of these settings, if it is still there."""
        known = self._known.get(_digest(text))
        return Path(known) if known and (Path(known) / "resolved.yaml").is_file() else None

    def done(self, text: str) -> dict[str, Any] | None:
        """The summary of a run of these settings that has ended well."""
        folder = self.begun(text)
        try:
            summary: dict[str, Any] = json.loads((folder / "summary.json").read_text()) if folder else {}
        except (OSError, ValueError):
            return None
        return summary if summary.get("status") == "done" else None

    def note(self, text: str, folder: Path) -> None:
        self._known[_digest(text)] = str(folder)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            beside = self._path.with_suffix(f".{os.getpid()}")
            beside.write_text(json.dumps(self._known, indent=1))
            beside.replace(self._path)
        except OSError as error:
            raise FedgeError(f"{self._path} can't be written: {error.strerror}") from error


def _digest(about: object) -> str:
    return sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:20]


def _rows(summaries: Sequence[tuple[dict[str, str], Mapping[str, Any]]]) -> list[dict[str, Any]]:
    groups: dict[str, list[tuple[dict[str, str], Mapping[str, Any]]]] = {}
    for cell, summary in summaries:
        apart = {key: value for key, value in cell.items() if key != _SEED}
        groups.setdefault(json.dumps(apart), []).append((apart, summary))
    return [row for runs in groups.values() for row in _stages(runs)]


def _stages(runs: Sequence[tuple[dict[str, str], Mapping[str, Any]]]) -> Iterator[dict[str, Any]]:
    """A row for each stage: the mean of every figure over the runs, and the sample deviation beside the metrics."""
    cell = runs[0][0]
    for index, first in enumerate(runs[0][1]["stages"]):
        stages = [summary["stages"][index] for _, summary in runs]
        row: dict[str, Any] = {"cell": cell, "index": index, "stage": first["stage"], "method": first["method"]}
        for name in first["metrics"]:
            values = [stage["metrics"][name] for stage in stages if name in stage["metrics"]]
            row[name] = statistics.mean(values)
            row[f"{name}_sd"] = statistics.stdev(values) if len(values) > 1 else None
        for name in ("virtual_s", "bytes_up", "bytes_down", "peak_memory", "energy_j", "lost"):
            row[name] = statistics.mean(stage[name] for stage in stages)
        yield {**row, "n": len(stages), "runs": [summary["run"] for _, summary in runs]}
