"""DiLoCo: Photon's rounds with momentum 0.9 outside and AdamW's state kept inside (Douillard et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

from fedge.core.method import Card
from fedge.methods.train.photon import Photon
from fedge.methods.tuning import doc


@dataclass(frozen=True, kw_only=True)
class DiLoCo(Photon):
    """Islands that train alone for long and meet seldom; each keeps the moments of its own AdamW."""

    keep: bool = field(default=True, metadata=doc("keep the inner optimizer's state on the device between rounds"))
    outer_momentum: float = field(default=0.9, metadata=doc("m of the server's step"))

    card: ClassVar[Card] = replace(
        Photon.card,
        name="DiLoCo",
        summary="as photon, with the inner optimizer's state kept on the device and more momentum outside",
        paper="Douillard et al. 2023, arXiv 2311.08105",
        stars=None,
        deviations=(
            "devices weigh by their rows; the paper's islands weigh alike",
            "rows come in a fresh order each round; no cursor into the data is kept",
        ),
        alternatives=("photon", "fedavg"),
    )
