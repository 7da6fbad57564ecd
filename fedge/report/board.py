"""A run's figures as a TensorBoard event file: tags by stage, a step a round, wall times as they were."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from fedge.errors import FedgeError, MissingError
from fedge.report.record import Answer, Record, Stage
from fedge.report.snapshot import Snapshot

#: What ends the names of the files that fedge writes, so that it replaces its own and no others.
_ENDING = ".fedge"
#: Reading a run again may take this share of the time since it was read last.
_SHARE = 0.05
_OF_A_DEVICE = ("bytes_up", "bytes_down", "peak_memory", "energy_j")


class Scalar(NamedTuple):
    """One point: ``step`` is the round, counted from 1; ``wall`` is in seconds since 1970."""

    tag: str
    step: int
    value: float
    wall: float


def require_tensorboard() -> None:
    """MissingError where the package that writes event files isn't installed."""
    if find_spec("tensorboardX") is None:
        raise MissingError("writing for TensorBoard needs tensorboardX", hint="pip install 'fedge[tensorboard]'")


def write_board(run: Path, parent: Path) -> Path:
    """Write an event file of a run in ``parent/<its folder's name>``; returns that folder.

    Raises MissingError when it isn't a run or tensorboardX isn't installed, FedgeError when nothing can be written.
    """
    board = Board(run, parent / run.resolve().name)
    board.close()
    return board.folder


def follower(onward: Callable[[Snapshot], None] | None = None) -> Callable[[Snapshot], None]:
    """What a run shows its snapshots to: it keeps ``RUN/tensorboard`` up to date, and hands them ``onward``.

    Raises MissingError at once when tensorboardX isn't installed.
    """
    require_tensorboard()
    board: Board | None = None
    seen = 0

    def look(snapshot: Snapshot) -> None:
        nonlocal board, seen
        if onward is not None:
            onward(snapshot)
        run = Path(snapshot.run)
        told = run / "metrics.jsonl"
        size = told.stat().st_size if told.exists() else 0
        ended = snapshot.phase == "ended"
        if size == seen and not ended:
            return
        seen = size
        if board is None:
            board = Board(run, run / "tensorboard")
        if ended:
            board.close()
        else:
            board.follow()

    return look


class Board:
    """An event file that follows a run as it grows. What an earlier one of fedge's holds in ``folder`` is replaced.

    Raises MissingError when it isn't a run or tensorboardX isn't installed, FedgeError when nothing can be written.
    """

    def __init__(self, run: Path, folder: Path):
        require_tensorboard()
        from tensorboardX import SummaryWriter

        self.run = run
        self.folder = folder
        record = Record(run)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for old in folder.glob(f"events.out.tfevents.*{_ENDING}"):
                old.unlink()
            self._writer = SummaryWriter(str(folder), filename_suffix=_ENDING)
        except OSError as error:
            raise FedgeError(f"{folder} can't be written: {error.strerror or error}") from error
        began = record.when.timestamp() if record.when else None
        self._writer.add_text("federation", f"```\n{record.resolved}```", walltime=began)
        self._written: set[tuple[str, int]] = set()
        self._cost, self._last = 0.0, float("-inf")

    def follow(self) -> None:
        """Write what is new, unless the run was read a moment ago: reading it costs more as it grows.

        To be called between rounds, for what is written of a round stays as it is.
        """
        if time.monotonic() - self._last >= self._cost / _SHARE:
            self._write()

    def close(self) -> None:
        """Write what is left and end the file."""
        self._write()
        self._writer.close()

    def _write(self) -> None:
        began = time.monotonic()
        for scalar in scalars(Record(self.run)):
            if scalar[:2] not in self._written:
                self._written.add(scalar[:2])
                self._writer.add_scalar(scalar.tag, scalar.value, scalar.step, walltime=scalar.wall)
        self._writer.flush()
        self._last = time.monotonic()
        self._cost = self._last - began


def scalars(record: Record) -> Iterator[Scalar]:
    """Every point of a run.

    ``train/accuracy`` and the like are the model's; ``train/bytes_up`` is a round's sum over its devices,
    ``train/peak_memory`` the highest of them; ``train-devices/bytes_up/phone-00`` is one device's. Units are those of
    ``metrics.jsonl``: seconds, bytes, joules.
    """
    words = Counter(stage.name for stage in record.stages)
    names = [stage.name if words[stage.name] == 1 else f"{stage.index}-{stage.name}" for stage in record.stages]
    walls = _walls(record)
    for test in record.tests:
        wall = walls[test.stage, test.round]
        for name, value in test.metrics.items():
            yield Scalar(f"{names[test.stage]}/{name}", test.round + 1, value, wall)
    answers: dict[tuple[int, int], list[Answer]] = defaultdict(list)
    for answer in record.answers:
        answers[answer.stage, answer.round].append(answer)
    lost = Counter((loss.stage, loss.round) for loss in record.losses)
    for place, given in sorted(answers.items(), key=lambda pair: pair[0]):
        stage, step, wall = names[place[0]], place[1] + 1, walls[place]
        start, end = record.stages[place[0]].rounds[place[1]]
        for name, value in {"virtual_s": end - start, "lost": lost[place], **_sums(given)}.items():
            yield Scalar(f"{stage}/{name}", step, value, wall)
        for answer in given:
            for name, value in _of_a_device(answer).items():
                yield Scalar(f"{stage}-devices/{name}/{answer.device}", step, value, wall)
    for stage_ended in record.stages:
        yield from _closing(stage_ended, names[stage_ended.index], walls)


def _sums(given: Sequence[Answer]) -> dict[str, float]:
    """A round's answers together: of memory the highest peak, of the rest the sum."""
    told: dict[str, float] = {"answered": len(given)}
    for name in _OF_A_DEVICE:
        values = [answer.said[name] for answer in given if answer.said.get(name) is not None]
        if values:
            told[name] = max(values) if name == "peak_memory" else sum(values)
    return told


def _of_a_device(answer: Answer) -> dict[str, float]:
    said = answer.said
    told = {"virtual_s": answer.arrival - answer.began}
    told |= {name: said[name] for name in _OF_A_DEVICE if said.get(name) is not None}
    loss = said.get("counts", {}).get("loss")
    return told | ({"loss": loss} if isinstance(loss, (int, float)) else {})


def _closing(stage: Stage, name: str, walls: dict[tuple[int, int], float]) -> Iterator[Scalar]:
    """Each device's own accuracy, which is taken once, when its stage ends."""
    last = max(stage.rounds, default=0)
    for line in stage.devices:
        for figure in ("accuracy", "personal_accuracy"):
            if line.get(figure) is not None:
                tag = f"{name}-devices/{figure}/{line['device']}"
                yield Scalar(tag, last + 1, line[figure], walls[stage.index, last])


def _walls(record: Record) -> dict[tuple[int, int], float]:
    """When each round had ended, in wall time: when the next one began; the last one at the run's last event."""
    walls: dict[tuple[int, int], float] = defaultdict(time.time)
    order = sorted((stage.index, number) for stage in record.stages for number in stage.rounds)
    times = [float(event["time"]) for event in record.events if event.get("time") is not None]
    for place, following in pairwise(order):
        began = record.walls.get(following)
        if began is not None:
            walls[place] = began
    if order and times and record.status not in ("running", "unknown"):
        walls[order[-1]] = max(times)
    return walls
