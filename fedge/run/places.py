"""Where each device computes and what it has to itself, as the processes of a stage read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from fedge.core.cost import Budget
from fedge.emulation.link import Link
from fedge.run.states import load_state, save_state


@dataclass(frozen=True)
class Place:
    """A device's budget, its rows (indices into the training split), what it is pinned to, and where it logs.

    tests: the rows of the training split that are held out for its own test; None: it is tested on the test split.
    link: what a real clock paces its messages by; None under the virtual one.
    """

    budget: Budget
    rows: np.ndarray
    pin: str | None
    log: Path
    tests: np.ndarray | None = None
    link: Link | None = None


def save_places(places: Mapping[str, Place], path: Path) -> None:
    """Write a stage's places; the zygote reads them once, and every device inherits them."""
    state = {
        name: {
            "budget": asdict(place.budget),
            "rows": _tensor(place.rows),
            "tests": None if place.tests is None else _tensor(place.tests),
            "pin": place.pin,
            "log": str(place.log),
            "link": None if place.link is None else place.link.to_json(),
        }
        for name, place in places.items()
    }
    save_state(state, path)


def load_places(path: Path) -> dict[str, Place]:
    """Read what ``save_places`` wrote."""
    return {
        name: Place(
            Budget(**plain["budget"]),
            plain["rows"].numpy(),
            plain["pin"],
            Path(plain["log"]),
            None if plain["tests"] is None else plain["tests"].numpy(),
            None if plain["link"] is None else Link.from_json(plain["link"]),
        )
        for name, plain in load_state(path).items()
    }


def _tensor(indices: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(indices, dtype=np.int64))
