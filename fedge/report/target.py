"""What it cost to reach a target, and how good a model was within a budget: emulated seconds, bytes, joules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedge.errors import FedgeError
from fedge.report.record import Record, Tested
from fedge.units import parse_bytes, parse_seconds

#: Metrics of which less is better.
_LESS = ("loss", "perplexity")


@dataclass(frozen=True)
class Target:
    """A metric and the value that it must reach, such as accuracy 0.9."""

    metric: str
    value: float

    def met(self, metrics: dict[str, float]) -> bool:
        """Whether a test reached it; False where the test says nothing of it."""
        found = metrics.get(self.metric)
        if found is None:
            return False
        return found <= self.value if self.metric in _LESS else found >= self.value


@dataclass(frozen=True)
class Cost:
    """Emulated seconds since the stage began, bytes both ways and joules of all devices; rounds that had ended."""

    virtual_s: float
    bytes: int
    energy_j: float
    rounds: int


def read_target(text: str) -> Target:
    """``accuracy=0.9``; ValueError in plain words for anything else."""
    name, equals, value = text.partition("=")
    try:
        if not equals or not name.strip():
            raise ValueError
        return Target(name.strip(), float(value))
    except ValueError:
        raise ValueError(f"'{text}': expected a metric and its value, such as accuracy=0.9") from None


def reached(record: Record, stage: int, target: Target) -> Cost | None:
    """What a stage spent until its model was first tested to be so good; None where it never was.

    Tests come as often as ``evaluate.every`` says, so the cost is that of the first test at or after the target.
    """
    first = next((test for test in record.tests if test.stage == stage and target.met(test.metrics)), None)
    return None if first is None else spent(record, first)


def spent(record: Record, test: Tested) -> Cost:
    """What a stage had spent when its model was tested."""
    said: Sequence[dict[str, object]] = [
        answer.said for answer in record.answers if answer.stage == test.stage and answer.round <= test.round
    ]

    def total(name: str) -> float:
        return sum(float(value) for line in said if isinstance(value := line.get(name), (int, float)))

    seconds = test.virtual_s - record.stages[test.stage].began
    return Cost(seconds, int(total("bytes_up") + total("bytes_down")), total("energy_j"), test.round + 1)


@dataclass(frozen=True)
class Within:
    """A budget for a stage: emulated seconds, or bytes both ways of all devices; None: no limit."""

    seconds: float | None = None
    bytes: int | None = None

    def holds(self, cost: Cost) -> bool:
        """Whether so much may be spent."""
        return (self.seconds is None or cost.virtual_s <= self.seconds) and (
            self.bytes is None or cost.bytes <= self.bytes
        )


def read_within(text: str) -> Within:
    """``90s``, ``20MiB`` or both with a comma; ValueError in plain words for anything else."""
    seconds: float | None = None
    sent: int | None = None
    for part in text.split(","):
        try:
            seconds = parse_seconds(part.strip())
        except (ValueError, FedgeError):
            try:
                sent = parse_bytes(part.strip())
            except (ValueError, FedgeError):
                raise ValueError(f"'{text}': expected a time, bytes or both, such as 90s,20MiB") from None
    return Within(seconds, sent)


def best_within(record: Record, stage: int, budget: Within) -> Tested | None:
    """The last test of a stage that its budget carries; None where not even the first was within it."""
    tests = [test for test in record.tests if test.stage == stage and budget.holds(spent(record, test))]
    return tests[-1] if tests else None
