"""The runs of a folder as they are now: which are under way, and who of them is whose. Reads files; no torch."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedge.errors import FedgeError, MissingError, nearest
from fedge.report.snapshot import Snapshot
from fedge.run.down import Launcher, launcher_of
from fedge.run.folder import LOG, PROGRESS, RunFolder


@dataclass(frozen=True)
class Entry:
    """A run's folder, looked at once.

    status: what ``summary.json`` says, but 'running' exactly while the launcher that the folder records is alive, and
    'killed' when it is gone without having said how it ended. launcher: None when the folder records none any more.
    """

    folder: RunFolder
    status: str
    launcher: Launcher | None
    snapshot: Snapshot | None

    @property
    def live(self) -> bool:
        return self.status == "running"

    @property
    def endable(self) -> bool:
        """Whether ``down`` has something to do: a launcher to end, or what a killed one left."""
        return self.status in ("running", "killed")

    @property
    def elapsed_s(self) -> float | None:
        """Seconds spent on the run; up to now while it is under way, and as far as is known when it was killed."""
        if self.snapshot is None:
            return None
        since = max(0.0, time.time() - self.snapshot.at) if self.live else 0.0
        return round(self.snapshot.elapsed_s + since, 3)

    def row(self) -> dict[str, Any]:
        """It as ``ps`` lists it. lost: the devices that are lost for the round under way, or for good."""
        at = self.snapshot
        return {
            "run": str(self.folder.path),
            "federation": at.federation if at else None,
            "status": self.status,
            "phase": at.phase if at else None,
            "stage": at.stage if at else None,
            "round": at.round if at and at.stage else None,
            "rounds": at.rounds if at and at.stage else None,
            "devices": len(at.devices) if at and at.stage else None,
            "lost": at.count("lost") if at and at.stage else None,
            "wall_s": self.elapsed_s,
            "pid": self.launcher.pid if self.launcher is not None and self.live else None,
        }


def look(folder: RunFolder) -> Entry:
    """How a run stands."""
    launcher = launcher_of(folder)
    snapshot = _snapshot(folder)
    if launcher is not None and launcher.alive:
        return Entry(folder, "running", launcher, snapshot)
    # read after its launcher was seen to be gone: what it said last is there by then
    said = _json(folder.file("summary.json")).get("status")
    if launcher is not None or said == "running":
        return Entry(folder, "killed", launcher, snapshot)
    return Entry(folder, str(said or "interrupted"), None, snapshot)


def entries(parent: Path) -> list[Entry]:
    """The runs in a folder, the newest first; none when there is no such folder."""
    try:
        names = sorted((path.name for path in parent.iterdir()), reverse=True)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise MissingError(f"{parent} can't be read: {error.strerror}") from error
    return [look(RunFolder(parent / name)) for name in names if (parent / name / "resolved.yaml").is_file()]


def find(run: str | None, parent: Path, fits: Callable[[Entry], bool], what: str) -> Entry:
    """The run that was named, by its path or by its folder's name in ``parent``; else the newest that ``fits``.

    Raises MissingError when there is none; ``what`` says in words what was looked for. A run that was named is given
    back whether it fits or not.
    """
    if run is None:
        found = next((entry for entry in entries(parent) if fits(entry)), None)
        if found is None:
            raise MissingError(f"there is no {what} in {parent}", hint="fedge ps --all lists what is there")
        return found
    for path in (Path(run), parent / run):
        if (path / "resolved.yaml").is_file():
            return look(RunFolder(path))
    here = [entry.folder.path.name for entry in entries(parent)]
    raise MissingError(f"{run} is not a run's folder, nor the name of one in {parent}", hint=nearest(run, here))


def require_live(entry: Entry) -> Snapshot:
    """How a live run stands. Raises FedgeError when it is not under way, or has not said anything yet."""
    if not entry.live:
        raise FedgeError(f"{entry.folder.path} is not under way: {entry.status}", hint="fedge ps lists those that are")
    if entry.snapshot is None:
        raise FedgeError(f"{entry.folder.path} has only just begun", hint="ask again")
    return entry.snapshot


def sources(folder: RunFolder, device: str | None = None) -> dict[str, Path]:
    """The logs of a run by whose they are: the launcher's, the zygote's, the devices'; or one of them.

    Raises MissingError when there is none of the name that was asked for.
    """
    found = {"launcher": folder.file(LOG)} if folder.file(LOG).is_file() else {}
    found |= {path.stem: path for path in sorted(folder.file("devices").glob("*.log"))}
    if device is None:
        return found
    if device not in found:
        raise MissingError(f"{folder.path} has no log of '{device}'", hint=nearest(device, found))
    return {device: found[device]}


def _snapshot(folder: RunFolder) -> Snapshot | None:
    try:
        return Snapshot.from_json(_json(folder.file(PROGRESS)))
    except TypeError:  # it isn't there, or another version wrote it
        return None


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
