"""``compare``: runs side by side, stage by stage, and the settings in which they differ."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedge.report.record import Record, Stage
from fedge.report.tables import table
from fedge.report.target import Target, Within, best_within, reached
from fedge.report.words import metric, of_devices
from fedge.units import format_bytes, format_seconds

#: Characters of a value that a table shows.
_LONGEST = 40


def compare(
    runs: Sequence[Path], target: Target | None = None, within: Within | None = None
) -> dict[str, list[dict[str, Any]]]:
    """``runs``: one flat row a run; ``compare``: one a stage of a run; ``settings``: one a key that differs.

    target: a stage's row says what it cost to reach it (``target_s``, ``target_bytes``, ``target_j``, None where it
    never did). within: it has the metrics of the last test that the budget carried (``within_accuracy``, …). Raises
    MissingError when a folder isn't a run's.
    """
    records = {_called(run, runs): Record(run) for run in runs}
    first = next((r.summary["model_sha256"] for r in records.values() if r.summary.get("model_sha256")), None)
    told = [_run(name, record, first) for name, record in records.items()]
    return {
        "runs": told,
        "compare": [
            {**_stage(name, record, stage), **_measured(record, stage, target, within)}
            for name, record in records.items()
            for stage in record.stages
        ],
        "settings": _differences({name: {**_flat(r.settings), **_flat(r.host, "host")} for name, r in records.items()}),
    }


def compare_tables(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """The same on a terminal, rows of one stage together."""
    shown = [
        {
            **row,
            "metric": metric(row),
            "on devices": of_devices(row, "device"),
            "own models": of_devices(row, "personal"),
            "rounds": row["rounds"] if row["finished"] else f"{row['rounds']}/{row['planned'] or '?'}",
            "emulated": format_seconds(row["virtual_s"]),
            "up": format_bytes(row["bytes_up"]),
            "down": format_bytes(row["bytes_down"]),
            "peak": format_bytes(row["peak_memory"]) if row["peak_memory"] else None,
            "energy": f"{row['energy_j']:.4g} J" if row["energy_j"] is not None else None,
        }
        for row in sorted(found["compare"], key=lambda row: row["index"])
    ]
    own = [name for name in ("on devices", "own models") if any(row[name] for row in shown)]
    columns = ["stage", "run", "method", "rounds", "metric", *own, "emulated", "up", "down", "peak", "energy", "lost"]
    for row in shown:
        if "target_s" in row:
            row["to target"] = _cost(row)
        if any(name.startswith("within_") for name in row):
            row["within"] = metric({n.removeprefix("within_"): v for n, v in row.items() if n.startswith("within_")})
    columns += [extra for extra in ("to target", "within") if any(extra in row for row in shown)]
    table(shown, columns, "stages")
    models: list[dict[str, Any]] = [
        {**row, "wall": _seconds(row["wall_s"]), "model": _model(row)} for row in found["runs"]
    ]
    table(models, ["run", "status", "seed", "clock", "wall", "model"], "runs")
    if not found["settings"]:
        print("the same settings")
        return
    rows = [
        {name: value if name == "key" else _shown(value) for name, value in row.items()} for row in found["settings"]
    ]
    table(rows, ["key", *(row["run"] for row in found["runs"])], "settings that differ")


def _called(run: Path, runs: Sequence[Path]) -> str:
    """A run by its folder's name, or by its path where two folders have one name."""
    name = run.resolve().name
    return name if sum(other.resolve().name == name for other in runs) == 1 else str(run)


def _run(name: str, record: Record, first: object) -> dict[str, Any]:
    said = record.summary
    digest = said.get("model_sha256")
    return {
        "run": name,
        "name": record.name,
        "status": record.status,
        "seed": said.get("seed"),
        "clock": said.get("clock"),
        "wall_s": said.get("wall_s") if record.status != "running" else None,
        "virtual_s": record.ended,
        "devices": len(record.devices),
        "model_sha256": digest,
        "same_model": None if digest is None or first is None else digest == first,
    }


def _stage(name: str, record: Record, stage: Stage) -> dict[str, Any]:
    closed = stage.closed or {}
    answers = [answer.said for answer in record.answers if answer.stage == stage.index]
    tests = [test.metrics for test in record.tests if test.stage == stage.index]
    return {
        **(closed.get("metrics") or (tests[-1] if tests else {})),
        "run": name,
        "index": stage.index,
        "stage": stage.name,
        "method": stage.method,
        "rounds": closed.get("rounds", _ended(record, stage)),
        "planned": stage.planned,
        "finished": stage.closed is not None,
        "virtual_s": closed.get("virtual_s", stage.ended - stage.began),
        "bytes_up": closed.get("bytes_up", sum(int(said.get("bytes_up") or 0) for said in answers)),
        "bytes_down": closed.get("bytes_down", sum(int(said.get("bytes_down") or 0) for said in answers)),
        "peak_memory": closed.get("peak_memory", max([said.get("peak_memory") or 0 for said in answers], default=0)),
        "energy_j": closed.get("energy_j"),
        "lost": sum(loss.stage == stage.index for loss in record.losses),
    }


