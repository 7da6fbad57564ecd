"""A campaign: which blows each run gets, the ledger that is kept of them, and the figures in the end."""

from __future__ import annotations

import json
import os
import random
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedge.errors import ConfigError, MissingError
from tools.chaos.trial import Blow, Trial


def blows(seed: int, run: int, count: int, seconds: float, victims: Sequence[str]) -> list[Blow]:
    """The blows of a run by number: moments uniform over ``seconds``, each with an order in which to seek a victim."""
    chance = random.Random(f"{seed}/{run}")
    moments = sorted(chance.uniform(0.0, seconds) for _ in range(count))
    return [Blow(moment, tuple(chance.sample(list(victims), len(victims)))) for moment in moments]


@dataclass(frozen=True)
class Goal:
    """When to end: after so many runs, after so many blows, or seconds after the start; None: no such end."""

    runs: int | None = None
    kills: int | None = None
    seconds: float | None = None

    def reached(self, runs: int, kills: int, seconds: float) -> bool:
        """Whether one of them is reached."""
        have = ((self.runs, runs), (self.kills, kills), (self.seconds, seconds))
        return any(wanted is not None and found >= wanted for wanted, found in have)


@dataclass
class Ledger:
    """The rows of a campaign, in a file of JSON lines where ``path`` says so.

    Its first line says what the campaign is about: the model of the undisturbed run, the seed, the settings. A row is
    appended as soon as its run has ended, so that a campaign which was stopped can be continued.
    """

    about: dict[str, Any]
    path: Path | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def open(cls, path: Path | None, about: dict[str, Any]) -> Ledger:
        """Begin a ledger or go on with one; ConfigError when that one is about something else."""
        ledger = cls(about, path)
        if path is None:
            return ledger
        if not path.exists():
            ledger._append(about)
            return ledger
        lines = _lines(path)
        old = lines[0] if lines else {}
        differ = [key for key, value in about.items() if old.get(key) != value]
        if differ:
            key = differ[0]
            raise ConfigError(f"{path} is of another campaign: its {key} is {old.get(key)}, not {about[key]}")
        ledger.rows = lines[1:]
        return ledger

    def add(self, run: int, trial: Trial) -> None:
        """Keep a run."""
        row = {"run": run, "seed": self.about["seed"], **trial.to_json()}
        if self.path is not None:
            self._append(row)
        self.rows.append(row)

    @property
    def next_run(self) -> int:
        """The number of the first run that is not in it."""
        return max((row["run"] for row in self.rows), default=-1) + 1

    @property
    def kills(self) -> int:
        return sum(len(row["struck"]) for row in self.rows)

    def _append(self, row: Mapping[str, Any]) -> None:
        """One line in one system call; a line that a death cut short before is ended first."""
        assert self.path is not None
        try:
            with self.path.open("ab+") as out:
                data = json.dumps(row).encode() + b"\n"
                if out.tell():
                    out.seek(-1, os.SEEK_END)
                    data = data if out.read(1) == b"\n" else b"\n" + data
                out.write(data)
        except OSError as error:
            raise MissingError(f"the ledger {self.path} can't be written: {error.strerror}") from error


def _lines(path: Path) -> list[dict[str, Any]]:
    found = []
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise MissingError(f"the ledger {path} can't be read: {error}") from error
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue  # cut short when the campaign itself was killed: that run is done again
        if isinstance(row, dict):
            found.append(row)
    return found


def figures(ledger: Ledger) -> list[dict[str, Any]]:
    """The share of runs that ended as the undisturbed one, what went otherwise, and how many blows of each kind."""
    rows = ledger.rows
    outcomes = Counter(row["outcome"] for row in rows)
    share = round(100.0 * (outcomes["same"] + outcomes["lost"]) / len(rows), 2) if rows else 0.0
    name = "runs that end with the undisturbed model, or say which device was lost, and leave nothing behind"
    found: list[dict[str, Any]] = [
        {"name": name, "value": share, "unit": "%"}
        | {"goal": ">= 100", "holds": bool(rows) and share == 100.0, "n": len(rows)}
    ]
    found += [{"name": f"runs: {outcome}", "value": outcomes[outcome], "unit": "runs"} for outcome in ("same", "lost")]
    for outcome in ("differs", "failed", "hung", "left"):
        count = outcomes[outcome]
        found.append({"name": f"runs: {outcome}", "value": count, "unit": "runs", "goal": "<= 0", "holds": not count})
    struck = Counter(one["victim"] for row in rows for one in row["struck"])
    found += [
        {"name": f"struck: {kind}", "value": struck[kind], "unit": "times"}
        for kind in dict.fromkeys(ledger.about["victims"])
    ]
    seconds = [row["seconds"] for row in rows]
    if seconds:
        spread = round(max(seconds) - min(seconds), 2)
        middle = round(statistics.median(seconds), 2)
        line = {"name": "wall time of a struck run", "value": middle, "unit": "s", "spread": spread, "n": len(rows)}
        found.append(line)
    return found


OUTCOMES = ("same", "lost", "differs", "failed", "hung", "left")


def matrix(ledger: Ledger) -> list[str]:
    """Fault by outcome: how often each kind was dealt, and how those runs ended."""
    counted: dict[str, Counter[str]] = {}
    for row in ledger.rows:
        for one in row["struck"]:
            counted.setdefault(one["victim"], Counter()).update([row["outcome"]])
        if not row["struck"]:  # it had ended before
            counted.setdefault("(nobody)", Counter()).update([row["outcome"]])
    lines = [f"{'fault':15} {'times':>6}" + "".join(f" {outcome:>8}" for outcome in OUTCOMES)]
    for victim, found in sorted(counted.items()):
        lines.append(f"{victim:15} {found.total():6}" + "".join(f" {found[outcome]:8}" for outcome in OUTCOMES))
    return lines


def table(ledger: Ledger) -> list[str]:
    """For each kind of victim and where the run stood: how often it was struck, and how those runs ended."""
    counted: dict[tuple[str, str], Counter[str]] = {}
    for row in ledger.rows:
        for one in row["struck"]:
            place = one["reached"].split(" round ")[0] if one["reached"].startswith("stage") else one["reached"]
            counted.setdefault((one["victim"], place), Counter()).update([row["outcome"]])
    lines = [f"{'victim':15} {'struck in':16} {'times':>5}  the runs ended"]
    for (victim, place), outcomes in sorted(counted.items()):
        ended = ", ".join(f"{outcome} {count}" for outcome, count in sorted(outcomes.items()))
        lines.append(f"{victim:15} {place:16} {outcomes.total():5}  {ended}")
    lines += [
        f"run {row['run']}: {row['outcome']}: {row['detail']} (struck: {dealt(row['struck'])})"
        for row in ledger.rows
        if row["outcome"] not in ("same", "lost")
    ]
    return lines


def dealt(struck: Sequence[Mapping[str, Any]]) -> str:
    """The blows of a run in words."""
    return "; ".join(f"{one['victim']} at {one['moment']:.2f} s, {one['reached']}" for one in struck) or "nothing"
