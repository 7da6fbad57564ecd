"""The rate of a paced message of a second or more, to a device and from it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fedge.emulation.link import Link
from fedge.run.paced import ends
from tools.fidelity.seen import against

RATES = (0.25, 1.0, 8.0, 100.0)


def measure(quick: bool) -> Iterator[dict[str, Any]]:
    """Every rate in Mbit/s, both ways, by messages of a second (quick) or two."""
    repeats, seconds = (1, 1.0) if quick else (5, 2.0)
    for rate in RATES:
        size = round(rate * 1e6 / 8 * seconds)
        with ends(Link(rate * 1e6, rate * 1e6)) as pair:
            found = [pair.exchange(size, size) for _ in range(repeats)]
        for way, place in (("down", 0), ("up", 1)):
            seen = [size * 8e-6 / took[place] for took in found]
            yield against(f"rate {way}, {rate:g} Mbit/s, {seconds:g} s", rate, seen, "Mbit/s", within=2.0)