def _measured(record: Record, stage: Stage, target: Target | None, within: Within | None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if target is not None:
        cost = reached(record, stage.index, target)
        found |= {
            "target_s": cost and cost.virtual_s,
            "target_bytes": cost and cost.bytes,
            "target_j": cost and cost.energy_j,
            "target_rounds": cost and cost.rounds,
        }
    if within is not None:
        test = best_within(record, stage.index, within)
        found |= {f"within_{name}": value for name, value in (test.metrics if test else {}).items()}
        found["within_rounds"] = test.round + 1 if test else 0
    return found


def _cost(row: Mapping[str, Any]) -> str:
    if row["target_s"] is None:
        return "not reached"
    return f"{format_seconds(row['target_s'])}, {format_bytes(row['target_bytes'])}, {row['target_j']:.4g} J"


def _ended(record: Record, stage: Stage) -> int:
    """Rounds that are over: all that began but one under way, of which nothing is written yet."""
    told = {answer.round for answer in record.answers if answer.stage == stage.index}
    return len(told | {test.round for test in record.tests if test.stage == stage.index})


def _differences(settings: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Keys whose values differ; a device group or a stage that some runs lack is one row, not one a key."""
    rows: dict[str, dict[str, Any]] = {}
    for key in dict.fromkeys(key for flat in settings.values() for key in flat):
        block = _block(key)
        having = {
            name: flat for name, flat in settings.items() if block is None or any(_block(k) == block for k in flat)
        }
        if len({json.dumps(flat.get(key)) for flat in having.values()}) > 1:
            rows[key] = {name: flat.get(key) for name, flat in settings.items()}
        if block is not None and len(having) < len(settings):
            rows[block] = {name: _sketch(flat, block) if name in having else None for name, flat in settings.items()}
    return [{"key": key, **values} for key, values in rows.items()]


def _block(key: str) -> str | None:
    """The device group or stage that a key belongs to: 'devices.pi', 'stages.customize', 'stages.0.customize'."""
    parts = key.split(".")
    if parts[0] not in ("devices", "stages") or len(parts) < 3:
        return None
    return ".".join(parts[: 3 if parts[1].isdigit() and parts[0] == "stages" else 2])


def _sketch(flat: Mapping[str, Any], block: str) -> str:
    if block.startswith("stages."):
        return str(flat.get(f"{block}.method"))
    return f"{flat.get(f'{block}.count')} × {flat.get(f'{block}.profile')}"


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    """Dotted paths as ``--set`` takes them: a stage goes by its word, with its number before where two share it."""
    if isinstance(value, Mapping):
        pairs = {str(name): part for name, part in value.items()}
    elif isinstance(value, list) and any(isinstance(part, Mapping) for part in value):
        words = [_word(part, str(number)) for number, part in enumerate(value)]
        twice = {word for word, count in Counter(words).items() if count > 1}
        pairs = {}
        for number, (word, part) in enumerate(zip(words, value, strict=True)):
            inner = part[word] if isinstance(part, Mapping) and word in part else part
            pairs[f"{number}.{word}" if word in twice else word] = inner
    else:
        return {path: value}
    found: dict[str, Any] = {}
    for name, part in pairs.items():
        found.update(_flat(part, f"{path}.{name}" if path else name))
    return found


def _word(part: Any, number: str) -> str:
    if isinstance(part, str):
        return part
    return str(next(iter(part))) if isinstance(part, Mapping) and len(part) == 1 else number


def _shown(value: Any) -> Any:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, dict)):
        value = json.dumps(value)
    return value if not isinstance(value, str) or len(value) <= _LONGEST else f"{value[: _LONGEST - 1]}…"


def _seconds(duration: object) -> str | None:
    return format_seconds(duration) if isinstance(duration, (int, float)) else None


def _model(row: Mapping[str, Any]) -> str | None:
    if row["model_sha256"] is None:
        return None
    word = {True: " the same", False: " another", None: ""}[row["same_model"]]
    return f"{row['model_sha256'][:12]}{word}"
