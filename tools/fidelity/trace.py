"""A recorded cellular link replayed: the bytes that come through in every ten seconds.

The recordings are not fedge's to hand on: they are read from ``device_traces/cellular_bandwidth_1s.csv`` in the
developers' shared data, which FEDGE_SHARED_DATA names where it does not lie beside the repository.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from typing import Any

from fedge.emulation.link import Link
from fedge.emulation.rate import Rate
from fedge.errors import MissingError
from fedge.run.paced import ends
from tools.fidelity.seen import against

RECORDINGS = (("Verizon-LTE-short", "up"), ("ATT-LTE-driving-2016", "down"))
#: Seconds of a window, and bytes of each message that fills the link.
WINDOW, PIECE = 10, 16 << 10


def recording(name: str, way: str) -> Rate:
    """A recording's rates, one a second."""
    told = os.environ.get("FEDGE_SHARED_DATA")
    root = Path(told) if told else Path(__file__).resolve().parents[3] / "shared" / "data"
    path = root / "device_traces" / "cellular_bandwidth_1s.csv"
    if not path.is_file():
        raise MissingError(f"{path} is not there", hint="FEDGE_SHARED_DATA says where the shared data lies")
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if (row["trace"], row["direction"]) == (name, way)]
    rates = tuple(float(row["mbps"]) * 1e6 for row in rows)
    return Rate(tuple(map(float, range(len(rates)))), rates, float(len(rates)))


def measure(quick: bool) -> Iterator[dict[str, Any]]:
    """Each recording's first minute (quick: 20 s of the first), window by window."""
    for name, way in RECORDINGS[: 1 if quick else None]:
        rate = recording(name, way)
        windows = 2 if quick else 6
        mean = rate.bits(rate.length) / rate.length
        came = [0] * windows
        with ends(Link(mean, mean, changing=(rate, rate))) as pair:
            for moment, size in pair.stream(PIECE, float(windows * WINDOW), monotonic() + 0.2):
                if 0 <= moment < windows * WINDOW:
                    came[int(moment // WINDOW)] += size
        for window, seen in enumerate(came):
            begun = window * WINDOW
            asked = (rate.bits(begun + WINDOW) - rate.bits(begun)) / 8
            where = f"{name} {way}, seconds {begun} to {begun + WINDOW}"
            yield against(f"bytes replayed, {where}", asked, [seen], "B", within=5.0)
