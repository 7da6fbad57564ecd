"""Axes: where round numbers stand between two values, and what they are called."""

from __future__ import annotations

import math
from dataclasses import dataclass

_TIMES = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))
_BYTES = ((2.0**40, "TiB"), (2.0**30, "GiB"), (2.0**20, "MiB"), (1024.0, "KiB"), (1.0, "B"))


@dataclass(frozen=True)
class Scale:
    """From ``low`` to ``high``; ``ticks`` are pairs of value and label, in ``unit``."""

    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    unit: str = ""

    def share(self, value: float) -> float:
        """Where a value stands: 0 at the low end, 1 at the high one, held between them."""
        return min(1.0, max(0.0, (value - self.low) / (self.high - self.low)))

    def percent(self, value: float) -> str:
        return f"{100 * self.share(value):.4g}%"


def seconds_scale(high: float) -> Scale:
    """From 0 to ``high`` seconds, in a unit that suits them."""
    return _in_units(high, _TIMES, 3.0)


def bytes_scale(high: float) -> Scale:
    """From 0 to ``high`` bytes, in binary units."""
    return _in_units(high, _BYTES, 2.0)


def value_scale(low: float, high: float, count: int = 5) -> Scale:
    """From a round number below ``low`` to one above ``high``."""
    size = max(abs(low), abs(high))
    if high - low <= 1e-9 * max(size, 1e-3):
        around = 0.05 * size if size > 1e-6 else 0.05
        low, high = low - around, high + around
    step = _step((high - low) / count)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return Scale(first * step, last * step, tuple((n * step, _label(n * step, step)) for n in range(first, last + 1)))


def _in_units(high: float, units: tuple[tuple[float, str], ...], least: float) -> Scale:
    if high <= 0:
        high = units[-1][0] if units is _BYTES else 1.0
    size, unit = next((pair for pair in units if high >= least * pair[0]), units[-1])
    step = _step(high / size / 6)
    ticks = tuple((n * step * size, _label(n * step, step)) for n in range(int(high / size / step + 1e-9) + 1))
    return Scale(0.0, high, ticks, unit)


def _step(rough: float) -> float:
    """The nearest of 1, 2, 5 times a power of ten that isn't below ``rough``."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(mantissa * power for mantissa in (1, 2, 5, 10) if mantissa * power >= rough * (1 - 1e-9))


def _label(value: float, step: float) -> str:
    places = max(0, -math.floor(math.log10(step) + 1e-9))
    return f"{value:.{places}f}"
