"""One run of a federation, struck at given moments and resumed as often as its launcher dies, and what it leaves."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

import fedge
from fedge.emulation import folder as groups
from fedge.errors import FedgeError
from fedge.run.folder import RunFolder
from fedge.run.limits import clear
from tools.chaos.disk import Disk
from tools.chaos.victims import DISK, marked, strike
from tools.chaos.warm import Launched, Warm

#: Seconds between two looks at a run, and those that the kernel and cgroups get to clear away the dead.
LOOK, GRACE = 0.01, 10.0
#: What must be equal in the stages' records besides the model; peaks of memory are measured, not computed.
_SAME = ("stage", "method", "rounds", "metrics", "devices", "lost", "virtual_s", "bytes_up", "bytes_down", "energy_j")


#: What libraries leave in a temporary folder for good: onnxruntime's session file.
_NOT_OURS = (".ses",)


@dataclass(frozen=True)
class Blow:
    """When to strike, in seconds of the run's own time, and the kinds of victims in the order to look for them.

    A run's own time passes while a launcher holds its folder, and not while a launcher is still being imported.
    """

    moment: float
    kinds: tuple[str, ...]


@dataclass
class Struck:
    """A blow that was dealt. reached: rounds done by then. last: the run's last line of progress."""

    moment: float
    victim: str
    name: str
    reached: str
    last: str


