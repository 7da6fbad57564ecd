"""Case after case against one target: a watch on time and memory, a ledger of what was found, and the figures."""

from __future__ import annotations

import json
import resource
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Protocol

import psutil

from fedge.errors import FedgeError
from tools.figures import figure

#: Seconds of processor time that a case may take, and bytes by which the process may grow while cases run.
SLOW, GROWTH = 1.0, 512 << 20
#: Seconds of the wall's clock that a case may take: what waits takes no processor time, and a busy host takes its own.
PATIENCE = 10.0
#: Memory that the process may have beyond what it has when the cases begin, so that a bomb ends in a finding.
_ROOM = 8 << 30


class Hung(BaseException):
    """A case was at it for longer than it may."""


class Target(Protocol):
    """Something that takes damaged input. ``counted``: how many damaged things it was given so far."""

    name: str
    counted: int

    def case(self, draw: Random) -> str:
        """One case, by itself: damage something and put it before whoever has to stand it; says how it was met.

        A FedgeError is how it should be met; anything else that is raised is a finding.
        """
        ...

    def input(self) -> bytes:
        """What the last case was given, for the ledger."""
        ...

    def close(self) -> None:
        """Let go of whatever it holds."""
        ...


@dataclass
class Outcome:
    """What came of a campaign. met: how many cases ended in which way."""

    cases: int = 0
    counted: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    growth: int = 0
    met: dict[str, int] = field(default_factory=dict)
    findings: list[dict[str, Any]] = field(default_factory=list)


def run(
    target: Target, count: int, seed: int, ledger: Path | None, say: Callable[[str], None], only: int | None = None
) -> Outcome:
    """Cases until ``count`` damaged things were given; with ``only`` that case alone."""
    out = Outcome()
    process = psutil.Process()
    start = process.memory_info().rss
    began = said = time.monotonic()
    with _watched(), _room():
        for number in _numbers(only):
            _case(target, number, seed, ledger, out)
            out.cases, out.counted = out.cases + 1, target.counted
            now = time.monotonic()
            if out.cases % 500 == 1 or target.counted >= count:
                out.growth = max(out.growth, process.memory_info().rss - start)
            if now - said > 5.0:
                said = now
                pace = target.counted / (now - began)
                left = (count - target.counted) / pace if pace else 0.0
                found = f", {len(out.findings)} findings" if out.findings else ""
                say(f"{target.name}: {target.counted} of {count}, {pace:.0f}/s, {left:.0f} s left{found}")
            if target.counted >= count:
                break
    out.seconds = time.monotonic() - began
    return out


def _numbers(only: int | None) -> Iterator[int]:
    if only is not None:
        yield only
        return
    number = 0
    while True:
        yield number
        number += 1


def _case(target: Target, number: int, seed: int, ledger: Path | None, out: Outcome) -> None:
    began = time.process_time()
    met, trouble = _once(target, Random(f"{seed}/{target.name}/{number}"))
    if isinstance(trouble, Hung):  # the host may have stopped, or the case was the first to import something: once more
        began = time.process_time()
        met, trouble = _once(target, Random(f"{seed}/{target.name}/{number}"))
    out.slowest = max(out.slowest, time.process_time() - began)
    out.met[met] = out.met.get(met, 0) + 1
    if trouble is None:
        return
    frames = traceback.extract_tb(trouble.__traceback__)
    line = {
        "target": target.name,
        "seed": seed,
        "case": number,
        "error": f"{type(trouble).__name__}: {str(trouble)[:300]}",
        "at": [f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames[-4:]],
        "input": target.input()[:4096].hex(),
    }
    out.findings.append(line)
    if ledger is not None:
        with ledger.open("a") as file:
            file.write(json.dumps(line) + "\n")


def _once(target: Target, draw: Random) -> tuple[str, BaseException | None]:
    signal.setitimer(signal.ITIMER_PROF, SLOW)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    try:
        return target.case(draw), None
    except FedgeError as error:
        return type(error).__name__, None
    except (Exception, Hung) as error:
        return "finding", error
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)


@contextmanager
def _watched() -> Iterator[None]:
    def ring(number: int, frame: object) -> None:
        raise Hung(f"more than {SLOW:g} s at work" if number == signal.SIGPROF else f"more than {PATIENCE:g} s")

    before = {number: signal.signal(number, ring) for number in (signal.SIGPROF, signal.SIGALRM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _room() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + _ROOM, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def figures(name: str, out: Outcome) -> list[dict[str, Any]]:
    """The campaign's figures with their goals."""
    return [
        figure(f"fuzz.{name}.damaged", [float(out.counted)], "given"),
        figure(f"fuzz.{name}.findings", [float(len(out.findings))], "found", 0),
        figure(f"fuzz.{name}.slowest", [out.slowest], "s", SLOW),
        figure(f"fuzz.{name}.growth", [out.growth / (1 << 20)], "MiB", GROWTH >> 20),
    ]
