"""A process that has imported all that a run imports, and forks launchers: a run then costs what it computes.

Run as ``python -m tools.chaos.warm FD`` with one end of a socket. It reads one JSON order a line, ``{"words", "out",
"log", "environment"}``, forks a process that does what ``fedge WORDS`` does, and writes ``{"pid"}``; whenever a process
below it ends that it has to bury, it writes ``{"ended", "status"}``. What a launcher forks in its turn is forked too:
``fedge.run.nursery.begin`` is replaced. Orphans come to it, so that whoever outlives a launcher is found below it.

Devices obey three signals more: their lines are cut for a short while, cut for longer than a heartbeat, or spoil the
next frame that has a body.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from fedge.errors import FedgeError
from tools.chaos.victims import CUT, CUT_LONG, SPOIL

#: Seconds for which a line is cut: less than a heartbeat of the campaign's federations, and more.
SHORT, LONG = 1.0, 8.0
_PR_SET_CHILD_SUBREAPER = 36


class Forked:
    """A forked child of this process, as much of ``subprocess.Popen`` as the launcher uses of it."""

    def __init__(self, pid: int):
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Its exit code, as Popen tells it; None while it lives."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code; TimeoutExpired when it lives on."""
        end = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if end is not None and time.monotonic() > end:
                raise subprocess.TimeoutExpired(["zygote"], timeout or 0.0)
            time.sleep(0.005)
        return code

    def send_signal(self, number: int) -> None:
        """Send it a signal while it lives."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it."""
        self.send_signal(signal.SIGKILL)


def _begin(commands: int, events: int, log: Path) -> Forked:
    """In a launcher: fork the zygote instead of starting an interpreter."""
    launcher = os.getpid()
    pid = os.fork()
    if pid:
        return Forked(pid)
    code = 1
    try:
        os.setsid()
        _print_to(log, log)
        for end in (commands, events):
            os.set_inheritable(end, True)
        _close_all_but(commands, events)
        from fedge.run.zygote import live

        live(commands, events, launcher)
        code = 0
    finally:
        os._exit(code)


def _close_all_but(*kept: int) -> None:
    low = 3
    for end in (*sorted(kept), 1 << 12):
        os.closerange(low, end)
        low = end + 1


def _print_to(out: Path, log: Path) -> None:
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for path, end in ((out, 1), (log, 2)):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(handle, end)
        os.close(handle)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)


def _launch(order: Mapping[str, Any], parent: int) -> None:
    """In the forked child: be ``fedge``."""
    from fedge.emulation.process import die_with_parent

    code = 1
    try:
        os.setsid()
        die_with_parent(parent=parent)
        _print_to(Path(order["out"]), Path(order["log"]))
        _close_all_but()
        os.environ.update(order["environment"])
        tempfile.tempdir = None
        from fedge.__main__ import main

        main(order["words"])
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _stormy() -> None:
    """Have every device's line obey the three signals."""
    from fedge.run import worker
    from fedge.wire.line import Line

    for number in (CUT, CUT_LONG, SPOIL):
        signal.signal(number, signal.SIG_IGN)

    class Stormy(Line):
        def start(self) -> None:
            super().start()
            signal.signal(CUT, lambda *_: self.weather.cut(SHORT))
            signal.signal(CUT_LONG, lambda *_: self.weather.cut(LONG))
            signal.signal(SPOIL, lambda *_: self.weather.spoil(str(random.random())))

    worker.Line = Stormy  # type: ignore[misc]


