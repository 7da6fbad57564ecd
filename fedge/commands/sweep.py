"""``sweep``: a grid of runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fedge.commands.parameters import BestEffort, Federation, Json, Runs, Set, Slots, print_json, progress


def sweep(
    federation: Federation,
    over: Annotated[
        list[str],
        typer.Option(
            "--over", metavar="KEY=VALUES", help="A key and its values: seed=0..4, or a.b=x,y. Can be repeated."
        ),
    ],
    set: Set = None,
    inline: Annotated[
        bool, typer.Option("--inline", help="No processes and no walls: the same bits, cheaper.")
    ] = False,
    slots: Slots = None,
    best_effort: BestEffort = False,
    runs: Runs = Path("runs"),
    as_json: Json = False,
) -> None:
    """Run a federation for every combination of values; the mean ± deviation over seeds for each cell.

    Where devices are tested on rows of their own, their mean and the worst one's figure stand beside the common one.
    What was done before is not done again: the same command goes on after an interruption, and takes further values.

    Example: fedge sweep federation.yaml --over seed=0..4 --over stages.customize.method=lora,head
    """
    from fedge.run.launcher import Options
    from fedge.run.sweep import read_axis
    from fedge.run.sweep import sweep as run

    options = Options(runs=runs, slots=slots, inline=inline, best_effort=best_effort)
    rows = run(federation, [read_axis(text) for text in over], set or (), options, progress)
    print_json({"sweep": rows}) if as_json else _table(rows)


def _table(rows: list[dict[str, Any]]) -> None:
    from fedge.report.tables import table
    from fedge.report.words import of_devices
    from fedge.units import format_bytes, format_seconds

    shown = []
    for row in rows:
        name = next((name for name in ("accuracy", "perplexity") if name in row), None)
        deviation = f" ± {row[f'{name}_sd']:.4f}" if name and row[f"{name}_sd"] is not None else ""
        shown.append(
            {
                **row["cell"],
                "stage": row["stage"],
                "method": row["method"],
                "metric": f"{name} {row[name]:.4f}{deviation}" if name else None,
                "on devices": of_devices(row, "device"),
                "own models": of_devices(row, "personal"),
                "n": row["n"],
                "emulated": format_seconds(row["virtual_s"]),
                "up": format_bytes(int(row["bytes_up"])),
                "down": format_bytes(int(row["bytes_down"])),
            }
        )
    keys = list(rows[0]["cell"]) if rows else []
    own = [name for name in ("on devices", "own models") if any(row[name] for row in shown)]
    table(shown, [*keys, "stage", "method", "metric", *own, "n", "emulated", "up", "down"], "sweep")
