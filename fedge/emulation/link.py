"""How long a message takes over a device's link, from its size alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Link:
    """``down`` and ``up`` in bit/s of payload, ``latency`` of a round trip and ``jitter`` in s, ``loss`` as a share."""

    down: float
    up: float
    latency: float = 0.0
    jitter: float = 0.0
    loss: float = 0.0

    def __post_init__(self) -> None:
        if not (self.down > 0 and self.up > 0 and self.latency >= 0 and self.jitter >= 0 and 0 <= self.loss < 1):
            raise ValueError(f"a link needs rates above zero, no negative time and a loss below 1: {self}")


def transfer_seconds(nbytes: int, link: Link, direction: Literal["down", "up"], draw: float | None = None) -> float:
    """Seconds from the first byte sent to the last one received, never less for more bytes.

    A lost share is sent again, and again when lost again: 1/(1-loss) times the bytes in the mean. Half a round trip
    comes on top, moved by jitter where a ``draw`` from [0, 1) is given: evenly by up to ±jitter, and by no more than
    that half trip, so that it neither goes below zero nor shifts the mean.
    """
    rate = link.down if direction == "down" else link.up
    trip = link.latency / 2
    if draw is not None:
        trip += min(link.jitter, trip) * (2 * draw - 1)
    return nbytes * 8 / rate / (1 - link.loss) + trip
