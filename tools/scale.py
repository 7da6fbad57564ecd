"""How many devices a host carries, and what they cost it: ``python -m tools.scale [--quick] [--json]``.

- 64 devices with processes of their own: seconds from the stage's beginning (the zygote ready) to the last pick, and
  the private memory of a process that has picked and done nothing else.
- 256 processes: whether they finish a round, and in how much memory.
- 5,000 devices, 500 a round, that take turns in a few processes: memory of the whole tree, and the wall time of a
  device's visit in rounds of 500 against rounds of 50.
- The command up to the end of its first round with 8 devices, against a bare loop with the same imports.

The data are random images: nothing is learnt here.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from fedge.errors import FedgeError
from fedge.run.launcher import Options, up
from tools.figures import figure, show
from tools.kernel import memory, name, tree

MiB, GiB = 2**20, 2**30

_FEDERATION = """\
name: scale
model: vit-nano
data: {{dataset: {data}, partition: iid, test: 1%}}
devices:
  device: {{profile: jetson-orin-nano-8g, count: {devices}}}
emulation: {{processes: {processes}, slots: {slots}}}
evaluate: {{every: 1000, rows: 16}}
stages:
"""
_STAGE = "  - train: {{method: fedavg, rounds: {rounds}, cohort: {cohort}, steps: 2, batch: 4, pick: richest}}\n"


def images(path: Path, rows: int) -> None:
    """Random images in ten classes."""
    chance = np.random.default_rng(0)
    np.savez(path, x=chance.integers(0, 255, (rows, 8, 8), dtype=np.uint8), y=chance.integers(0, 10, rows))


class Watched:
    """One run, watched: when each of its lines came, and the most memory that its processes shared out among them."""

    def __init__(self, folder: Path, devices: int, processes: int | str, stages: list[tuple[int, int]]):
        """stages: rounds and cohort of each."""
        data = folder / f"images-{devices}.npz"
        images(data, max(2000, 2 * devices))
        path = folder / f"scale-{devices}-{processes}.yaml"
        text = _FEDERATION.format(data=data.name, devices=devices, processes=processes, slots=2)
        path.write_text(text + "".join(_STAGE.format(rounds=rounds, cohort=cohort) for rounds, cohort in stages))
        self.lines: list[tuple[float, str]] = []
        self.peak = 0
        self._over = threading.Event()
        watch = threading.Thread(target=self._watch, daemon=True)
        watch.start()
        try:
            self.run = up(path, (), Options(runs=folder / "runs", slots=2), self._say)
        finally:
            self._over.set()
            watch.join()

    def at(self, *words: str) -> list[float]:
        """When lines came that hold all of ``words``."""
        return [when for when, line in self.lines if all(word in line for word in words)]

    def rounds(self, stage: int) -> list[float]:
        """Wall seconds of a stage's rounds after its first."""
        begin = self.at(f"stage {stage}: train with")[0]
        end = self.at(f"stage {stage}: train done")[0]
        times = [when for when in self.at("train round", "answered") if begin < when <= end]
        return [later - earlier for earlier, later in pairwise(times)]

    def _say(self, line: str) -> None:
        self.lines.append((time.perf_counter(), line))
        print(line, file=sys.stderr)

    def rest(self) -> list[int]:
        """Private bytes of the processes that are there now."""
        kinds = ("Private_Clean", "Private_Dirty")
        return [memory(pid, *kinds) for pid in tree(os.getpid()) if name(pid).startswith("fedge:")]

    def _watch(self) -> None:
        while not self._over.wait(0.5):
            self.peak = max(self.peak, sum(memory(pid, "Pss") for pid in tree(os.getpid())))


def ready(folder: Path) -> list[dict[str, Any]]:
    """64 devices: seconds until all have picked, and an idle process's memory."""
    idle: list[int] = []
    seen: list[float] = []

    class Picked(Watched):
        def _say(self, line: str) -> None:
            super()._say(line)
            if " picks " in line or " pick " in line:
                seen.append(time.perf_counter())
                idle[:] = self.rest()

    watched = Picked(folder, 64, 64, [(1, 64)])
    began = watched.at("stage 0: train with")[0]
    private = [one / MiB for one in idle]
    return [
        figure("64 devices ready", [seen[0] - began], "s", 3.0),
        figure("private memory of an idle process", private, "MiB", 6.0),
    ]


