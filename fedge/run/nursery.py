"""The launcher's end of the zygote: starting it, talking to it, and noticing that it is gone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from fedge.errors import FedgeError

#: One thread for every maths library: a child forked after a parallel region hangs for ever.
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1")


class Nursery:
    """A running zygote. ``events`` is the descriptor on which its events arrive."""

    def __init__(self, log: Path):
        self._log = log
        commands_in, commands = os.pipe()
        self.events, events_out = os.pipe()
        environment = {
            **os.environ,
            **_ONE_THREAD,
            "TOKENIZERS_PARALLELISM": "false",
            "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
            "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
            "PYTHONUNBUFFERED": "1",
            "PYTHONWARNINGS": "ignore",
        }
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "fedge.run.zygote", str(commands_in), str(events_out), str(os.getpid())],
                pass_fds=(commands_in, events_out),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=environment,
                start_new_session=True,
            )
        os.close(commands_in)
        os.close(events_out)
        os.set_blocking(self.events, False)
        self._commands = commands
        self._rest = b""
        self.alive = True

    def command(self, do: str, **details: Any) -> None:
        """Send a command; nothing happens when the zygote is gone, which ``read`` then tells."""
        data = (json.dumps({"do": do, **details}) + "\n").encode()
        try:
            while data:
                data = data[os.write(self._commands, data) :]
        except BrokenPipeError:
            self.alive = False

    def read(self) -> list[dict[str, Any]]:
        """The events that have arrived; sets ``alive`` to False when the zygote is gone."""
        while True:
            try:
                data = os.read(self.events, 1 << 20)
            except BlockingIOError:
                break
            if not data:
                self.alive = False
                break
            self._rest += data
        *lines, self._rest = self._rest.split(b"\n")
        return [json.loads(line) for line in lines]

    def await_ready(self, of: str, seconds: float = 300.0) -> None:
        """Wait until the zygote has done something. Raises FedgeError when it failed or is gone."""
        import select

        end = time.monotonic() + seconds
        while time.monotonic() < end:
            select.select([self.events], [], [], 1.0)
            for event in self.read():
                if event["is"] == "failed":
                    raise FedgeError(f"the device process could not prepare: {event['message']}")
                if event["is"] == "ready" and event["of"] == of:
                    return
            if not self.alive:
                raise FedgeError(f"the zygote died while preparing; see {self._log}")
        raise FedgeError(f"the zygote did not get ready within {seconds:.0f} s; see {self._log}")

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
