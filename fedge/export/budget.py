"""What leaving early is tuned to: seconds or joules that a query may take in the mean, or the accuracy wanted."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from fedge import units
from fedge.errors import ConfigError

_JOULES = {"J": 1.0, "mJ": 1e-3}


@dataclass(frozen=True)
class Budget:
    """At most ``value`` seconds or joules, or at least ``value`` accuracy (a share)."""

    kind: Literal["seconds", "joules", "accuracy"]
    value: float


def parse_budget(text: str) -> Budget:
    """'20ms', '0.5J', '50mJ' or '90%'. ConfigError for anything else."""
    energy = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(m?J)\s*", text)
    if energy:
        return Budget("joules", float(energy[1]) * _JOULES[energy[2]])
    try:
        if "%" in text:
            return Budget("accuracy", units.parse_share(text))
        return Budget("seconds", units.parse_seconds(text, zero=False))
    except ValueError as error:
        raise ConfigError(f"--budget: {error} (20ms of time, 50mJ of energy, or 90% of accuracy)") from error
