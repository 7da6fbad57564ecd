"""Where each device computes and what it has to itself, as the processes of a stage read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from fedge.core.cost import Budget
from fedge.run.states import load_state, save_state


@dataclass(frozen=True)
class Place:
    """A device's budget, its rows (indices into the training split), what it is pinned to, and where it logs."""

    budget: Budget
    rows: np.ndarray
    pin: str | None
    log: Path


def save_places(places: Mapping[str, Place], path: Path) -> None:
    """Write a stage's places; the zygote reads them once, and every device inherits them."""
    state = {
        name: {
            "budget": asdict(place.budget),
            "rows": torch.from_numpy(np.ascontiguousarray(place.rows, dtype=np.int64)),
            "pin": place.pin,
            "log": str(place.log),
        }
        for name, place in places.items()
    }
    save_state(state, path)


def load_places(path: Path) -> dict[str, Place]:
    """Read what ``save_places`` wrote."""
    return {
        name: Place(Budget(**plain["budget"]), plain["rows"].numpy(), plain["pin"], Path(plain["log"]))
        for name, plain in load_state(path).items()
    }
