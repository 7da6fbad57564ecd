"""Who is asked in a round: drawn among the devices that are there, by chance, or by what asking them is worth.

Every draw hashes (seed, stage, round, device), so that it depends on no order and a resumed run draws the same. A draw
with weights takes the devices with the largest ``u^(1/w)`` (Efraimidis and Spirakis 2006), ``u`` being the hash.

Two draws are for private stages, whose accounts rest on them: ``poisson`` takes each device with the same probability
on its own, whoever else comes; ``passes`` gives everyone one turn before anyone has another.

``oort`` follows Lai et al. 2021 (arXiv 2010.06081). A device that has taken part is worth

    ``U = n · loss · min(1, T / t)^α + sqrt(0.1 ln R / L)``

with its rows n, the mean loss that it last met, the seconds t that its last round took, the median T of these,
``α = 2``, the first term divided by the largest, the present round R and the round L in which it last took part. Among
those at least 95 % as good as the last that would fit in, chance decides by U. A share of the cohort (0.9 at first, 2 %
less each round, never below 0.2) goes to devices that were never asked, the faster ones likelier. Here a mean loss
stands for the root of the mean square that the paper takes, since a device tells no other; the paper's pacer is the
median.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Collection, Mapping, Sequence

from fedge.core.rng import seed_for
from fedge.plan.choose import estimate
from fedge.run.brief import Brief
from fedge.run.ledger import Account

_ALPHA = 2.0
_CUT = 0.95
_EXPLORE, _DECAY, _LEAST = 0.9, 0.98, 0.2


def available(brief: Brief, account: Account, round: int) -> bool:
    """Whether a device is there in a round."""
    return _hash(brief, round, account.name, "available") < account.availability


def present(
    brief: Brief, accounts: Sequence[Account], round: int, now: float, paused: Collection[str]
) -> tuple[list[Account], dict[str, str]]:
    """Those of the devices that are there at ``now`` (emulated seconds), and the others with what is known of why."""
    here, absent = [], {}
    for account in accounts:
        if account.name in paused:
            absent[account.name] = "paused by hand"
        elif available(brief, account, round) and account.presence.there(now):
            here.append(account)
        else:
            absent[account.name] = ""
    return here, absent


def when_anyone(accounts: Sequence[Account], now: float) -> float:
    """When the first device is back, in emulated seconds; ``now`` where one is there, or none will come."""
    if any(account.presence.there(now) for account in accounts):
        return now
    first = min((account.presence.back(now) for account in accounts), default=math.inf)
    return first if first < math.inf else now


def draw(brief: Brief, here: Sequence[Account], round: int, everyone: Sequence[str] = ()) -> tuple[str, ...]:
    """The round's cohort out of the devices that are there, in device order; ``everyone``: all of the stage's."""
    count = brief.asked
    if brief.sampling == "poisson":
        share = (count or len(everyone)) / len(everyone)
        return tuple(sorted(a.name for a in here if _hash(brief, round, a.name, "cohort") < share))
    if brief.sampling == "passes":
        number, place = divmod(round, rounds_of_a_pass(len(everyone), count))
        order = sorted(everyone, key=lambda name: seed_for(*brief.seeds, "pass", number, name))
        size = min(count or len(everyone), len(everyone))
        turn = set(order[place * size : (place + 1) * size])
        return tuple(sorted(account.name for account in here if account.name in turn))
    if count is None or len(here) <= count:
        return tuple(sorted(account.name for account in here))
    kinds: dict[str, Callable[[], list[str]]] = {
        # the lowest hashes, whole: a device's place does not depend on who else is there
        "uniform": lambda: sorted((a.name for a in here), key=lambda n: seed_for(*brief.seeds, round, n, "cohort")),
        "availability": lambda: _weighted(brief, {a.name: 1.0 / a.availability for a in here}, round),
        "rows": lambda: _weighted(brief, {a.name: float(a.rows) for a in here}, round),
        "oort": lambda: _oort(brief, here, count, round),
    }
    return tuple(sorted(kinds[brief.sampling]()[:count]))


def rounds_of_a_pass(devices: int, asked: int | None) -> int:
    """Rounds in which every device has its turn once."""
    return -(-devices // min(asked or devices, devices))


def _weighted(brief: Brief, weights: Mapping[str, float], round: int) -> list[str]:
    """Devices in the order of a draw without replacement by weight."""

    def place(name: str) -> tuple[float, str]:
        # ln of u^(1/w), which does not underflow
        return (math.log(max(_hash(brief, round, name, "cohort"), 1e-300)) / max(weights[name], 1e-300), name)

    return sorted(weights, key=place, reverse=True)


def _oort(brief: Brief, here: Sequence[Account], count: int, round: int) -> list[str]:
    known = {account.name: account for account in here if account.met_loss is not None}
    new = {account.name: 1.0 / _seconds(brief, account) for account in here if account.name not in known}
    share = max(_LEAST, _EXPLORE * _DECAY**round)
    fresh = _weighted(brief, new, round)[: max(count - len(known), math.ceil(share * count))]
    worth = utilities(list(known.values()), round)
    places = count - len(fresh)
    order = sorted(worth, key=lambda name: (-worth[name], name))
    if not places or not order:
        return fresh
    bar = _CUT * worth[order[min(places, len(order)) - 1]]
    good = {name: worth[name] for name in order if worth[name] >= bar}
    return [*fresh, *_weighted(brief, good, round)[:places]]


def utilities(known: Sequence[Account], round: int) -> dict[str, float]:
    """What asking each device that has taken part is worth; see the module's text."""
    if not known:
        return {}
    preferred = statistics.median(account.took for account in known)
    gains = {}
    for account in known:
        haste = min(1.0, preferred / account.took) if account.took > 0 else 1.0
        gains[account.name] = account.rows * (account.met_loss or 0.0) * haste**_ALPHA
    most = max(gains.values()) or 1.0
    return {
        account.name: gains[account.name] / most + math.sqrt(0.1 * math.log(max(round, 1)) / max(account.last_round, 1))
        for account in known
    }


def _seconds(brief: Brief, account: Account) -> float:
    """What a round would take a device that was never asked, by the plan."""
    if account.choice is None:
        return math.inf
    return max(estimate(brief.menu[account.choice], account.budget).seconds, 1e-9)


def _hash(brief: Brief, round: int, name: str, purpose: str) -> float:
    """A number in [0, 1) that depends on its names alone."""
    return (seed_for(*brief.seeds, round, name, purpose) >> 10) / float(1 << 53)
