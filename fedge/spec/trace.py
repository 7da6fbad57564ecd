"""A link's rates over time, out of a csv such as a recording of a cellular link."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fedge.errors import ConfigError, Problem


@dataclass(frozen=True)
class TraceSpec:
    """Rates in bit/s, each from its second on; after ``length`` seconds they start again."""

    file: str
    seconds: tuple[float, ...]
    down: tuple[float, ...]
    up: tuple[float, ...]
    length: float

    def mean(self, rates: tuple[float, ...]) -> float:
        """The mean of one direction's rates over the trace."""
        ends = (*self.seconds[1:], self.length)
        return sum((end - at) * rate for at, end, rate in zip(self.seconds, ends, rates, strict=True)) / self.length


@cache
def read_trace(path: Path) -> TraceSpec:
    """A trace from its file: seconds in the first column, Mbit/s in the second.

    With a header the columns ``down`` and ``up`` are taken where both are there; one column of rates serves both
    directions. The last step lasts as long as the one before it. Raises ConfigError with file and line.
    """
    lines = _lines(path)
    columns = (1, 1)
    if lines and not _is_number(lines[0][1][0]):
        header = [cell.strip().lower() for cell in lines.pop(0)[1]]
        if "down" in header and "up" in header:
            columns = (header.index("down"), header.index("up"))
    seconds: list[float] = []
    rates: list[tuple[float, float]] = []
    for number, row in lines:
        values = [row[place] if place < len(row) else "" for place in (0, *columns)]
        if not all(_is_number(value) and float(value) >= 0 for value in values):
            message = f"expected a second and Mbit/s, got {', '.join(row)!r}"
            raise ConfigError(Problem(message, file=str(path), line=number))
        second = float(values[0])
        if seconds and second <= seconds[-1]:
            message = f"second {second:g} does not come after {seconds[-1]:g}"
            raise ConfigError(Problem(message, file=str(path), line=number))
        seconds.append(second)
        rates.append((float(values[1]) * 1e6, float(values[2]) * 1e6))
    if len(seconds) < 2 or not all(any(pair[way] for pair in rates) for way in (0, 1)):
        raise ConfigError(Problem("a trace needs two rows or more, and in one a rate above zero", file=str(path)))
    shifted = tuple(second - seconds[0] for second in seconds)
    down, up = zip(*rates, strict=True)
    return TraceSpec(str(path), shifted, down, up, 2 * shifted[-1] - shifted[-2])


@cache
def read_presence(path: Path) -> tuple[tuple[float, ...], tuple[bool, ...], float]:
    """When a device is there, out of a csv: seconds in the first column, 1 (there) or 0 (away) in the second.

    From each second on it is as the row says; the last row lasts as long as the one before it, and then all begins
    again. Raises ConfigError with file and line.
    """
    lines = _lines(path)
    if lines and not _is_number(lines[0][1][0]):
        lines.pop(0)
    seconds: list[float] = []
    there: list[bool] = []
    for number, row in lines:
        word = row[1].strip() if len(row) > 1 else ""
        if not _is_number(row[0]) or float(row[0]) < 0 or word not in ("0", "1"):
            message = f"expected a second and 1 or 0, got {', '.join(row)!r}"
            raise ConfigError(Problem(message, file=str(path), line=number))
        if seconds and float(row[0]) <= seconds[-1]:
            message = f"second {float(row[0]):g} does not come after {seconds[-1]:g}"
            raise ConfigError(Problem(message, file=str(path), line=number))
        seconds.append(float(row[0]))
        there.append(word == "1")
    if len(seconds) < 2 or not any(there):
        raise ConfigError(Problem("a recording of who is there needs two rows or more, and a 1", file=str(path)))
    shifted = tuple(second - seconds[0] for second in seconds)
    return shifted, tuple(there), 2 * shifted[-1] - shifted[-2]


def _lines(path: Path) -> list[tuple[int, list[str]]]:
    """The rows that hold anything, with their numbers."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [(at, row) for at, row in enumerate(csv.reader(file), 1) if any(cell.strip() for cell in row)]
    except OSError as error:
        raise ConfigError(Problem(f"can't read the trace {path}: {error.strerror}")) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(Problem(f"no csv of seconds and Mbit/s: {error}", file=str(path))) from error


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
