"""What methods were measured to be worth, laid on a menu: the order of quality where someone has measured it. No torch.

``fedge compare --learn FILE`` writes such a file from runs that had one method each::

    {"task": "…", "metric": "accuracy",
     "rows": [{"method": "lora", "variant": {"depth": 0.5}, "worth": 0.84, "spread": 0.01, "n": 3}, …]}

``task`` is ``fingerprint``'s; ``worth`` is the metric, more being better; ``spread`` how far the seeds lie apart.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from fedge.errors import ConfigError, Problem
from fedge.plan.choose import Offer

#: Differences below this share of a metric are taken for none when a file says nothing of the spread.
FLAT = 0.01


def fingerprint(model: str, dataset: str, task: str) -> str:
    """What two federations share whose measurements hold for each other: model, data set (by name) and task."""
    about = [Path(model).name, Path(dataset).name, task]
    return sha256(json.dumps(about).encode()).hexdigest()[:16]


def read_learned(path: Path) -> dict[str, Any]:
    """The file. Raises ConfigError, without a place, for one that can't be read or isn't of this form."""
    try:
        found = json.loads(path.read_text())
        rows = [
            {
                "method": str(row["method"]),
                "variant": dict(row.get("variant") or {}),
                "worth": float(row["worth"]),
                "spread": float(row.get("spread") or 0.0),
            }
            for row in found["rows"]
        ]
        return {"task": str(found["task"]), "metric": str(found.get("metric", "")), "rows": rows}
    except OSError as error:
        problem = Problem(f"{path} can't be read: {error.strerror}", hint="fedge compare RUN… --learn writes it")
        raise ConfigError(problem) from error
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path} is not what `fedge compare --learn` writes: {error}") from error


def weighed(menu: Sequence[Offer], learned: Mapping[str, Any]) -> tuple[Offer, ...]:
    """The menu with what was measured of each offer, and its tier.

    A row counts for the offer of its method and variant; where a method was measured in one variant alone, for no
    other. Offers whose worth lies within the spread (at least ``FLAT``) of the best one of a tier share that tier, so
    that where a ladder is flat the choice goes by cost. What nobody measured has no tier and comes last.
    """
    known = {(row["method"], _key(row["variant"])): row for row in learned["rows"]}
    rows = {offer.index: known.get((offer.method, _key(offer.variant))) for offer in menu}
    measured = sorted((o for o in menu if rows[o.index]), key=lambda o: -_row(rows, o)["worth"])
    tiers: dict[int, int] = {}
    tier, top, width = -1, 0.0, 0.0
    for offer in measured:
        row = _row(rows, offer)
        if tier < 0 or row["worth"] < top - width:
            tier, top = tier + 1, row["worth"]
            width = max(FLAT * abs(top), row["spread"])
        tiers[offer.index] = tier
    worth = {offer.index: _row(rows, offer)["worth"] for offer in measured}
    return tuple(replace(offer, worth=worth.get(offer.index), tier=tiers.get(offer.index)) for offer in menu)


def _row(rows: Mapping[int, Any], offer: Offer) -> dict[str, Any]:
    found: dict[str, Any] = rows[offer.index]
    return found


def _key(variant: Mapping[str, Any]) -> str:
    return json.dumps(variant, sort_keys=True, default=list)
