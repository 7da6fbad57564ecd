"""The round trip of a short message: how long a question and its answer take beyond their bytes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fedge.emulation.link import Link
from fedge.run.paced import ends
from tools.fidelity.seen import against

MILLISECONDS = (5, 20, 50, 200, 600)
#: Bit/s and bytes: the bytes of a message take a microsecond.
_RATE, _BYTES = 1e9, 125


def measure(quick: bool) -> Iterator[dict[str, Any]]:
    """Round trips of every latency, as many as take a few seconds."""
    for asked in MILLISECONDS:
        repeats = 10 if quick else max(20, min(100, 6000 // asked))
        with ends(Link(_RATE, _RATE, latency=asked / 1000)) as pair:
            seen = [1000 * sum(pair.exchange(_BYTES, _BYTES)) for _ in range(repeats)]
        found = against(f"round trip, {asked} ms", asked, seen, "ms", within=1.0, relative=False)
        found["p95"] = round(sorted(seen)[int(0.95 * (len(seen) - 1))], 3)
        yield found
