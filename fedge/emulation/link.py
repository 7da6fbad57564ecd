"""How long a message takes over a device's link, from its size alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fedge.emulation.rate import Rate


@dataclass(frozen=True)
class Link:
    """``down`` and ``up`` in bit/s of payload, ``latency`` of a round trip and ``jitter`` in s, ``loss`` as a share.

    ``changing``: both rates over time, (down, up), in place of ``down`` and ``up``, which are then their means.
    """

    down: float
    up: float
    latency: float = 0.0
    jitter: float = 0.0
    loss: float = 0.0
    changing: tuple[Rate, Rate] | None = None

    def __post_init__(self) -> None:
        if not (self.down > 0 and self.up > 0 and self.latency >= 0 and self.jitter >= 0 and 0 <= self.loss < 1):
            raise ValueError(f"a link needs rates above zero, no negative time and a loss below 1: {self}")

    def to_json(self) -> dict[str, Any]:
        """It as JSON, for another process."""
        changing = self.changing and [(rate.starts, rate.rates, rate.length) for rate in self.changing]
        return {**vars(self), "changing": changing}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Link:
        """The link that ``to_json`` gave."""
        down_up = [Rate(tuple(at), tuple(rates), end) for at, rates, end in plain["changing"] or ()]
        return cls(**{**plain, "changing": (down_up[0], down_up[1]) if down_up else None})


def transfer_seconds(
    nbytes: int, link: Link, direction: Literal["down", "up"], draw: float | None = None, start: float | None = None
) -> float:
    """Seconds from the first byte sent to the last one received, never less for more bytes.

    A lost share is sent again, and again when lost again: 1/(1-loss) times the bytes in the mean. Half a round trip
    comes on top, moved by jitter where a ``draw`` from [0, 1) is given: evenly by up to ±jitter, and by no more than
    that half trip, so that it neither goes below zero nor shifts the mean. ``start``: the second at which the first
    byte is sent, which tells on a link whose rates change (None: at their mean).
    """
    way = 0 if direction == "down" else 1
    rate = (link.down, link.up)[way]
    trip = link.latency / 2
    if draw is not None:
        trip += min(link.jitter, trip) * (2 * draw - 1)
    if link.changing is not None and start is not None:
        return link.changing[way].finish(start, nbytes / (1 - link.loss)) - start + trip
    return nbytes * 8 / rate / (1 - link.loss) + trip
