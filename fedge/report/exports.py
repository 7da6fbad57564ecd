"""The tables of ``fedge export`` and ``fedge infer``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedge.report.tables import table
from fedge.units import format_bytes, format_seconds


def export_tables(exports: Sequence[Mapping[str, Any]], devices: Sequence[Mapping[str, Any]]) -> None:
    """Every file, and what each device gets."""
    lines = [
        {
            **line,
            "size": format_bytes(line["bytes"]),
            "accuracy": _four(line["accuracy"]),
            "parity": f"{line['parity_max_abs']:.2g}",
            "agreement": _four(line["agreement"]),
            "cpu": f"{line['cpu_ms']:.3g} ms" if line["cpu_ms"] is not None else None,
            "memory": format_bytes(line["memory"]) if line["memory"] is not None else None,
            "leaves": _shares(line["exits_taken"]),
            "ort": format_bytes(line["ort_bytes"]) if "ort_bytes" in line else None,
        }
        for line in exports
    ]
    columns = {
        "target": "target",
        "precision": "precision",
        "size": "size",
        "parity": "parity",
        "agreement": "same label",
        "accuracy": "accuracy",
        "cpu": "CPU p50 here",
        "memory": "memory",
        "leaves": "leaves at",
        "file": "file",
    }
    if any(line["ort"] for line in lines):
        columns["ort"] = "model.ort"
    table(lines, columns, "exports")
    if devices:
        table([_device(line) for line in devices], _DEVICE, "for devices (time and energy modelled, mean of a query)")


_DEVICE = ["device", "gets", "accuracy", "time", "energy", "memory", "grants", "thresholds", "folder"]


def _device(line: Mapping[str, Any]) -> dict[str, Any]:
    if line["refused"]:
        return {"device": line["device"], "gets": f"nothing: {line['refused']}"}
    precision = "" if line["precision"] == "fp32" else f", {line['precision']}"
    return {
        "device": line["device"],
        "gets": f"{line['target']}{precision}",
        "accuracy": _four(line["accuracy"]),
        "time": format_seconds(line["virtual_s"]),
        "energy": f"{line['energy_j']:.3g} J",
        "memory": format_bytes(line["memory"]),
        "grants": format_bytes(line["budget_memory"]),
        "thresholds": _thresholds(line["thresholds"]),
        "folder": line["folder"],
    }


def infer_table(found: Mapping[str, Any]) -> None:
    """One run of an export, a figure a line."""
    lines = [("queries", f"{found['queries']} in {format_seconds(found['seconds'])}")]
    what = "a query" if found["cpu_ms_by_exit"] else "a batch"
    lines.append((f"CPU here of {what}, one thread", _spread(found, "cpu_ms")))
    lines.append(("elapsed here", _spread(found, "wall_ms")))
    for name, value in found["cpu_ms_by_exit"].items():
        lines.append((f"CPU p50, {name}", "–" if value is None else f"{value:.3g} ms"))
    lines.append(("leaves at", _shares(found["exits_taken"]) or "–"))
    if found["accuracy"] is not None:
        lines.append(("accuracy", f"{found['accuracy']:.4f} on {found['accuracy_rows']} rows"))
    held = f", held by {found['memory_wall']}" if found["memory_wall"] else ""
    lines.append(("memory over numpy, onnxruntime and rows", format_bytes(found["memory"]) + held))
    lines.append(("load", format_seconds(found["load_s"])))
    if found["device"]:
        lines.append((f"modelled on {found['device']}", _spread(found, "virtual_ms")))
        lines.append((f"energy of a query on {found['device']}", f"{found['energy_j']:.3g} J"))
    if found["budget_s"] is not None:
        where = f"modelled on {found['device']}" if found["device"] else "elapsed here"
        lines.append((f"within {format_seconds(found['budget_s'])} ({where})", f"{100 * found['within_budget']:.1f} %"))
    if found["generation"]:
        lines.append(("a query is", "the pass over a prompt (prefill); no keys and values are kept to generate with"))
    table([{"figure": name, "value": value} for name, value in lines], ["figure", "value"], found["export"])
    if found["predictions"]:
        table(found["predictions"], ["row", "label", "exit"], "predictions")


def _spread(found: Mapping[str, Any], name: str) -> str:
    return ", ".join(f"p{at} {found[f'{name}_p{at}']:.3g} ms" for at in (50, 90, 95))


def _shares(counts: Mapping[str, int] | None) -> str | None:
    if not counts:
        return None
    total = max(1, sum(counts.values()))
    return ", ".join(f"{name.removeprefix('exit-')}: {100 * count / total:.0f} %" for name, count in counts.items())


def _thresholds(values: Sequence[float] | None) -> str | None:
    if values is None:
        return None
    return ", ".join("never" if value > 1e6 else f"{value:.3f}" for value in values)


def _four(value: float | None) -> str | None:
    return None if value is None else f"{value:.4f}"
