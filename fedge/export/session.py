"""Running an exported folder as a device would: single stream or in batches, under its memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedge.emulation import wall as walls
from fedge.errors import ConfigError, FedgeError, LimitError
from fedge.export.graph import manifest_of
from fedge.export.measure import Cap, Measured, Order, measure
from fedge.export.ship import Buyer
from fedge.export.target import EXITS_FILE
from fedge.export.work import Leaving

Say = Callable[[str], None]


@dataclass(frozen=True)
class Query:
    """How to infer. batch: rows at once through the chain, 0: one after the other; queries, seconds: at least so many;
    thresholds: in place of the export's own; best_effort: go on where this host has no memory wall; budget: seconds
    that a query may take, of which the share that keeps it is told; show: rows whose predictions are told."""

    batch: int = 0
    queries: int = 256
    seconds: float = 0.0
    thresholds: tuple[float, ...] | None = None
    best_effort: bool = False
    budget: float | None = None
    show: int = 0


def infer(
    place: Path,
    columns: Mapping[str, np.ndarray],
    labels: np.ndarray | None,
    query: Query,
    buyer: Buyer | None,
    say: Say,
) -> dict[str, Any]:
    """Run the rows ``columns`` through the export in folder ``place``; a row of figures for people and scripts.

    Times called ``cpu`` and ``wall`` are this host's, one thread; ``virtual`` ones are modelled on the device.
    InfeasibleError when the model does not fit the device's memory, LimitError where this host has no wall.
    """
    said = _said(place)
    points = said["exits"] if "exits" in said else [said["exit"]]
    thresholds = _thresholds(said, query.thresholds)
    order = Order(place / "model.onnx", query.queries, query.seconds, query.thresholds)
    if query.batch:
        if not (place / "stage-1.onnx").is_file():
            raise ConfigError(f"{place} is not a chain; batches need one: give the folder 'chain' beside it")
        order = Order(
            place,
            batch=query.batch,
            stages=len(points),
            thresholds=thresholds,
            criterion=said["policy"]["criterion"],
        )
    elif not (place / "model.onnx").is_file():
        raise ConfigError(f"{place} is a chain of stages; it runs in batches: --batch 32")
    say(f"{place.name}: {'batches of ' + str(query.batch) if query.batch else 'single stream'}")
    found, held = _held(order, columns, buyer, query.best_effort)
    return {
        "export": str(place),
        "device": buyer.name if buyer else None,
        "memory_wall": held,
        **_figures(found, said, points, buyer, labels),
        **_within(found, said, buyer, query),
        "predictions": _predictions(found, said, points, query.show),
        "generation": "prefill" if said["task"] == "causal-lm" else None,
    }


def _said(place: Path) -> dict[str, Any]:
    """What the folder says of itself."""
    path = place / EXITS_FILE
    try:
        found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else manifest_of(place / "model.onnx")
        missing = [key for key in ("task", "cost") if key not in found]
        missing += [] if {"exit", "exits"} & found.keys() else ["exits"]
    except (ValueError, OSError, AttributeError) as error:
        raise FedgeError(f"{path} is damaged: {error}", hint="export it again") from error
    if missing:
        raise FedgeError(f"{path} is damaged: it says nothing of {', '.join(missing)}", hint="export it again")
    return found


def _thresholds(said: Mapping[str, Any], given: tuple[float, ...] | None) -> tuple[float, ...]:
    free = len(said.get("exits", [0])) - 1
    if given is not None and len(given) != free:
        raise ConfigError(f"{len(given)} thresholds for {free} exits that can be left early")
    return given if given is not None else tuple(said.get("policy", {}).get("thresholds", ()))


def _held(
    order: Order, columns: Mapping[str, np.ndarray], buyer: Buyer | None, best_effort: bool
) -> tuple[Measured, str | None]:
    """Measure behind a wall of the device's memory; and what held it."""
    if buyer is None:
        return measure(order, columns), None
    try:
        wall = walls.choose("auto")
    except LimitError:
        if not best_effort:
            raise
        return measure(order, columns), None
    try:
        return measure(order, columns, Cap(buyer.name, buyer.memory, wall)), wall.name
    finally:
        wall.close()


def _figures(
    found: Measured, said: Mapping[str, Any], points: list[int], buyer: Buyer | None, labels: np.ndarray | None
) -> dict[str, Any]:
    counts = np.bincount(found.exits, minlength=len(points)).tolist()
    figures: dict[str, Any] = {
        "queries": found.queries,
        "seconds": found.seconds,
        "load_s": found.load_s,
        "memory": found.memory,
        "exits_taken": {f"exit-{point}": count for point, count in zip(points, counts, strict=True)},
        **{f"cpu_ms_{name}": value for name, value in found.percentiles(found.cpu_s).items()},
        **{f"wall_ms_{name}": value for name, value in found.percentiles(found.wall_s).items()},
        "cpu_ms_by_exit": _by_exit(found, points),
        "accuracy": None,
    }
    rows = min(len(found.answers), len(labels)) if labels is not None else 0
    if labels is not None and rows:
        figures["accuracy"] = float((np.asarray(found.answers[:rows]) == labels[:rows]).mean())
        figures["accuracy_rows"] = rows
    if buyer is not None:
        each = _modelled(found, said, buyer)
        figures |= {f"virtual_ms_p{at}": 1000 * float(np.percentile(each, at)) for at in (50, 90, 95)}
        figures["virtual_s"] = float(each.mean())
        figures["energy_j"] = float(each.mean()) * buyer.watts
    return figures


def _modelled(found: Measured, said: Mapping[str, Any], buyer: Buyer) -> np.ndarray:
    """Seconds of each row on the device."""
    listed = said["cost"] if isinstance(said["cost"], list) else [said["cost"]]
    seconds: np.ndarray = np.asarray([Leaving(**cost).seconds(buyer.rates) for cost in listed])[found.exits]
    return seconds


def _within(found: Measured, said: Mapping[str, Any], buyer: Buyer | None, query: Query) -> dict[str, Any]:
    """The share of queries that take no longer than the budget: modelled on the device, else as elapsed here."""
    if query.budget is None:
        return {"budget_s": None, "within_budget": None}
    times = np.asarray(found.wall_s) if buyer is None else _modelled(found, said, buyer)
    return {"budget_s": query.budget, "within_budget": float((times <= query.budget).mean())}


def _predictions(found: Measured, said: Mapping[str, Any], points: list[int], show: int) -> list[dict[str, Any]]:
    """Row, label and exit of the first rows; of a language model the next token's number."""
    labels = said.get("labels") or []
    return [
        {"row": at, "label": labels[answer] if answer < len(labels) else str(answer), "exit": points[exit_]}
        for at, (answer, exit_) in enumerate(zip(found.answers[:show], found.exits[:show], strict=True))
    ]


def _by_exit(found: Measured, points: list[int]) -> dict[str, float | None]:
    """Milliseconds of processor time at p50 of the queries that left at each exit; of batches, which hold rows of
    several exits, nothing."""
    if len(found.cpu_s) < found.queries:
        return {}
    cpu, count = np.asarray(found.cpu_s), len(found.exits)
    exits = np.asarray([found.exits[at % count] for at in range(len(cpu))])
    return {
        f"exit-{point}": 1000 * float(np.median(cpu[exits == at])) if (exits == at).any() else None
        for at, point in enumerate(points)
    }
