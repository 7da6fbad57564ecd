"""The tables that end a command: of a run, of a plan, of a profile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedge.report.tables import table
from fedge.report.words import amount, metric, of_devices, with_variant
from fedge.units import format_bitrate, format_byterate, format_bytes, format_flops, format_joules, format_seconds

#: So many devices that fell behind are told of by name.
_BEHIND = 8


def closing_tables(summary: Mapping[str, Any]) -> None:
    """What a run came to: stages, devices, baselines, exports, and where its folder lies."""
    table(
        [
            {
                "stage": stage["stage"],
                "method": stage["method"],
                "metric": metric(stage["metrics"]),
                "on devices": of_devices(stage["metrics"], "device"),
                "own models": of_devices(stage["metrics"], "personal"),
                "emulated": format_seconds(stage["virtual_s"]),
                "up": format_bytes(stage["bytes_up"]),
                "down": format_bytes(stage["bytes_down"]),
                "peak": format_bytes(stage["peak_memory"]),
                "energy": f"{stage['energy_j']:.4g} J",
                "lost": stage["lost"],
            }
            for stage in summary["stages"]
        ],
        ["stage", "method", "metric", *_told(summary), "emulated", "up", "down", "peak", "energy", "lost"],
        "stages",
    )
    if summary["devices"]:
        table(
            [_device(line) for line in summary["devices"]],
            ["device", "profile", "trains", *_judged(summary["devices"]), "peak", "budget", "lost"],
            "devices, last stage",
        )
    if summary["baselines"]:
        lines = [{**line, "metric": metric(line)} for line in summary["baselines"]]
        table(lines, {"name": "baseline", "metric": "metric", "detail": "what it is"}, "beside it, on the same split")
    if summary["exports"]:
        lines = [{**line, "size": format_bytes(line["bytes"])} for line in summary["exports"]]
        columns = ["target", "precision", "size", "accuracy", "parity_max_abs", "file"]
        table(lines, columns, "exports")
    for line in behind(summary):
        print(line)
    for line in summary["degraded"]:
        print(f"not enforced: {line}")
    print(f"run: {summary['run']}")


def behind(summary: Mapping[str, Any]) -> list[str]:
    """What there is to say of the real clock: how much slower it ran, and which devices fell behind it."""
    slow = summary.get("slowdown", 1)
    told = [f"real clock: {slow:.3g} times slower than the devices"] if slow != 1 else []
    for stage in summary.get("stages", ()):
        seconds = {name: s for name, s in stage.get("behind", {}).items() if isinstance(s, (int, float))}
        late = sorted(seconds.items(), key=lambda pair: (-pair[1], pair[0]))
        if late:
            names = ", ".join(f"{name} {format_seconds(spent)}" for name, spent in late[:_BEHIND])
            more = f" and {len(late) - _BEHIND} more" if len(late) > _BEHIND else ""
            told.append(f"fell behind the real clock in {stage['stage']}: {names}{more}")
    return told


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
    for (device, stage), row in sorted({(r["device"], r["stage"]): r for r in rows if r["left_out"]}.items()):
        could = f"; {row['could']}" if row["could"] else ""
        print(f"{device} can't afford anything in stage {stage}: {row['left_out']}{could}")
    run = sorted({with_variant(row["method"], row["variant"]) for row in rows if row["measured"]})
    if run:
        print(f"can't be traced, so really run once: {', '.join(run)}")
    guessed = {row["device"] for row in rows if row.get("rates") == "class default"}
    if guessed:
        count = len(guessed)
        print(f"times of {count} device{'s' * (count > 1)} rest on rates of the class (`fedge devices PROFILE`)")
    for line in dict.fromkeys(line for row in rows for line in row["assumed"]):
        print(f"assumed: {line}")


def budget_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """The least of a device with which each method still makes its deadline."""
    table(
        [
            {
                "device": row["device"],
                "stage": row["stage"],
                "method": row["method"],
                "memory": "never" if row["memory"] is None else format_bytes(row["memory"]),
                "with": _variant(row["memory_variant"]),
                **_least(row),
                "deadline": "none" if row["deadline"] is None else format_seconds(row["deadline"]),
            }
            for row in rows
        ],
        ["device", "stage", "method", "memory", "with", "down", "up", "compute", "traffic", "deadline"],
        "the least that is in time, the rest as the device has it",
    )
    if any(row["deadline"] is None for row in rows):
        print("without a deadline any link and any processor will do")


def _least(row: Mapping[str, Any]) -> dict[str, str]:
    if row["deadline"] is None:
        return dict.fromkeys(("down", "up", "compute", "traffic"), "any")
    lacking = "never" if row["held"] else "too little memory"
    shown = {
        "down": (row["down"], format_bitrate),
        "up": (row["up"], format_bitrate),
        "compute": (row["compute"], format_flops),
        "traffic": (row["memory_bandwidth"], format_byterate),
    }
    return {name: lacking if value is None else show(value) for name, (value, show) in shown.items()}


def _variant(variant: Mapping[str, Any] | None) -> str:
    return ", ".join(f"{name}={value}" for name, value in variant.items()) if variant else ""


def profile_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """A measured round beside what was predicted."""
    columns = ["device", "stage", "method", "peak", "predicted", "off", "time", "expected", "up", "down"]
    table([_measured(row) for row in rows], columns, "one round, measured beside predicted")
    if not rows:
        return
    print()
    energies = [f"{part} energy" for part in _ENERGY]
    phases = ["download", "compute", "upload"]
    table(
        [_foretold(row) for row in rows],
        ["device", "stage", *_PARTS, "arithmetic", "traffic", *phases, "energy", *energies, "rates"],
        "foretold: memory by part, work, seconds by phase, energy by part; energy measured (foretold)",
    )
    for row in rows:
        if row["limit"]:
            print(f"{row['device']} breaks {row['limit']} in {row['stage']}")
    print(f"run: {rows[0]['run']} (trace.json opens in Perfetto: a track a device)")


def _measured(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
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


def _foretold(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "device": row["device"],
        "stage": row["stage"],
        **{name: format_bytes(row["parts"].get(name, 0)) for name in _PARTS},
        "arithmetic": f"{row['flops'] / 1e9:.3g} GFLOP",
        "traffic": format_bytes(row["traffic"]),
        **{name: format_seconds(row["phases"][name]) for name in ("download", "compute", "upload")},
        "energy": f"{format_joules(row['measured_energy_j'])} ({format_joules(row['energy_j'])})",
        **{f"{part} energy": format_joules(joules) for part, joules in row["energy_parts"].items()},
        "rates": f"{row['stack']}, {row['rates']}",
    }


#: Parts of a device's energy and of its memory, as they are shown.
_ENERGY = ("idle", "compute", "radio")
_PARTS = ("shared", "weights", "gradients", "optimizer", "activations", "messages", "process")


def _told(summary: Mapping[str, Any]) -> list[str]:
    """The columns of devices' figures that some stage has."""
    columns = {"on devices": "device", "own models": "personal"}
    return [name for name, whose in columns.items() if any(of_devices(s["metrics"], whose) for s in summary["stages"])]


def _judged(devices: Sequence[Mapping[str, Any]]) -> list[str]:
    columns = {"accuracy": "accuracy", "own model": "personal_accuracy"}
    return [name for name, key in columns.items() if any(line.get(key) is not None for line in devices)]


def _device(line: Mapping[str, Any]) -> dict[str, Any]:
    lost = line["lost"]
    return {
        "device": line["name"],
        "profile": line["profile"],
        "trains": with_variant(line["method"], line["variant"]) if line["method"] else None,
        "accuracy": _four(line.get("accuracy")),
        "own model": _four(line.get("personal_accuracy")),
        "peak": format_bytes(line["peak_memory"]),
        "budget": format_bytes(line["budget_memory"]),
        "lost": f"{lost['cause']} in round {lost['round'] + 1}" if lost else None,
    }


def _four(value: float | None) -> str | None:
    return None if value is None else amount("", value)
