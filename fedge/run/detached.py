"""Runs that go on after the command that started them has ended: the foreground's side, and the run's own.

The launcher is the same command in a session of its own. Until the run is really under way it tells the foreground, by
JSON lines through a pipe, what it does and how it fails; what it and its libraries print goes to the run's log from the
moment that there is a folder.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

from fedge import errors
from fedge.errors import FedgeError, Interrupted
from fedge.report.snapshot import Snapshot
from fedge.run.folder import LOG

Say = Callable[[str], None]
#: Phases of a run in which it can still turn out that it cannot be run at all.
_BEFORE = ("preparing", "planning")


def start(words: Sequence[str], say: Say) -> dict[str, Any]:
    """Run ``fedge`` with these words, detached, and come back when the run is under way, with its folder and its pid.

    words: without the program's name; the option that hands over the pipe is added. Raises what the run raises before
    that point; after Ctrl-C the run that was to be started is ended.
    """
    ours, theirs = os.pipe()
    with tempfile.TemporaryFile() as stray, os.fdopen(ours, "rb") as told:
        child = subprocess.Popen(
            [sys.executable, "-m", "fedge", *words, f"--told-to={theirs}"],
            pass_fds=(theirs,),
            stdin=subprocess.DEVNULL,
            stdout=stray,
            stderr=stray,
            start_new_session=True,
        )
        os.close(theirs)
        try:
            folder = _listen(map(json.loads, told), say)
            if folder is None:
                _fail(child.wait(), stray)
        except KeyboardInterrupt:
            child.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                child.wait(timeout=1.0)
            if child.poll() is None:  # it would end the round before; there is none yet that is worth it
                child.send_signal(signal.SIGTERM)
            raise
    return {"run": folder, "status": "running", "pid": child.pid}


def _listen(told: Any, say: Say) -> str | None:
    """Until the run is under way, its folder; None when it ended without a word. Raises what it failed by."""
    folder = None
    for word in told:
        if "said" in word:
            say(word["said"])
        elif "folder" in word:
            folder = str(word["folder"])
        elif "under_way" in word:
            return folder
        else:
            _raise(word["failed"], word["message"], word["hint"])
    return None


def _raise(kind: str, message: str, hint: str | None) -> NoReturn:
    found = getattr(errors, kind, FedgeError)
    if found is errors.ConfigError:
        raise errors.ConfigError([errors.Problem(line) for line in message.splitlines()])
    raise found(message, hint=hint)


def _fail(code: int, stray: Any) -> NoReturn:
    stray.seek(0)
    lines = stray.read().decode(errors="replace").strip().splitlines()
    why = f": {lines[-1].removeprefix('fedge: ')}" if lines else ""
    raise FedgeError(f"the run ended with code {code} before it was under way{why}")


class Herald:
    """The run's own end: ``say`` and ``see`` are the launcher's; being left by an error tells that one.

    The foreground may be gone at any time; that changes nothing.
    """

    def __init__(self, pipe: int):
        os.set_inheritable(pipe, False)
        self._pipe: int | None = pipe
        self._folder: str | None = None

    def __enter__(self) -> Herald:
        # a shell that puts commands into the background has them ignore Ctrl-C; `down` speaks by that signal
        signal.signal(signal.SIGINT, signal.default_int_handler)
        return self

    def say(self, line: str) -> None:
        """Tell a line of progress, as long as somebody listens; the run's log has it in any case."""
        self._tell({"said": str(line)})

    def see(self, snapshot: Snapshot) -> None:
        """Tell the folder as soon as there is one, and that the run is under way as soon as it is."""
        if self._folder is None:
            self._folder = snapshot.run
            _print_to(Path(snapshot.run, LOG))
            self._tell({"folder": snapshot.run})
        if snapshot.phase not in (*_BEFORE, "ended"):
            self._tell({"under_way": True})
            self._close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, FedgeError):
            hint = None if isinstance(error, errors.ConfigError) else error.hint
            self._tell({"failed": type(error).__name__, "message": error.message, "hint": hint})
        elif isinstance(error, KeyboardInterrupt):
            self._tell({"failed": Interrupted.__name__, "message": "interrupted", "hint": None})
        elif error is None:
            self._tell({"under_way": True})  # nothing was left to be done
        self._close()

    def _tell(self, word: dict[str, Any]) -> None:
        if self._pipe is None:
            return
        data = (json.dumps(word) + "\n").encode()
        try:
            while data:
                data = data[os.write(self._pipe, data) :]
        except BrokenPipeError:
            self._close()

    def _close(self) -> None:
        if self._pipe is not None:
            os.close(self._pipe)
            self._pipe = None


def _print_to(log: Path) -> None:
    """Send everything that this process prints to a file, whoever prints it."""
    sys.stdout.flush()
    sys.stderr.flush()
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)
