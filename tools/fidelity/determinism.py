"""Virtual times are the same bits on one slot, on two, in turns, and beside processes that take all of the host."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

from fedge.emulation.process import die_with_parent
from fedge.run.launcher import Options, Run, up
from tools.fidelity.seen import says

FEDERATION = Path(__file__).parents[2] / "federations" / "paced.yaml"


def measure(quick: bool) -> Iterator[dict[str, Any]]:
    """One federation in four ways, all compared with the first."""
    rounds = 2 if quick else 6
    told = ["emulation.clock=virtual", "emulation.slowdown=1", f"stages.customize.rounds={rounds}"]
    ways: dict[str, tuple[int, Sequence[str], int]] = {
        "one slot": (1, (), 0),
        "two slots": (2, (), 0),
        "two processes in turns": (2, ("emulation.processes=2",), 0),
        "two slots under load": (2, (), 2 * (os.cpu_count() or 1)),
    }
    first = ""
    with tempfile.TemporaryDirectory(prefix="fedge-determinism-") as folder:
        for name, (slots, more, burners) in ways.items():
            with burning(burners):
                run = up(FEDERATION, [*told, *more], Options(runs=Path(folder), slots=slots), _say)
            found = digest(run)
            first = first or found
            about = {"turns": len(_turns(run)), "virtual_s": run.summary["stages"][0]["virtual_s"]}
            yield says(f"virtual times and model, {name} against one slot", found == first, found[:16], **about)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _turns(run: Run) -> list[tuple[Any, ...]]:
    names = ("stage", "round", "device", "began", "arrival", "bytes_up", "bytes_down", "energy_j")
    return [tuple(record[name] for name in names) for record in run.metrics if "arrival" in record]


def digest(run: Run) -> str:
    """Over every turn's times, bytes and joules, to the last bit, and the model."""
    return sha256(repr([*_turns(run), run.summary["model_sha256"]]).encode()).hexdigest()


@contextmanager
def burning(processes: int) -> Iterator[None]:
    """So many processes beside this one that each take all of a core."""
    parent, children = os.getpid(), []
    for _ in range(processes):
        child = os.fork()
        if child == 0:
            die_with_parent(parent=parent)
            while True:
                sum(range(1000))
        children.append(child)
    try:
        yield
    finally:
        for child in children:
            os.kill(child, 9)
            os.waitpid(child, 0)
