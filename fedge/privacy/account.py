"""What rounds have spent: epsilon at a delta, by Google's dp-accounting, and the noise that keeps within a budget.

The unit of privacy is a device: neighbouring federations differ in one device's rows being there or counting for
nothing. A round of the Gaussian mechanism on a Poisson sample of the devices, and rounds of it one after another, are
accounted by privacy loss distributions (PLD), which are tight and rounded up. Rounds of DP-FTRL, a tree of noise for
each pass over the devices, are accounted by Rényi divergence (RDP).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

#: Steps of the grid on which a privacy loss is kept; the finer one for long runs, in which rounding up adds up.
_COARSE, _FINE, _MANY = 1e-3, 1e-4, 500
#: The logarithm of more noise than anything survives.
_MOST_NOISE = 10.0


@dataclass(frozen=True)
class Release:
    """What a stage releases in its rounds.

    noise: standard deviation over sensitivity, z. sampling: probability with which a device takes part in a round, 1
    where who takes part is known. epoch: rounds in which a device takes part at most once, for trees of noise; 0: the
    noise of each round is its own.
    """

    noise: float
    sampling: float = 1.0
    epoch: int = 0


def spent(releases: Iterable[tuple[Release, int]], delta: float) -> float:
    """Epsilon at ``delta`` after so many rounds of each release; infinite where one adds no noise."""
    made = tuple((release, rounds) for release, rounds in releases if rounds)
    if any(release.noise <= 0 for release, _ in made):
        return math.inf
    return _by_trees(made, delta) if any(release.epoch for release, _ in made) else _by_losses(made, delta)


def multiplier(release: Release, rounds: int, epsilon: float, delta: float) -> float:
    """The least noise z, to three digits and rounded up, by which ``rounds`` of a release stay within a budget.

    ValueError where no noise does.
    """

    from scipy.optimize import brentq

    def over(log_noise: float) -> float:
        return math.log(spent([(replace(release, noise=math.exp(log_noise)), rounds)], delta) / epsilon)

    low, high = math.log(0.5), 0.0
    while over(high) > 0:
        low, high = high, high + 1.0
        if high > _MOST_NOISE:
            raise ValueError(f"no noise keeps {rounds} rounds within epsilon {epsilon:g} at delta {delta:g}")
    while over(low) < 0:
        low -= 0.5
    found = math.exp(brentq(over, low, high, xtol=5e-4))
    digit = 10.0 ** (math.floor(math.log10(found)) - 2)
    found = math.ceil(found / digit) * digit
    while over(math.log(found)) > 0:
        found += digit
    return float(f"{found:.3g}")


@lru_cache(maxsize=32)
def _round(noise: float, sampling: float, interval: float) -> Any:
    """The privacy loss of one round."""
    from dp_accounting.pld import privacy_loss_distribution as pld

    return pld.from_gaussian_mechanism(
        standard_deviation=noise, sampling_prob=sampling, value_discretization_interval=interval, use_connect_dots=True
    )


@lru_cache(maxsize=4096)
def _by_losses(made: tuple[tuple[Release, int], ...], delta: float) -> float:
    many = sum(rounds for release, rounds in made if release.sampling < 1) > _MANY
    interval = _FINE if many else _COARSE
    total: Any = None
    for release, rounds in made:
        if release.sampling < 1:
            loss = _round(release.noise, release.sampling, interval).self_compose(rounds)
        else:  # rounds of a Gaussian that all take part in are one of less noise
            loss = _round(release.noise / math.sqrt(rounds), 1.0, interval)
        total = loss if total is None else total.compose(loss)
    return 0.0 if total is None else float(total.get_epsilon_for_delta(delta))


@lru_cache(maxsize=4096)
def _by_trees(made: tuple[tuple[Release, int], ...], delta: float) -> float:
    import dp_accounting
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant(neighboring_relation=dp_accounting.NeighboringRelation.REPLACE_SPECIAL)
    for release, rounds in made:
        if not release.epoch:
            event: Any = dp_accounting.GaussianDpEvent(release.noise)
            accountant.compose(event, rounds)
            continue
        whole, rest = divmod(rounds, release.epoch)
        tree = dp_accounting.SingleEpochTreeAggregationDpEvent
        if whole:
            accountant.compose(tree(release.noise, release.epoch), whole)
        if rest:
            accountant.compose(tree(release.noise, rest))
    return float(accountant.get_epsilon(delta))
