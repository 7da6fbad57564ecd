"""What is damaged: messages and files of a real run, recorded once a campaign."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedge.run.launcher import Options, up
from fedge.wire.exchange import Event, Exchange

TINY = Path(__file__).parents[1] / "chaos" / "tiny.yaml"

Frames = list[bytes]


@dataclass
class Recording:
    """A run's folder, and its messages by connection, in order: ``up`` from devices, ``down`` to them."""

    folder: Path
    up: dict[bytes, list[Frames]]
    down: dict[bytes, list[Frames]]


def record(place: Path, *overrides: str) -> Recording:
    """Run the smallest federation in ``place`` and keep every message of it."""
    with _overheard() as (upwards, downwards):
        run = up(TINY, overrides, Options(runs=place / "runs", best_effort=True), lambda line: None)
    return Recording(run.folder, upwards, downwards)


@contextmanager
def _overheard() -> Iterator[tuple[dict[bytes, list[Frames]], dict[bytes, list[Frames]]]]:
    upwards: dict[bytes, list[Frames]] = {}
    downwards: dict[bytes, list[Frames]] = {}
    take, outgoing = Exchange.take, Exchange.outgoing

    def taken(self: Exchange, identity: bytes, frames: Sequence[Any], owner: str | None = None) -> list[Event]:
        upwards.setdefault(identity, []).append([bytes(frame) for frame in frames])
        return take(self, identity, frames, owner)

    def given(self: Exchange) -> Iterator[tuple[bytes, list[Any]]]:
        for identity, frames in outgoing(self):
            downwards.setdefault(identity, []).append([bytes(frame) for frame in frames])
            yield identity, frames

    Exchange.take, Exchange.outgoing = taken, given  # type: ignore[method-assign,assignment]
    try:
        yield upwards, downwards
    finally:
        Exchange.take, Exchange.outgoing = take, outgoing  # type: ignore[method-assign]
