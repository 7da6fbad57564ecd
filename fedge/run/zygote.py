"""The zygote: one thread, everything imported, the frozen base loaded once; it forks the devices.

Run as ``python -m fedge.run.zygote IN OUT`` with two inherited pipe ends. It reads one JSON command a line and writes
one JSON event a line:

    {"do": "load", …}    take up the model and the data of the run
    {"do": "stage", …}   take up a stage: its brief, the tensors of its base, what each device has to itself
    {"do": "fork", …}    fork a process for devices
    {"do": "ping"}       say that it is here
    {"do": "quit"}

    {"is": "ready" | "forked" | "ended" | "failed" | "here", …}

It is exec'd with one thread for every maths library, because a child that is forked after a parallel region hangs.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import sys
import traceback
from dataclasses import replace
from mmap import mmap
from pathlib import Path
from typing import Any

from fedge.emulation.process import die_with_parent, set_name
from fedge.errors import FedgeError


class Zygote:
    """The state of the zygote: the run's model and data, the stage's brief, and the children."""

    def __init__(self, commands: int, events: int):
        self._commands = commands
        self._events = events
        self._children: dict[int, tuple[str, int, mmap]] = {}
        self._wake, wake = os.pipe()
        os.set_blocking(wake, False)
        os.set_blocking(self._wake, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        self._ground: Any = None
        self._stock: Any = None

    def serve(self) -> None:
        """Obey until told to quit or until the launcher is gone."""
        rest = b""
        while True:
            ready, _, _ = select.select([self._commands, self._wake], [], [])
            if self._wake in ready:
                self._drain()
                self._reap()
            if self._commands in ready:
                data = os.read(self._commands, 1 << 20)
                if not data:
                    return
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    command = json.loads(line)
                    if command["do"] == "quit":
                        return
                    self._obey(command)

    def tell(self, kind: str, **details: Any) -> None:
        data = (json.dumps({"is": kind, **details}) + "\n").encode()
        while data:
            data = data[os.write(self._events, data) :]

    def _obey(self, command: dict[str, Any]) -> None:
        try:
            if command["do"] == "load":
                self._load(command)
            elif command["do"] == "stage":
                self._stage(command)
            elif command["do"] == "fork":
                self._fork(command)
            elif command["do"] == "ping":
                self.tell("here")
        except FedgeError as error:
            self.tell("failed", message=str(error))
        except Exception as error:
            traceback.print_exc()
            self.tell("failed", message=f"{type(error).__name__}: {error}")

    def _load(self, command: dict[str, Any]) -> None:
        from fedge.data import store
        from fedge.models.load import load
        from fedge.run.seat import Ground

        data = store.open(Path(command["data"]))
        model = command["model"]
        loaded = load(
            model["name"],
            model["task"],
            classes=model["classes"],
            labels=model["labels"],
            options=model["options"],
            seed=model["seed"],
            revision=model["revision"],
            trust_remote_code=model["trust_remote_code"],
            folder=Path(model["folder"]),
        )
        self._ground = Ground(loaded.model, loaded.task, data.public)
        self._train, self._test = data.train, data.test
        self.tell("ready", of="load")

    def _stage(self, command: dict[str, Any]) -> None:
        from fedge.models.halved import halves
        from fedge.models.save import restore
        from fedge.run.brief import Brief
        from fedge.run.evaluate import share_of
        from fedge.run.places import load_places
        from fedge.run.worker import Stock

        brief = Brief.from_json(command["brief"])
        base = restore(self._ground.base, Path(command["base"])).requires_grad_(False)
        self._ground = replace(self._ground, base=base)
        if any(variant.keeps() == "bf16" for variant in brief.variants):
            halves(base)  # one copy for all devices
        places = load_places(Path(command["places"]))
        states = Path(command["states"])
        self._stock = Stock(brief, self._ground, self._train, share_of(self._test, *command["test"]), places, states)
        gc.collect()
        gc.freeze()
        self.tell("ready", of="stage")

    def _fork(self, order: dict[str, Any]) -> None:
        slot = mmap(-1, 4096)
        sys.stdout.flush()
        sys.stderr.flush()
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for end in (self._commands, self._events, self._wake):
                    os.close(end)
                from fedge.run.worker import live

                code = live(order, self._stock, slot, parent)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        self._children[pid] = (order["host"], order["incarnation"], slot)
        self.tell("forked", host=order["host"], incarnation=order["incarnation"], pid=pid)

    def _drain(self) -> None:
        try:
            while os.read(self._wake, 4096):
                pass
        except BlockingIOError:
            pass

    def _reap(self) -> None:
        while self._children:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            host, incarnation, slot = self._children.pop(pid)
            self.tell("ended", host=host, incarnation=incarnation, pid=pid, status=status, phase=slot[0])
            slot.close()


def live(commands: int, events: int, parent: int) -> None:
    """Import and warm everything that devices need, say so, and serve."""
    die_with_parent(parent=parent)
    set_name("fedge-zygote")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    zygote = Zygote(commands, events)
    import torch

    torch.set_num_threads(1)
    import fedge.methods.combine.mixed
    import fedge.models.exits
    import fedge.run.worker  # noqa: F401
    from fedge.run.warmup import warm

    warm(parent=True)
    zygote.tell("ready", of="imports")
    zygote.serve()


if __name__ == "__main__":
    live(*(int(word) for word in sys.argv[1:4]))
