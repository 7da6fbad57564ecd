"""How long work would have taken on a device, from counts alone: no clock is read, so every host says the same.

The three costs are added up. A classic roofline takes the larger of arithmetic and traffic, as if one hid behind the
other; the small operations of training on a CPU come one after another, each either starved or busy, so both are paid.
In our trials (24 combinations of model and method, one thread) arithmetic alone missed the measured time of a step by
30 % in the median when judging models that it was not fitted on, arithmetic with traffic by 12 %, and with a cost for
every dispatched operation by 5 % (worst case 36 %). How the cost per operation carries over to other processors is
not validated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Rates:
    """What a device sustains: flop/s, bytes/s of memory traffic, and seconds for each dispatched operation.

    ``flops`` is that of products of matrices; ``slower`` says how many times as long an operation takes in another
    family of arithmetic (a depthwise convolution, say).
    """

    flops: float
    memory_bandwidth: float
    per_op: float = 0.0
    slower: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        if not (self.flops > 0 and self.memory_bandwidth > 0 and self.per_op >= 0):
            raise ValueError(f"rates must be above zero: {self}")


def compute_seconds(
    flops: float, traffic: float, ops: float, rates: Rates, kinds: Mapping[str, float] | None = None
) -> float:
    """Seconds for ``flops`` operations of arithmetic, ``traffic`` bytes read and written, and ``ops`` dispatches.

    ``kinds``: the share of ``flops`` that each family of arithmetic has; the rest are products of matrices.
    """
    arithmetic = flops / rates.flops
    if kinds:
        arithmetic *= 1 + sum(kinds.get(name, 0.0) * (times - 1) for name, times in rates.slower)
    return arithmetic + traffic / rates.memory_bandwidth + ops * rates.per_op
