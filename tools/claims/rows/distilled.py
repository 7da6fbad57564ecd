"""Distillation on the server: from models, from logits and attention, from invented images."""

from __future__ import annotations

from functools import cache

from fedge.methods.customize.dense import DENSE
from fedge.methods.customize.fedad import FedAD
from fedge.methods.customize.fedavg import FedAvg
from fedge.methods.customize.feddf import FedDF
from tools.claims.claim import Claim, Figures
from tools.claims.world import BATCH, digits

NUMBERS = {"batch": BATCH, "lr": 3e-3}
#: Local steps of a device that sends once.
ONCE = 40


def ensemble(seed: int) -> Figures:
    world, rows = digits(seed), digits(seed).parts(alpha=0.1)
    ours = world.run(FedDF(**NUMBERS, steps=20, digest=40, digest_batch=50), 3, rows)
    return {"feddf": world.accuracy(ours), "fedavg": world.accuracy(world.run(FedAvg(**NUMBERS, steps=20), 3, rows))}


@cache
def mean_once(seed: int) -> tuple[float, int]:
    """The accuracy of the plain mean of models that were sent once, and the bytes that this took."""
    world = digits(seed)
    driven = world.run(FedAvg(**NUMBERS, steps=ONCE), 1)
    return world.accuracy(driven), sum(driven.up[0].values())


def attention(seed: int) -> Figures:
    world = digits(seed)
    driven = world.run(FedAD(**NUMBERS, steps=ONCE, digest=150), 1)
    mean, whole = mean_once(seed)
    return {"fedad": world.accuracy(driven), "mean": mean, "times less": whole / sum(driven.up[0].values())}


def invented(seed: int) -> Figures:
    world = digits(seed)
    driven = world.run(DENSE(**NUMBERS, steps=ONCE, digest=12, images=64), 1)
    return {"dense": world.accuracy(driven), "mean": mean_once(seed)[0]}


CLAIMS = (
    Claim(
        method="feddf",
        name="accuracy",
        says="distilling the ensemble into the mean learns more than the mean alone, in as many rounds",
        paper="direction (arXiv 2006.07242)",
        measure=ensemble,
        holds=lambda seen: seen.gap("feddf", "fedavg") > 0,
        goal="FedDF > FedAvg in the mean after three rounds, Dirichlet 0.1",
        unit="%",
    ),
    Claim(
        method="fedad",
        name="once",
        says="logits and attention on public rows, sent once, make a better model than the mean of weights sent once",
        paper="best of the compared methods at one round, an order of magnitude less traffic (ICCV 2021)",
        measure=attention,
        holds=lambda seen: seen.gap("fedad", "mean") > 0,
        goal="FedAD > mean of models, one round, in the mean",
        unit="%",
    ),
    Claim(
        method="dense",
        name="once",
        says="a student taught on invented images is better than the mean of the models that teach it",
        paper="CIFAR-10, 5 clients, Dirichlet 0.5: one-shot mean 30.9 %, ensemble 71.8 %, DENSE near it (the release)",
        measure=invented,
        holds=lambda seen: seen.gap("dense", "mean") > 0,
        goal="DENSE > mean of models, one round, in the mean",
        unit="%",
    ),
)
