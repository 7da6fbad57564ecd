"""The launcher's end of the zygote: starting it, talking to it, and noticing that it is gone."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from fedge.errors import FedgeError
from fedge.run.folder import RunFolder
from fedge.spec.federation import FederationSpec

#: One thread for every maths library: a child forked after a parallel region hangs for ever.
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1")


def environment() -> dict[str, str]:
    """What the zygote's environment has to say beside this process's own."""
    return {
        **_ONE_THREAD,
        "TOKENIZERS_PARALLELISM": "false",
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
        "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONWARNINGS": "ignore",
    }


def begin(commands: int, events: int, log: Path) -> subprocess.Popen[bytes]:
    """Start a zygote that reads from one descriptor and writes to the other, and logs to a file.

    A program that has imported everything already may put a function in this one's place that forks.
    """
    with log.open("ab") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "fedge.run.zygote", str(commands), str(events), str(os.getpid())],
            pass_fds=(commands, events),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env={**os.environ, **environment()},
            start_new_session=True,
        )


class ZygoteGone(FedgeError):
    """The zygote has died, or was killed because it had hung, before it had done what it was told."""


class Nursery:
    """A running zygote. ``events`` is the descriptor on which its events arrive; ``loaded`` is its launcher's to set.

    One that is silent for ``patience`` seconds while it is listened to, although it was asked for a sign of life, is
    taken for hung (or frozen by a signal) and killed.
    """

    def __init__(self, log: Path, patience: float = 30.0):
        self._log = log
        self._patience = patience
        commands_in, commands = os.pipe()
        self.events, events_out = os.pipe()
        self.process = begin(commands_in, events_out, log)
        os.close(commands_in)
        os.close(events_out)
        os.set_blocking(self.events, False)
        os.set_blocking(commands, False)
        self._commands = commands
        self._rest = b""
        self._heard = self._listened = time.monotonic()
        self._asked = False
        self.alive = True
        self.loaded = False

    @classmethod
    def of(cls, folder: RunFolder, spec: FederationSpec) -> Nursery:
        """A run's zygote, which logs in its folder."""
        return cls(folder.file("devices", "zygote.log"), patience=spec.emulation.heartbeat)

    def command(self, do: str, **details: Any) -> None:
        """Send a command; nothing happens when the zygote is gone, which ``read`` then tells."""
        data = (json.dumps({"do": do, **details}) + "\n").encode()
        while data and self.alive:
            try:
                data = data[os.write(self._commands, data) :]
            except BlockingIOError:  # it may itself be waiting for its events to be taken
                select.select([self.events], [self._commands], [], 0.5)
                self._take()
                self._watch(self._patience)
            except BrokenPipeError:
                self.alive = False

    def read(self, patience: float | None = None) -> list[dict[str, Any]]:
        """The events that have arrived; sets ``alive`` to False when the zygote is gone."""
        self._take()
        self._watch(self._patience if patience is None else patience)
        *lines, self._rest = self._rest.split(b"\n")
        return [json.loads(line) for line in lines]

    def _take(self) -> None:
        while self.alive:
            try:
                data = os.read(self.events, 1 << 20)
            except BlockingIOError:
                return
            if not data:
                self.alive = False
            self._rest += data
            self._heard, self._asked = time.monotonic(), False

    def _watch(self, patience: float) -> None:
        """Ask a silent zygote for a sign of life, and kill one that gives none. While nobody listened, none was due."""
        now = time.monotonic()
        away, self._listened = now - self._listened, now
        if away > 1.0:
            self._heard = max(self._heard, now - patience / 2)
        silent = now - self._heard
        if self.alive and (silent > patience or (silent > self._patience and self._frozen())):
            self.process.kill()
        elif self.alive and silent > patience / 3 and not self._asked:
            self._asked = True
            self.command("ping")

    def _frozen(self) -> bool:
        """Whether a signal has stopped it: then it does not help to wait, whatever it was told to do."""
        try:
            return psutil.Process(self.process.pid).status() == psutil.STATUS_STOPPED
        except psutil.Error:
            return False

    def await_ready(self, of: str, seconds: float = 300.0) -> None:
        """Wait until the zygote has done something; one that needs longer is killed.

        Raises FedgeError when it failed, ZygoteGone when it is gone.
        """
        self._heard = time.monotonic()
        while True:
            select.select([self.events], [], [], 0.5)
            for event in self.read(patience=seconds):
                if event["is"] == "failed":
                    raise FedgeError(f"the device process could not prepare: {event['message']}")
                if event["is"] == "ready" and event["of"] == of:
                    return
            if not self.alive:
                raise ZygoteGone(f"the zygote died while preparing; see {self._log}")

    def close(self) -> None:
        """End the zygote, and with it every device that is left."""
        self.command("quit")
        for end in (self._commands, self.events):
            os.close(end)
        try:
            self.process.wait(timeout=2.0)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
