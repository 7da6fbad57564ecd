"""Stopping runs from another process: asked, then told, then killed, and what a killed launcher left is cleared."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from fedge.emulation import process
from fedge.errors import FedgeError
from fedge.run.folder import LAUNCHER, RunFolder
from fedge.run.limits import clear

Say = Callable[[str], None]
#: Seconds that a launcher has to end its devices when it was told to, and to be gone when it was killed.
_TOLD, _KILLED = 15.0, 5.0
_PAUSE = 0.05


@dataclass(frozen=True)
class Launcher:
    """The process that runs a run, as its folder records it. A pid alone may be somebody else's by now."""

    pid: int
    started: int

    @property
    def alive(self) -> bool:
        return process.alive(self.pid, self.started)

    def send(self, number: int) -> None:
        """Send it a signal, if it is still that process. Raises FedgeError when it is another user's."""
        if not self.alive:
            return
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            pass
        except PermissionError as error:
            raise FedgeError(
                f"process {self.pid} belongs to another user", hint="only that user can stop it"
            ) from error


def launcher_of(folder: RunFolder) -> Launcher | None:
    """The launcher that a run's folder records, alive or not; None when it ended in order."""
    try:
        left = json.loads(folder.file(LAUNCHER).read_text())
        return Launcher(int(left["pid"]), int(left["started"]))
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return None


def down(folders: Sequence[RunFolder], patience: float, say: Say) -> list[dict[str, Any]]:
    """End these runs, all at once, and clear what they left; a row for each says how.

    Every live launcher is asked as by Ctrl-C: it ends the round and keeps a checkpoint. After ``patience`` seconds the
    rest are told to end at once, and at last killed; a run can be resumed in any case. how: 'ended', 'terminated',
    'killed', or 'cleared' when its launcher was gone already.
    """
    launchers = [launcher_of(folder) for folder in folders]
    how = ["ended" if launcher is not None and launcher.alive else "cleared" for launcher in launchers]
    for step, number, seconds in (
        ("ended", signal.SIGINT, patience),
        ("terminated", signal.SIGTERM, _TOLD),
        ("killed", signal.SIGKILL, _KILLED),
    ):
        for at, launcher in enumerate(launchers):
            if launcher is not None and launcher.alive:
                how[at] = step
                say(f"{folders[at].path}: {_WORDS[step]}")
                launcher.send(number)
        _await([launcher for launcher in launchers if launcher is not None], seconds)
    return [
        _closed(folder, launcher, word, say) for folder, launcher, word in zip(folders, launchers, how, strict=True)
    ]


_WORDS = {
    "ended": "asked to end the round and keep a checkpoint",
    "terminated": "told to end at once",
    "killed": "killed",
}


def _await(launchers: Sequence[Launcher], seconds: float) -> None:
    end = time.monotonic() + seconds
    while any(launcher.alive for launcher in launchers) and time.monotonic() < end:
        time.sleep(_PAUSE)


def _closed(folder: RunFolder, launcher: Launcher | None, how: str, say: Say) -> dict[str, Any]:
    if launcher is not None and launcher.alive:
        raise FedgeError(f"{folder.path}: process {launcher.pid} can't be killed", hint="it may hang in the kernel")
    clear(folder, say)
    summary: dict[str, Any] = {}
    with suppress(OSError, ValueError):
        summary = folder.read_json("summary.json")
    if summary.get("status") == "running":  # its launcher can't say any more how it ended
        summary["status"] = "interrupted"
        folder.write_json("summary.json", summary)
    return {"run": str(folder.path), "how": how, "status": summary.get("status", "interrupted")}
