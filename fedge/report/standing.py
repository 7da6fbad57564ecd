"""Runs as ``ps`` lists them, and the devices of one as ``stats`` does."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedge.report.snapshot import DeviceAt, Snapshot
from fedge.report.tables import table
from fedge.report.words import plural, with_variant
from fedge.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from rich.text import Text


def ps_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Runs, a line each; by the names of their folders."""
    if not rows:
        print("no runs")
        return
    table(
        [
            {
                **row,
                "run": Path(row["run"]).name,
                "stage": row["stage"] or (row["phase"] if row["status"] == "running" else None),
                "round": f"{row['round']}/{row['rounds']}" if row["round"] is not None else None,
                "elapsed": format_seconds(row["wall_s"]) if row["wall_s"] is not None else None,
            }
            for row in rows
        ],
        ["run", "federation", "status", "stage", "round", "devices", "lost", "elapsed", "pid"],
    )


def stats_rows(snapshot: Snapshot) -> list[dict[str, Any]]:
    """Devices as flat objects: bytes for sizes, ``memory`` None where no process of the device is there."""
    return [dict(vars(device)) for device in snapshot.devices]


def stats_table(snapshot: Snapshot) -> None:
    """The devices, a row each."""
    print(_where(snapshot))
    if snapshot.devices:
        table([_row(device) for device in snapshot.devices], _COLUMNS)


def stats_lines(snapshot: Snapshot, columns: int, rows: int) -> list[Text]:
    """The same for a terminal of a size: what finds no room is counted, not shown."""
    from rich.text import Text

    from fedge.report.picture import shortened

    out = io.StringIO()
    if snapshot.devices:
        table([_row(device) for device in snapshot.devices], _COLUMNS, file=out)
    lines = [_where(snapshot), *out.getvalue().splitlines()]
    if len(lines) > rows:
        hidden = len(lines) - max(1, rows - 1)
        lines = [*lines[: max(1, rows - 1)], f"… and {plural(hidden, 'device')} more: --no-stream shows all"]
    return [Text(shortened(line, columns), no_wrap=True) for line in lines[:rows]]


#: The method comes last, since it is what may be shortened on a narrow terminal.
_COLUMNS = ["device", "state", "memory", "budget", "up", "down", "rounds", "losses", "method"]


def _where(snapshot: Snapshot) -> str:
    if snapshot.stage is None:
        return f"{snapshot.run}: {snapshot.phase}"
    return f"{snapshot.run}: {snapshot.stage} with {snapshot.method}, round {snapshot.round} of {snapshot.rounds}"


def _row(device: DeviceAt) -> dict[str, Any]:
    return {
        "device": device.name,
        "state": device.state,
        "memory": format_bytes(device.memory) if device.memory is not None else None,
        "budget": format_bytes(device.budget_memory),
        "up": format_bytes(device.bytes_up),
        "down": format_bytes(device.bytes_down),
        "rounds": device.rounds,
        "losses": device.losses,
        "method": with_variant(device.method, device.variant) if device.method else None,
    }
