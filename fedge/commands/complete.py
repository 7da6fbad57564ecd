"""What a shell offers after a tab: federations, runs, devices, methods. Read from names and small files alone."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import typer

from fedge.errors import FedgeError

_FOLDERS, _BYTES = 200, 1 << 16


def federations(incomplete: str) -> list[str]:
    """Federation files in the folder that is being typed and in those right below it."""
    folder = os.path.dirname(incomplete)
    found = sorted(_federations(folder or ".", depth=1))
    shown = [path if folder else path.removeprefix("./") for path in found]
    return [path for path in shown if path.startswith(incomplete)]


def _federations(folder: str, depth: int) -> Iterator[str]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return
    below = 0
    for entry in entries:
        if entry.name.startswith("."):
            continue
        path = os.path.join(folder, entry.name)
        if entry.name.endswith((".yaml", ".yml")):
            if _has_stages(path):
                yield path
        elif depth and below < _FOLDERS and entry.is_dir():
            below += 1
            yield from _federations(path, depth - 1)


def _has_stages(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            return b"\nstages:" in b"\n" + file.read(_BYTES)
    except OSError:
        return False


def runs(context: typer.Context, incomplete: str) -> list[str]:
    """Folders of runs, the newest first: those in ``--runs``, or in the folder that is being typed."""
    parent = Path(os.path.dirname(incomplete) or _parent(context))
    try:
        found = sorted((path for path in parent.iterdir() if (path / "resolved.yaml").is_file()), reverse=True)
    except OSError:
        return []
    return [str(path) for path in found if str(path).startswith(incomplete) or path.name.startswith(incomplete)]


def _first(context: typer.Context, name: str) -> str | None:
    """The first argument: it is not told apart yet while the option after it has no value."""
    return context.params.get(name) or next(iter(context.args), None)


def _parent(context: typer.Context) -> Path:
    told = context.params.get("runs")  # of `compare` these are the runs themselves
    return Path(told) if isinstance(told, (str, Path)) else Path("runs")


def live_runs(context: typer.Context, incomplete: str) -> list[str]:
    """Of those, the ones that are under way, or that a killed launcher left."""
    return [run for run in runs(context, incomplete) if Path(run, "launcher.json").is_file()]


def logs(context: typer.Context, incomplete: str) -> list[str]:
    """Whose logs a run has."""
    from fedge.run.roster import find, sources

    try:
        entry = find(_first(context, "run"), _parent(context), lambda entry: True, "run")
    except FedgeError:
        return []
    return [name for name in sources(entry.folder) if name.startswith(incomplete)]


def devices(context: typer.Context, incomplete: str) -> list[str]:
    """The devices of the federation on the command line."""
    from fedge.spec import load_federation

    try:
        spec = load_federation(_first(context, "federation") or "")
    except FedgeError:
        return []
    return [device.name for device in spec.devices if device.name.startswith(incomplete)]


def running_devices(context: typer.Context, incomplete: str) -> list[str]:
    """The devices of the run that is meant."""
    from fedge.run.roster import find

    try:
        entry = find(context.params.get("run"), _parent(context), lambda entry: entry.live, "run under way")
    except FedgeError:
        return []
    names = [device.name for device in entry.snapshot.devices] if entry.snapshot else []
    return [name for name in names if name.startswith(incomplete)]


def methods(incomplete: str) -> list[str]:
    """The keys of all methods, built or not."""
    from fedge.spec.catalogue import load

    return sorted(info.key for info in load().methods if info.key.startswith(incomplete))


def profiles(incomplete: str) -> list[str]:
    """The names of the device profiles and link classes that come with fedge."""
    from fedge.spec.device import load_links
    from fedge.spec.shipped import names

    return sorted(name for name in (*names("devices"), *load_links()) if name.startswith(incomplete))


def one_of(*words: str) -> Callable[[str], list[str]]:
    """A completer for a few words."""

    def complete(incomplete: str) -> list[str]:
        return [word for word in words if word.startswith(incomplete)]

    return complete
