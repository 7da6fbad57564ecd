"""Sustained rates of software stacks, fitted to what was measured on devices: few numbers, and one rule for all.

A step of a stack on a device takes

    t = c · d · ( Σ_k F_k / (e_k C) + B / (b M) + N · o ) + s

with F_k its floating-point operations by family k, B its bytes of traffic, N its dispatched operations; C and M the
device's own FLOP/s and bytes/s; e_k, b, o what of that the stack sustains; c a factor of the class of devices, d one of
the device, s seconds of a step that are no computing (reading pictures from a card, where a study timed that too).
All are positive and fitted as logarithms: the robust least squares (soft L1) of log t, with a normal prior on every
logarithm around the values of ``PRIOR``, wide for the stack and narrow for class and device. So a stack that was
measured twice stays near the prior, and one that was measured seventy times goes where its data lead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from fedge.core.cost import KINDS
from fedge.meter.work import Work

#: What is fitted of a stack: families of arithmetic, traffic, dispatch, and seconds of a step beside computing.
FAMILIES = ("matmul", *KINDS)
TERMS = (*FAMILIES, "traffic", "dispatch", "start")
#: Before anything is measured: the shares of a device's own rates that a stack sustains, seconds an operation, seconds
#: a step. How far a stack may stray from them (a deviation in natural logarithms).
PRIOR = {
    "matmul": 0.7,
    "conv": 0.4,
    "pointwise": 0.4,
    "conv_backward": 0.4,
    "depthwise": 0.05,
    "recurrent": 0.2,
    "traffic": 0.4,
    "dispatch": 2e-5,
    "start": 0.1,
}
WIDE = {"matmul": 1.0, "traffic": 1.0, "dispatch": 1.0, "start": 2.0}
OTHERS = 1.0
#: How far all of a stack may be quicker or slower than its prior, together; a class than its stack; a device than its
#: class; a measurement than all that.
WHOLE, CLASS, DEVICE, NOISE = 3.0, 0.7, 0.4, 0.15


@dataclass(frozen=True)
class Seen:
    """A step of a stack on a device: its class, own rates, the work, and the seconds that it took."""

    device: str
    kind: str
    flops: float
    bandwidth: float
    work: Work
    seconds: float
    starts: bool = False


@dataclass(frozen=True)
class Fitted:
    """A stack's terms (``TERMS``: shares of the device's rates, seconds), its factors by class and by device."""

    terms: Mapping[str, float]
    classes: Mapping[str, float] = field(default_factory=dict)
    devices: Mapping[str, float] = field(default_factory=dict)

    def seconds(
        self, device: str, kind: str, flops: float, bandwidth: float, work: Work, starts: bool = False
    ) -> float:
        """What a step takes on a device, which need not be one that was measured; ``starts``: pictures read too."""
        columns = _columns(flops, bandwidth, work)
        terms = [1 / self.terms[name] for name in (*FAMILIES, "traffic")] + [self.terms["dispatch"]]
        factor = self.classes.get(kind, 1.0) * self.devices.get(device, 1.0)
        return float(factor * np.dot(columns, terms) + (self.terms["start"] if starts else 0.0))


def _columns(flops: float, bandwidth: float, work: Work) -> NDArray[np.float64]:
    """Seconds of each term but the last at the device's own rates, and how many operations are dispatched."""
    matmul = work.flops - sum(work.kinds)
    return np.array([n / flops for n in (matmul, *work.kinds)] + [work.traffic / bandwidth, work.ops])


def fit(seen: Sequence[Seen]) -> Fitted:
    """A stack's terms and factors; with nothing seen the prior."""
    kinds = sorted({one.kind for one in seen})
    devices = sorted({one.device for one in seen})
    prior = np.log([1 / PRIOR[name] for name in (*FAMILIES, "traffic")] + [PRIOR["dispatch"], PRIOR["start"]])
    width = np.array([WIDE.get(name, OTHERS) for name in TERMS])
    if not seen:
        return _fitted(prior, 0.0, {}, {})
    matrix = np.array([_columns(one.flops, one.bandwidth, one.work) for one in seen])
    asked = np.log([one.seconds for one in seen])
    kind = np.array([kinds.index(one.kind) for one in seen])
    device = np.array([devices.index(one.device) for one in seen])
    starts = np.array([one.starts for one in seen], dtype=np.float64)
    n = len(TERMS)

    def residuals(x: NDArray[np.float64]) -> NDArray[np.float64]:
        terms, whole, by_kind, by_device = x[:n], x[n], x[n + 1 : n + 1 + len(kinds)], x[n + 1 + len(kinds) :]
        factor = np.exp(whole + by_kind[kind] + by_device[device])
        told = np.log(factor * (matrix @ np.exp(terms[:-1])) + starts * np.exp(terms[-1]))
        miss = (told - asked) / NOISE
        robust = np.sign(miss) * np.sqrt(2 * (np.sqrt(1 + miss**2) - 1))
        priors = [(terms - prior) / width, [whole / WHOLE], by_kind / CLASS, by_device / DEVICE]
        return np.concatenate([robust, *[np.asarray(part) for part in priors]])

    start = np.concatenate([prior, np.zeros(1 + len(kinds) + len(devices))])
    start[n] = float(np.median(asked - np.log(matrix @ np.exp(prior[:-1]) + starts * np.exp(prior[-1]))))
    found = least_squares(residuals, start, method="trf", max_nfev=400).x
    by_kind, by_device = found[n + 1 : n + 1 + len(kinds)], found[n + 1 + len(kinds) :]
    # what all classes share belongs to the stack, so that a class never seen gets it
    return _fitted(
        found[:n],
        float(found[n] + by_kind.mean()),
        {name: float(np.exp(value - by_kind.mean())) for name, value in zip(kinds, by_kind, strict=True)},
        {name: float(np.exp(value)) for name, value in zip(devices, by_device, strict=True)},
    )


def _fitted(
    terms: NDArray[np.float64], whole: float, classes: Mapping[str, float], devices: Mapping[str, float]
) -> Fitted:
    shares = {name: float(np.exp(-terms[i] - whole)) for i, name in enumerate((*FAMILIES, "traffic"))}
    seconds = {"dispatch": float(np.exp(terms[-2] + whole)), "start": float(np.exp(terms[-1]))}
    return Fitted({**shares, **seconds}, classes, devices)