@dataclass
class Trial:
    """How a run ended. outcome: 'same', 'lost', 'differs', 'failed', 'hung' or 'left' (something was left behind).

    lost: the wire refused what a device sent, the run went on without it, said so, and its folder can be resumed.

    seconds: from the first launcher's start. own: seconds of the run's own time, see ``Blow``.
    """

    outcome: str
    seconds: float
    own: float = 0.0
    struck: list[Struck] = field(default_factory=list)
    resumes: int = 0
    detail: str = ""
    model_sha256: str | None = None
    stages: list[dict[str, Any]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The ledger's row; the stages are compared and not kept."""
        kept = {key: value for key, value in asdict(self).items() if key != "stages"}
        return {**kept, "seconds": round(self.seconds, 2), "own": round(self.own, 2)}


class Run:
    """A run in ``place``, which must be new and have a short path: sockets lie below it."""

    def __init__(
        self, federation: str, settings: Sequence[str], place: Path, *, warm: Warm | None = None, disk: bool = False
    ):
        """``warm``: who forks launchers; else each is an interpreter of its own. disk: runs lie on a small one."""
        self._first = ["up", federation, *(word for one in settings for word in ("--set", one))]
        self._place = place
        self._runs = place / "runs"
        self._temporary = place / "t"
        self._temporary.mkdir(parents=True)
        self._warm = warm
        self._disk = Disk(self._runs) if disk else None
        self._launchers: list[subprocess.Popen[bytes] | Launched] = []
        self._seen: set[str] = set()
        self._struck: list[Struck] = []
        self._slain: set[int] = set()
        self._own = 0.0

    def undergo(
        self,
        blows: Sequence[Blow],
        chance: random.Random,
        limit: float,
        *,
        like: Trial | None = None,
        from_start: bool = False,
    ) -> Trial:
        """Run to the end, dealing ``blows``; ``limit`` in seconds. ``like``: the undisturbed run, to compare with.

        from_start: the run's own time passes from each launcher's start.
        """
        began = time.monotonic()
        left = sorted(blows, key=lambda blow: blow.moment)
        try:
            code = None
            while code is None and time.monotonic() - began < limit:
                launcher = self._launch()
                while launcher.poll() is None and time.monotonic() - began < limit:
                    if left and self._own >= left[0].moment:
                        self._strike(left.pop(0), launcher, chance)
                    looked = time.monotonic()
                    held = from_start or self._is_held(launcher)
                    if self._disk is not None and self._disk.full:
                        self._disk.fill()  # what was deleted since
                    time.sleep(LOOK)
                    self._own += (time.monotonic() - looked) * held
                ended = launcher.returncode
                full = self._disk is not None and self._disk.full
                if full:
                    self._disk.clear()  # type: ignore[union-attr]
                if ended is None:
                    continue
                if full and ended > 0:
                    if trouble := self._unclean():
                        return self._ended("failed", began, f"on a full disk, {trouble}")
                elif not self._has_killed(launcher):
                    code = ended
                    continue
                if orphans := self._await_gone():
                    return self._ended("left", began, f"outlives its launcher: {', '.join(orphans)}")
            if code is None:
                return self._ended("hung", began, f"not done after {limit:.0f} s: {self._last_line()}")
            if code != 0:
                return self._ended("failed", began, f"exit code {code}: {self._last_line()}")
            return self._judge(began, like)
        finally:
            self._tidy()

    # -- while it runs -----------------------------------------------------------------------------------------------

    def _launch(self) -> subprocess.Popen[bytes] | Launched:
        """Start the run, or go on with it as soon as there is something to go on from."""
        folder = self._folder()
        for unborn in [] if folder else self._runs.glob("*/launcher.json"):
            clear(RunFolder(unborn.parent), lambda line: None)  # killed before there was anything to go on from
        words = [*self._first, "--runs", str(self._runs)] if folder is None else ["up", "--resume", str(folder.path)]
        own = {
            "TMPDIR": str(self._temporary),
            "TORCHINDUCTOR_CACHE_DIR": str(self._place / "torch"),  # a cache of torch's own is no leftover of ours
        }
        out, log = self._place / "out.json", self._place / "progress.log"
        out.unlink(missing_ok=True)
        log.touch()
        self._said = log.stat().st_size
        words = [*words, "--json"]
        launcher = self._warm.start(words, own, out, log) if self._warm else _exec(words, own, out, log)
        self._launchers.append(launcher)
        return launcher

    def _strike(self, blow: Blow, launcher: subprocess.Popen[bytes] | Launched, chance: random.Random) -> None:
        reached, last = self._reached(), self._last_line()
        for kind in blow.kinds:
            if kind == DISK and self._disk is not None:
                self._disk.fill()
                self._struck.append(Struck(round(self._own, 3), kind, "", reached, last))
                return
            victim = strike(launcher.pid, (kind,), chance) if kind != DISK else None
            if victim is not None:
                self._slain.add(victim.pid)
                self._struck.append(Struck(round(self._own, 3), victim.kind, victim.name, reached, last))
                return

    def _unclean(self) -> str:
        """What is wrong with how the last launcher said that the disk is full; '' for one line that says it."""
        said = (
            (self._place / "progress.log").read_text(errors="replace").encode()[self._said :].decode(errors="replace")
        )
        lines = said.splitlines() or [""]
        if "Traceback" in said or "not foreseen" in said:
            return f"a traceback: {lines[-1]}"
        return "" if lines[-1].startswith("fedge: ") and "No space left" in lines[-1] else f"it said: {lines[-1]}"

    def _has_killed(self, launcher: subprocess.Popen[bytes] | Launched) -> bool:
        """Whether this launcher has died of our signal; one that was quicker has ended of itself."""
        return launcher.returncode == -signal.SIGKILL and launcher.pid in self._slain

    def _folder(self) -> RunFolder | None:
        """The run's folder, once it can be resumed."""
        found = sorted(self._runs.glob("*/resolved.yaml")) if self._runs.is_dir() else []
        return RunFolder(found[-1].parent) if found else None

    def _is_held(self, launcher: subprocess.Popen[bytes]) -> bool:
        """Whether this launcher has a run's folder; what it has beside it on the host is noted, to be missed later."""
        folder = self._folder()
        if folder is None:
            return False
        try:
            told = folder.read_json("launcher.json")
        except (OSError, ValueError):
            return False
        self._seen |= {value for value in told.values() if isinstance(value, str) and value.startswith("/")}
        return bool(told["pid"] == launcher.pid)

    def _reached(self) -> str:
        folder = self._folder()
        if folder is None:
            return "start"
        rounds = [line for line in folder.read_lines("metrics.jsonl") if line["round"] is not None]
        return f"stage {rounds[-1]['stage_index']} round {rounds[-1]['round'] + 1}" if rounds else "before round 1"

    def _last_line(self) -> str:
        lines = (self._place / "progress.log").read_text(errors="replace").splitlines()
        return lines[-1] if lines else ""

    # -- in the end --------------------------------------------------------------------------------------------------

    def _judge(self, began: float, like: Trial | None) -> Trial:
        """Compare a run that says it is done with the undisturbed one, and look for what it left."""
        seconds = time.monotonic() - began
        summary = json.loads((self._place / "out.json").read_text())
        trial = Trial("same", seconds, self._own, self._struck, len(self._launchers) - 1)
        trial.model_sha256 = summary["model_sha256"]
        trial.stages = [{key: stage[key] for key in _SAME} for stage in summary["stages"]]
        if summary["status"] != "done":
            trial.outcome, trial.detail = "failed", f"exit code 0, but status {summary['status']}"
        elif like is not None and (other := _other(trial, like)):
            trial.outcome, trial.detail = self._lost(trial, other)
        if trial.outcome in ("same", "lost") and (twice := self._recorded_twice()):
            trial.outcome, trial.detail = "differs", f"metrics.jsonl holds twice: {twice}"
        if trial.outcome in ("same", "lost") and (left := self._leftovers()):
            trial.outcome, trial.detail = "left", f"left behind: {', '.join(left)}"
        return trial

    def _lost(self, trial: Trial, other: str) -> tuple[str, str]:
        """Whether a run that came out otherwise did so because a device's frame was spoilt, and says so."""
        folder = self._folder()
        assert folder is not None
        told = [e for e in folder.read_lines("events.jsonl") if e["event"] == "lost" and e["cause"] == "protocol"]
        if not told or not any(one.victim == "corrupt" for one in self._struck):
            return "differs", other
        launcher = self._launch()
        if launcher.wait() != 0:
            return "failed", f"a device was lost, and the folder can't be resumed: {self._last_line()}"
        again = json.loads((self._place / "out.json").read_text())["model_sha256"]
        if again != trial.model_sha256:
            return "differs", f"resumed when it was done, it has model_sha256 {again}"
        return "lost", ", ".join(sorted({f"{one['device']}: {one['detail']}" for one in told}))

    def _ended(self, outcome: str, began: float, detail: str) -> Trial:
        return Trial(outcome, time.monotonic() - began, self._own, self._struck, len(self._launchers) - 1, detail)

    def _recorded_twice(self) -> str:
        folder = self._folder()
        assert folder is not None
        seen = set()
        for line in folder.read_lines("metrics.jsonl"):
            place = (line["stage_index"], line["round"], line.get("device"))
            if place in seen:
                return str(place)
            seen.add(place)
        return ""

    def _leftovers(self) -> list[str]:
        """Processes, groups, sockets, scratch and unfinished files that are still there after a grace."""
        left = self._await_gone()
        left += [str(path) for path in self._groups()]
        left += [str(path) for path in self._temporary.iterdir() if path.name not in _NOT_OURS]
        left += [path for path in sorted(self._seen) if Path(path).exists()]
        if (folder := self._folder()) is not None:
            left += [str(path) for path in folder.path.rglob(".*")]
            left += [str(folder.file("launcher.json"))] if folder.file("launcher.json").exists() else []
        return list(dict.fromkeys(left))

    def _await_gone(self) -> list[str]:
        """Wait until no process of this run is left; those that stay, as pid and name."""
        end = time.monotonic() + GRACE
        while found := self._alive():
            if time.monotonic() > end:
                return [f"process {one.pid} ({_name(one)})" for one in found]
            time.sleep(0.05)
        return []

    def _alive(self) -> list[psutil.Process]:
        return self._warm.left() if self._warm else marked(str(self._temporary))

    def _groups(self) -> Iterator[Path]:
        """Groups that carry the pid of one of this run's launchers, anywhere in the host's cgroups."""
        mine = tuple(f"-{launcher.pid}" for launcher in self._launchers)
        for mount, _, _ in groups.all_mounts():
            for top, inner, _ in os.walk(mount.point):
                yield from (Path(top, name) for name in inner if name.startswith(groups.PREFIX) and name.endswith(mine))

    def _tidy(self) -> None:
        """End what is left of this run, whatever came of it, so that the next one finds the host as it was."""
        for launcher in self._launchers:
            if launcher.poll() is None:
                launcher.kill()
            launcher.wait()
        for one in self._alive():
            with suppress(Exception):
                one.kill()
        for group in list(self._groups()):
            for path in [*group.iterdir(), group]:
                if path.is_dir():
                    groups.remove(path)
        shutil.rmtree(self._temporary, ignore_errors=True)
        if self._disk is not None:
            self._disk.close()


def _difference(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> str:
    if len(found) != len(expected):
        return f"{len(found)} stages, not {len(expected)}"
    for number, (one, other) in enumerate(zip(found, expected, strict=True)):
        for key in _SAME:
            if one[key] != other[key]:
                return f"stage {number} has {key} {one[key]}, not {other[key]}"
    return "the same stages"


def _other(trial: Trial, like: Trial) -> str:
    """In what a run came out otherwise than another; '' where it did not."""
    if trial.model_sha256 != like.model_sha256:
        return f"model_sha256 {trial.model_sha256}"
    return "" if trial.stages == like.stages else f"the same model, but {_difference(trial.stages, like.stages)}"


def _name(one: psutil.Process) -> str:
    with suppress(psutil.Error):
        return str(one.name())
    return "?"


def _exec(words: Sequence[str], own: Mapping[str, str], out: Path, log: Path) -> subprocess.Popen[bytes]:
    """An interpreter that does what ``fedge WORDS`` does."""
    roots = (str(Path(fedge.__file__).parents[1]), os.environ.get("PYTHONPATH"))
    path = os.pathsep.join(root for root in roots if root)
    with out.open("wb") as printed, log.open("ab") as said:
        return subprocess.Popen(
            [sys.executable, "-m", "fedge", *words],
            env={**os.environ, **own, "PYTHONPATH": path},
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=said,
            start_new_session=True,  # Ctrl-C is for the campaign
        )


def undisturbed(
    federation: str,
    settings: Sequence[str],
    place: Path,
    limit: float,
    from_start: bool,
    warm: Warm | None = None,
) -> Trial:
    """Run once without a blow. Raises FedgeError when that doesn't end as it should."""
    trial = Run(federation, settings, place, warm=warm).undergo((), random.Random(0), limit, from_start=from_start)
    if trial.outcome != "same":
        raise FedgeError(f"undisturbed, the federation {trial.outcome}: {trial.detail}", hint=f"see {place}")
    return trial
