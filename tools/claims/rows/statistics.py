"""Statistics in closed form, zeroth order, logits: what is learnt without sending weights' gradients."""

from __future__ import annotations

from functools import cache

import numpy as np

from fedge.methods.customize.fed3r import Fed3R
from fedge.methods.customize.fedkseed import FedKSeed
from fedge.methods.customize.fedmd import FedMD
from fedge.methods.customize.fedncm import FedNCM
from fedge.models.names import tensors
from tools.claims.arms import FULL, HEAD, STEPPED
from tools.claims.claim import Claim, Figures
from tools.claims.world import STEPS, digits, learnt, own

NCM = FedNCM(**STEPPED, lr=3e-3)
MD = FedMD(**STEPPED, lr=3e-3, digest=STEPS)
SEED = FedKSeed(batch=32, lr=1e-5)


def split(seed: int) -> Figures:
    """The classifier from two partitions of the same rows, and from all in one place."""
    world = digits(seed)
    found = []
    for rows in (world.parts(4, 0.3), world.parts(7, None), {"all": world.train}):
        found.append(tensors(world.run(Fed3R(), 1, rows).final())["classifier.weight"].double())
    worst = max(float((other - found[0]).norm() / found[0].norm()) for other in found[1:])
    return {"difference": worst}


def once(seed: int) -> Figures:
    return {"Fed3R, 1 round": learnt(Fed3R(), seed, 1), "head, 6 rounds": learnt(HEAD, seed)}


@cache
def curves(seed: int) -> tuple[list[float], list[float]]:
    """Accuracy after each of four rounds of training all weights: from class means, and from a random head."""
    world = digits(seed)
    found = []
    for method, first in ((NCM, 1), (FULL, 0)):
        driven = world.begin(method).go(first)
        found.append([world.accuracy(driven.go(1)) for _ in range(4)])
    return found[0], found[1]


def early(seed: int) -> Figures:
    ncm, plain = curves(seed)
    return {"FedNCM+FT, rounds 1-4": float(np.mean(ncm)), "FT, rounds 1-4": float(np.mean(plain))}


def untrained(seed: int) -> Figures:
    world = digits(seed)
    return {"FedNCM": world.accuracy(world.run(NCM, 1)), "chance": 0.1}


def kseed(seed: int) -> Figures:
    driven = digits(seed).run(SEED, 3)
    up, down = (max(way[-1].values()) for way in (driven.up, driven.down))
    return {"up": up / 1024, "down": down / 1024}


def kseed_learns(seed: int) -> Figures:
    world = digits(seed)
    return {"FedKSeed, 6 rounds": learnt(SEED, seed), "base": world.score(world.base)}


def md(seed: int) -> Figures:
    world = digits(seed)
    local = world.alone(FULL, world.parts(), 6 * STEPS)
    return {"FedMD": own(MD, seed), "alone": float(np.mean(list(local.values())))}


CLAIMS = (
    Claim(
        method="fed3r",
        name="split",
        says="the classifier does not depend on how the rows are split",
        paper="exact (arXiv 2406.01116, section 4)",
        measure=split,
        holds=lambda seen: seen.worst("difference") <= 1e-5,
        goal="≤ 1e-5 with features in float32 (≤ 1e-10 in float64 is tested)",
    ),
    Claim(
        method="fed3r",
        name="rounds",
        says="one round does what a trained classifier needs many for",
        paper="up to two orders of magnitude fewer rounds (arXiv 2406.01116)",
        measure=once,
        holds=lambda seen: seen.gap("Fed3R, 1 round", "head, 6 rounds") >= 0,
        goal="after 1 round ≥ head after 6",
        unit="%",
    ),
    Claim(
        method="fedncm",
        name="early",
        says="a head of class means makes fine-tuning faster",
        paper="CIFAR-10 87.2 against 85.4; the lead is in the early rounds (arXiv 2211.13219)",
        measure=early,
        holds=lambda seen: seen.gap("FedNCM+FT, rounds 1-4", "FT, rounds 1-4") > 0,
        goal="mean accuracy of the first four rounds > fine-tuning from a random head",
        unit="%",
    ),
    Claim(
        method="fedncm",
        name="untrained",
        says="class means alone classify, without a gradient",
        paper="CIFAR-10 64.8",
        measure=untrained,
        holds=lambda seen: min(seen["FedNCM"]) >= 0.3,
        goal="≥ 30 % of ten classes on every seed",
        unit="%",
    ),
    Claim(
        method="fedkseed",
        name="traffic",
        says="a device exchanges less than 18 kilobytes a round, whatever the model",
        paper="18 kB (arXiv 2312.06353)",
        measure=kseed,
        holds=lambda seen: max(seen.worst("up"), seen.worst("down")) * 1024 <= 18_000,
        goal="≤ 18 kB each way, K = 4096, frames' headers included",
        unit="KiB",
    ),
    Claim(
        method="fedkseed",
        name="accuracy",
        says="full-parameter tuning by zeroth order learns",
        paper="7.26 % higher Rouge-L than PEFT methods (arXiv 2312.06353)",
        measure=kseed_learns,
        holds=lambda seen: seen.gap("FedKSeed, 6 rounds", "base") > 0.02,
        goal="> the base by 2 points after six rounds of 16 steps",
        unit="%",
    ),
    Claim(
        method="fedmd",
        name="personal",
        says="devices gain from each other's logits",
        paper="20 % above training alone (arXiv 1910.03581)",
        measure=md,
        holds=lambda seen: seen.gap("FedMD", "alone") > 0,
        goal="own models > training alone, on the devices' own mixes",
        unit="%",
    ),
)