def many(folder: Path) -> list[dict[str, Any]]:
    """256 processes at once."""
    watched = Watched(folder, 256, 256, [(2, 256)])
    answered = sum(1 for line in watched.run.metrics if line.get("arrival") is not None)
    return [
        {"name": "answers of 256 processes in two rounds", "value": answered, "unit": "", "goal": ">= 512"}
        | {"holds": answered >= 512, "n": 1},
        figure("memory of 256 processes, the launcher's included", [watched.peak / GiB], "GiB"),
        figure("a visit among 256 processes", [second / 256 * 1e3 for second in watched.rounds(0)], "ms"),
    ]


def crowd(folder: Path, quick: bool) -> list[dict[str, Any]]:
    """5,000 devices in turn."""
    devices, some, more = (600, 20, 100) if quick else (5000, 50, 500)
    watched = Watched(folder, devices, "auto" if not quick else 4, [(4, some), (4, more)])
    few = [second / some * 1e3 for second in watched.rounds(0)]
    crowd_ = [second / more * 1e3 for second in watched.rounds(1)]
    grown = statistics.median(crowd_) / statistics.median(few)
    return [
        figure(f"memory of {devices} devices, {more} a round", [watched.peak / GiB], "GiB", 4.0),
        figure(f"a visit in rounds of {some}", few, "ms"),
        figure(f"a visit in rounds of {more}", crowd_, "ms"),
        figure(f"a visit in rounds of {more} against rounds of {some}", [grown], "×", 1.10),
    ]


def start(folder: Path, pairs: int) -> list[dict[str, Any]]:
    """The command and the bare loop, each from the start of its process to the end of its first round."""
    data = folder / "images-8.npz"
    images(data, 2000)
    path = folder / "start.yaml"
    text = _FEDERATION.format(data=data.name, devices=8, processes="auto", slots=2)
    path.write_text(text + _STAGE.format(rounds=1, cohort=8).replace("steps: 2, batch: 4", "steps: 8, batch: 32"))
    command = [sys.executable, "-m", "fedge", "up", str(path), "--runs", str(folder / "runs")]
    took: list[float] = []
    for pair in range(pairs + 1):
        ours = until(command, "train round 1/1")
        theirs = until([sys.executable, "-m", "tools.bare", "8"], "round done")
        if pair:  # the first of each fills the caches of files and of traced costs
            took.append(ours / theirs)
    return [figure("the command to the end of round 1, against a bare loop", took, "×", 1.3)]


def until(command: list[str], word: str) -> float:
    """Seconds from the start of a command to a line that holds ``word``."""
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as child:
        assert child.stdout is not None
        took = float("nan")
        lines = []
        for line in child.stdout:
            lines.append(line)
            if word in line and took != took:
                took = time.perf_counter() - began
    if took != took:
        raise FedgeError(f"{' '.join(command)} never said '{word}': {''.join(lines[-5:])}")
    return took


def main() -> int:
    """Measure and print; 0 when the goals hold."""
    parser = argparse.ArgumentParser(prog="python -m tools.scale", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer devices, within about a minute")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--only", choices=("ready", "many", "crowd", "start"), help="one of the four")
    told = parser.parse_args()
    parts = [told.only] if told.only else ["crowd"] if told.quick else ["ready", "many", "crowd", "start"]
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="fedge-scale-") as folder:
        try:
            for part in parts:
                if part == "ready":
                    found += ready(Path(folder))
                elif part == "many":
                    found += many(Path(folder))
                elif part == "crowd":
                    found += crowd(Path(folder), told.quick)
                else:
                    found += start(Path(folder), 3)
        except FedgeError as error:
            print(f"tools.scale: {error}", file=sys.stderr)
            return error.exit_code
    return show(found, told.json)


if __name__ == "__main__":
    raise SystemExit(main())
