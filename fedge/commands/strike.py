"""Faults by hand, on a run that is under way: ``kill``, ``pause``, ``unpause``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from fedge.commands import complete
from fedge.commands.parameters import Json, print_json
from fedge.commands.runs import In

Device = Annotated[
    str, typer.Argument(metavar="DEVICE", help="A device of the run.", autocompletion=complete.running_devices)
]
OfRun = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--run",
        metavar="RUN",
        help="A run's folder, or its name in --runs; the newest under way by default.",
        autocompletion=complete.live_runs,
    ),
]
Patience = Annotated[
    float, typer.Option("--timeout", "-t", min=0, metavar="SECONDS", help="How long to wait for the run's answer.")
]


def kill(
    device: Device, run: OfRun = None, patience: Patience = 20.0, runs: In = Path("runs"), as_json: Json = False
) -> None:
    """Kill a device's process with signal 9. The round goes on without the device; it is back in its next one.

    Example: fedge kill phone-00

    Example: fedge kill pi-03 --run 20260131-120000-quickstart
    """
    _order("kill", device, run, patience, runs, as_json)


def pause(
    device: Device, run: OfRun = None, patience: Patience = 20.0, runs: In = Path("runs"), as_json: Json = False
) -> None:
    """Hold a device's process still. Rounds go on without the device until `fedge unpause`, or a resume.

    Example: fedge pause phone-00
    """
    _order("pause", device, run, patience, runs, as_json)


def unpause(
    device: Device, run: OfRun = None, patience: Patience = 20.0, runs: In = Path("runs"), as_json: Json = False
) -> None:
    """Let a paused device go on; it takes part again from the next round.

    Example: fedge unpause phone-00
    """
    _order("unpause", device, run, patience, runs, as_json)


def _order(word: str, device: str, run: str | None, patience: float, runs: Path, as_json: bool) -> None:
    from fedge.run.orders import give
    from fedge.run.roster import find, require_live

    entry = find(run, runs, lambda entry: entry.live, "run under way")
    snapshot = require_live(entry)
    done = give(entry.folder, word, device, [one.name for one in snapshot.devices], patience)
    row = {"run": str(entry.folder.path), "device": device, "done": done, "stage": snapshot.stage}
    print_json({word: [{**row, "round": snapshot.round}]}) if as_json else print(f"{device}: {done}")
