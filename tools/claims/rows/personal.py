"""Methods that keep a model of the device's own, judged on each device's own label mix."""

from __future__ import annotations

import numpy as np

from fedge.methods.customize.ditto import Ditto
from fedge.methods.customize.fedbabu import FedBABU
from fedge.methods.customize.fedper import FedPer
from fedge.methods.customize.fedrep import FedRep
from tools.claims.arms import FULL, STEPPED
from tools.claims.claim import Claim, Figures
from tools.claims.world import STEPS, digits, own

USUAL = {**STEPPED, "lr": 3e-3}
PER, BABU = FedPer(**USUAL), FedBABU(**USUAL)
REP = FedRep(**USUAL, head_steps=STEPS)
DITTO = Ditto(**USUAL, own_steps=STEPS)


def beside(mine: float, seed: int) -> Figures:
    world = digits(seed)
    alone = float(np.mean(list(world.alone(FULL, world.parts(), 6 * STEPS).values())))
    return {"own models": mine, "FedAvg": own(FULL, seed), "alone": alone}


def per(seed: int) -> Figures:
    return beside(own(PER, seed), seed)


def rep(seed: int) -> Figures:
    return beside(own(REP, seed), seed)


def babu(seed: int) -> Figures:
    return beside(own(BABU, seed), seed)


def ditto(seed: int) -> Figures:
    return beside(own(DITTO, seed), seed)


def _claim(method: str, paper: str, measure: object, says: str) -> Claim:
    return Claim(
        method=method,
        name="personal",
        says=says,
        paper=paper,
        measure=measure,  # type: ignore[arg-type]
        holds=lambda seen: seen.gap("own models", "FedAvg") > 0,
        goal="> FedAvg's common model on the devices' own mixes; beside it, training alone",
        unit="%",
    )


CLAIMS = (
    _claim("fedper", "above FedAvg where devices differ (arXiv 1912.00818, figure 4)", per, "own heads serve better"),
    _claim("fedrep", "CIFAR-10, 2 classes a device: 87.7 against FedAvg 42.7", rep, "own heads, fitted first"),
    _claim("fedbabu", "CIFAR-100, 10 shards, fine-tuned: above FedAvg (table 5)", babu, "heads tuned at the end"),
    _claim("ditto", "fairer and more accurate than FedAvg (arXiv 2012.04221, table 2)", ditto, "a pulled own model"),
)
