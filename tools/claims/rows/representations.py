"""Methods of representations: contrast with other models, teachers that stay on the device, prototypes, a black box."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch

from fedge.core.rng import seed_everything
from fedge.core.task import Score
from fedge.data.views import view
from fedge.methods.customize.head import Head
from fedge.methods.selfsup import SelfSupervised
from fedge.methods.train.fedema import FedEMA
from fedge.methods.train.fedpcl import FedPCL
from fedge.methods.train.fedu import FedU
from fedge.methods.train.moon import MOON
from fedge.methods.train.zoopfl import ZooPFL
from fedge.models.neighbours import Neighbours
from tools.claims.claim import Claim, Figures
from tools.claims.world import BATCH, ROUNDS, STEPS, digits, learnt, own

CONTRAST = MOON(steps=STEPS, batch=BATCH, lr=3e-3)
#: The target follows over as many steps as there are, as the papers' does over theirs.
EMA = FedEMA(steps=STEPS, batch=BATCH, decay=0.9, flip=False, lr=0.1)
BYOL = FedEMA(steps=STEPS, batch=BATCH, decay=0.9, flip=False, lr=0.1, merge="global")
DIVERGENCE = FedU(steps=STEPS, batch=BATCH, decay=0.9, flip=False, lr=0.1)
#: Of the self-supervised methods, whose steps see each row twice through two models.
FEW_ROUNDS = 4
PROTOTYPES = FedPCL(steps=STEPS, batch=BATCH)
BOX = ZooPFL(steps=STEPS, batch=BATCH, latent=8, lr=3e-3)
OWN_HEAD = Head(steps=STEPS, batch=BATCH, lr=1e-2)


def contrast(seed: int) -> Figures:
    alone = MOON(steps=STEPS, batch=BATCH, lr=3e-3, mu=0)
    return {"moon": learnt(CONTRAST, seed), "fedavg": learnt(alone, seed)}


@cache
def seen_by_neighbours(method: SelfSupervised | None, seed: int) -> float:
    """The share of disturbed test images that the nearest of the devices' training rows tell rightly; None: untrained.

    Undisturbed ones would say nothing: an encoder that has learnt nothing tells nearly all of these.
    """
    world = digits(seed)
    model = world.base if method is None else world.run(method, FEW_ROUNDS).final()
    near = Neighbours(model, world.train.chunks(256), world.task.classes)
    score = Score()
    seed_everything(seed, "disturbed")
    for batch in world.test.chunks(256):
        with torch.no_grad():
            images = view(batch["pixel_values"], flip=False)
        score.add(world.task, near.predict(model, {"pixel_values": images}), batch["labels"])
    return score.metrics(world.task)["accuracy"]


def merged(seed: int) -> Figures:
    return {"fedema": seen_by_neighbours(EMA, seed), "fedbyol": seen_by_neighbours(BYOL, seed)}


def diverged(seed: int) -> Figures:
    plain = {"fedbyol": seen_by_neighbours(BYOL, seed), "untrained": seen_by_neighbours(None, seed)}
    return {"fedu": seen_by_neighbours(DIVERGENCE, seed), **plain}


def together(seed: int) -> Figures:
    world = digits(seed)
    alone = [
        next(iter(world.personal(world.run(PROTOTYPES, ROUNDS, {n: r})).values())) for n, r in world.parts().items()
    ]
    return {"fedpcl": own(PROTOTYPES, seed), "alone": float(np.mean(alone))}


def box(seed: int) -> Figures:
    world = digits(seed)
    alone = world.alone(OWN_HEAD, world.parts(), STEPS * ROUNDS)
    return {"zoopfl": own(BOX, seed), "head": float(np.mean(list(alone.values())))}


CLAIMS = (
    Claim(
        method="moon",
        name="accuracy",
        says="the contrast learns more than FedAvg with the same model",
        paper="CIFAR-10 69.1 against 66.3 % (arXiv 2103.16257)",
        measure=contrast,
        holds=lambda seen: seen.gap("moon", "fedavg") > 0,
        goal="moon > fedavg in the mean",
        unit="%",
    ),
    Claim(
        method="fedema",
        name="accuracy",
        says="merging into the device's own encoder learns more than taking the global one",
        paper="3 to 4 points over FedBYOL (arXiv 2204.04385)",
        measure=merged,
        holds=lambda seen: seen.gap("fedema", "fedbyol") > 0,
        goal="fedema > fedbyol in the mean, nearest neighbours of disturbed images",
        unit="%",
    ),
    Claim(
        method="fedu",
        name="accuracy",
        says="choosing the predictor by divergence learns more than taking the global one",
        paper="> 5 points over others, linear evaluation (arXiv 2108.06492)",
        measure=diverged,
        holds=lambda seen: seen.gap("fedu", "fedbyol") > 0,
        goal="fedu > fedbyol in the mean, nearest neighbours of disturbed images",
        unit="%",
    ),
    Claim(
        method="fedpcl",
        name="accuracy",
        says="others' prototypes help a device with its own rows",
        paper="above local training (arXiv 2209.10083)",
        measure=together,
        holds=lambda seen: seen.gap("fedpcl", "alone") > 0,
        goal="own models: fedpcl > each device alone, in the mean",
        unit="%",
    ),
    Claim(
        method="zoopfl",
        name="accuracy",
        says="adapting the input of a black box learns more than a head behind it",
        paper="above head-only (arXiv 2310.05143)",
        measure=box,
        holds=lambda seen: seen.gap("zoopfl", "head") > 0,
        goal="own models: zoopfl > each device's head alone, in the mean",
        unit="%",
    ),
)