def _serve(channel: socket.socket) -> None:
    waking, wake = os.pipe()
    for end in (waking, wake):
        os.set_blocking(end, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    rest = b""
    while True:
        select.select([channel, waking], [], [], 1.0)
        with suppress(BlockingIOError):
            os.read(waking, 4096)
        _bury(channel)
        if select.select([channel], [], [], 0)[0]:
            data = channel.recv(1 << 16)
            if not data:
                return
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                _fork(channel, json.loads(line))


def _fork(channel: socket.socket, order: dict[str, Any]) -> None:
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        _launch(order, parent)
    channel.sendall(json.dumps({"pid": pid}).encode() + b"\n")


def _bury(channel: socket.socket) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        channel.sendall(json.dumps({"ended": pid, "status": status}).encode() + b"\n")


def serve(end: int) -> None:
    """Import everything, and fork launchers until the other end of the socket is closed."""
    from fedge.emulation.process import die_with_parent, set_name

    die_with_parent()
    set_name("chaos-warm")
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    import sklearn.datasets  # noqa: F401
    import torch

    torch.set_num_threads(1)
    import fedge.cli
    import fedge.methods.combine.mixed
    import fedge.models.exits
    import fedge.run.launch
    import fedge.run.launcher
    import fedge.run.worker  # noqa: F401
    from fedge.run import nursery
    from fedge.run.warmup import warm

    nursery.begin = _begin  # type: ignore[assignment]
    os.environ.update(nursery.environment())
    _stormy()
    warm(parent=True)
    with socket.socket(fileno=end) as channel:
        channel.sendall(b'{"ready": true}\n')
        _serve(channel)


class Launched:
    """A launcher that the warm process has forked."""

    def __init__(self, warm: Warm, pid: int):
        self._warm = warm
        self._code: int | None = None
        self.pid = pid

    @property
    def returncode(self) -> int | None:
        if self._code is None:
            self._code = self._warm.ended.get(self.pid)
        return self._code

    def poll(self) -> int | None:
        """Its exit code, None while it lives."""
        self._warm.hear(0.0)
        return self.returncode

    def wait(self) -> int:
        """Its exit code, when it has ended."""
        while (code := self.returncode) is None:
            self._warm.hear(0.5)
        return code

    def kill(self) -> None:
        """End it."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


class Warm:
    """The campaign's end of the warm process."""

    def __init__(self) -> None:
        from fedge.run.nursery import environment

        ours, theirs = socket.socketpair()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tools.chaos.warm", str(theirs.fileno())],
            pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr,
            env={**os.environ, **environment()},
            start_new_session=True,
        )
        theirs.close()
        self._channel = ours
        self._rest = b""
        self._born: list[int] = []
        self.ended: dict[int, int] = {}
        self._ready = False
        while not self._ready:
            self.hear(1.0)

    def hear(self, timeout: float) -> None:
        """Take in what it has said."""
        if not select.select([self._channel], [], [], timeout)[0]:
            return
        data = self._channel.recv(1 << 16)
        if not data:
            raise FedgeError("the warm process of the campaign has ended; what it said stands above")
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in map(json.loads, lines):
            if "pid" in line:
                self._born.append(line["pid"])
                self.ended.pop(line["pid"], None)  # an earlier process had it
            elif "ended" in line:
                self.ended[line["ended"]] = os.waitstatus_to_exitcode(line["status"])
            else:
                self._ready = True

    def start(self, words: Sequence[str], environment: Mapping[str, str], out: Path, log: Path) -> Launched:
        """Fork a launcher for ``fedge WORDS``."""
        order = {"words": list(words), "environment": dict(environment), "out": str(out), "log": str(log)}
        self._channel.sendall(json.dumps(order).encode() + b"\n")
        while not self._born:
            self.hear(1.0)
        return Launched(self, self._born.pop())

    def left(self) -> list[psutil.Process]:
        """The processes below it that have not ended."""
        found = []
        with suppress(psutil.Error):
            for one in psutil.Process(self._process.pid).children(recursive=True):
                with suppress(psutil.Error):
                    if one.status() != psutil.STATUS_ZOMBIE:
                        found.append(one)
        return found

    def close(self) -> None:
        """End it and whatever is below it."""
        for one in self.left():
            with suppress(psutil.Error):
                one.kill()
        self._channel.close()
        self._process.wait(timeout=30)


if __name__ == "__main__":
    serve(int(sys.argv[1]))
