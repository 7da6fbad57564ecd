"""The tables that end a command: of a run, of a plan, of a profile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedge.report.tables import table
from fedge.report.words import metric, with_variant
from fedge.units import format_bytes, format_seconds


def closing_tables(summary: Mapping[str, Any]) -> None:
    """What a run came to: stages, devices, baselines, exports, and where its folder lies."""
    table(
        [
            {
                "stage": stage["stage"],
                "method": stage["method"],
                "metric": metric(stage["metrics"]),
                "emulated": format_seconds(stage["virtual_s"]),
                "up": format_bytes(stage["bytes_up"]),
                "down": format_bytes(stage["bytes_down"]),
                "peak": format_bytes(stage["peak_memory"]),
                "energy": f"{stage['energy_j']:.4g} J",
                "lost": stage["lost"],
            }
            for stage in summary["stages"]
        ],
        ["stage", "method", "metric", "emulated", "up", "down", "peak", "energy", "lost"],
        "stages",
    )
    if summary["devices"]:
        table(
            [_device(line) for line in summary["devices"]],
            ["device", "profile", "trains", "peak", "budget", "lost"],
            "devices, last stage",
        )
    if summary["baselines"]:
        lines = [{**line, "metric": metric(line)} for line in summary["baselines"]]
        table(lines, {"name": "baseline", "metric": "metric", "detail": "what it is"}, "beside it, on the same split")
    if summary["exports"]:
        lines = [{**line, "size": format_bytes(line["bytes"])} for line in summary["exports"]]
        columns = ["target", "precision", "size", "accuracy", "parity_max_abs", "file"]
        table(lines, columns, "exports")
    for line in summary["degraded"]:
        print(f"not enforced: {line}")
    print(f"run: {summary['run']}")


def plan_table(rows: Sequence[Mapping[str, Any]], *, all_offers: bool) -> None:
    """A plan: what each device picks, or every offer."""
    shown = [
        {
            "device": row["device"],
            "stage": row["stage"],
            "method": with_variant(row["method"], row["variant"]),
            "picked": "yes" if row["chosen"] else "",
            "peak": format_bytes(row["peak_memory"]),
            "budget": format_bytes(row["budget_memory"]),
            "time": format_seconds(row["virtual_s"]),
            "up": format_bytes(row["bytes_up"]),
            "down": format_bytes(row["bytes_down"]),
            "energy": f"{row['energy_j']:.3g} J",
            "limit": row["limit"],
        }
        for row in rows
        if all_offers or row["chosen"]
    ]
    columns = ["device", "stage", "method", "peak", "budget", "time", "up", "down", "energy"]
    table(shown, [*columns[:3], "picked", *columns[3:], "limit"] if all_offers else columns, "a round")
    for device, stage in sorted({(row["device"], row["stage"]) for row in rows}):
        if not any(row["chosen"] for row in rows if (row["device"], row["stage"]) == (device, stage)):
            print(f"{device} can't afford anything in stage {stage}")


def profile_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """A measured round beside what was predicted."""
    table(
        [
            {
                "device": row["device"],
                "stage": row["stage"],
                "method": with_variant(row["method"], row["variant"]),
                "peak": format_bytes(row["measured_peak_memory"]),
                "predicted": format_bytes(row["peak_memory"]),
                "off": f"{100 * (row['peak_memory'] / max(1, row['measured_peak_memory']) - 1):+.1f} %",
                "time": format_seconds(row["measured_virtual_s"]),
                "expected": format_seconds(row["virtual_s"]),
                "up": format_bytes(row["measured_bytes_up"]),
                "down": format_bytes(row["measured_bytes_down"]),
            }
            for row in rows
        ],
        ["device", "stage", "method", "peak", "predicted", "off", "time", "expected", "up", "down"],
        "one round, measured beside predicted",
    )
    if rows:
        print(f"run: {rows[0]['run']}")


def _device(line: Mapping[str, Any]) -> dict[str, Any]:
    lost = line["lost"]
    return {
        "device": line["name"],
        "profile": line["profile"],
        "trains": with_variant(line["method"], line["variant"]) if line["method"] else None,
        "peak": format_bytes(line["peak_memory"]),
        "budget": format_bytes(line["budget_memory"]),
        "lost": f"{lost['cause']} in round {lost['round'] + 1}" if lost else None,
    }
