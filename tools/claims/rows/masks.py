"""Masks over frozen weights: bits a weight, and what is learnt by them."""

from __future__ import annotations

from fedge.codecs.chain import Chain
from fedge.codecs.mask import Mask
from fedge.core.rng import generator
from fedge.methods.customize.deltamask import DeltaMask
from fedge.methods.train.fedpm import FedPM
from fedge.models.mask import scores
from fedge.testing.driver import Driven
from tools.claims.claim import Claim, Figures
from tools.claims.rows.tensors import HEAD
from tools.claims.world import BATCH, ROUNDS, STEPS, digits, learnt

RANDOM = FedPM(steps=2 * STEPS, batch=BATCH)
DELTA = DeltaMask(steps=STEPS, batch=BATCH, head_lr=1e-2)


def bits(driven: Driven) -> tuple[float, float]:
    """Bits a masked weight in the last round's answers, before and after the codec, the mean over devices."""
    count = sum(s.numel() for s in scores(next(iter(driven.devices.values())).model).values())
    sent = [payloads[-1] for payloads in driven.sent[-1].values()]
    chain = Chain((Mask(),))
    coded = [chain.encode(payload, generator("claims", n), {}) for n, payload in enumerate(sent)]
    before, after = (sum(8 * p.nbytes for p in answers) / len(answers) / count for answers in (sent, coded))
    return before, after


def random_weights(seed: int) -> Figures:
    world = digits(seed)
    driven = world.run(RANDOM, ROUNDS)
    before, after = bits(driven)
    return {"bits": after, "packed": before, "accuracy": world.accuracy(driven)}


def delta(seed: int) -> Figures:
    world = digits(seed)
    driven = world.run(DELTA, ROUNDS)
    before, after = bits(driven)
    return {"bits": after, "packed": before, "accuracy": world.accuracy(driven), "head": learnt(HEAD, seed)}


CLAIMS = (
    Claim(
        method="fedpm",
        name="traffic",
        says="less than one bit a weight travels",
        paper="< 1 bit (arXiv 2209.15328)",
        measure=random_weights,
        holds=lambda seen: seen.worst("bits") < 1,
        goal="< 1 bit a masked weight on every seed",
    ),
    Claim(
        method="deltamask",
        name="traffic",
        says="as little as 0.09 bit a weight travels",
        paper="0.09 bit (arXiv 2311.17299)",
        measure=delta,
        holds=lambda seen: seen.mean("bits") <= 0.09,
        goal="≤ 0.09 bit a masked weight in the mean",
    ),
    Claim(
        method="deltamask",
        name="accuracy",
        says="masks learn more than the head alone",
        paper="direction (arXiv 2311.17299)",
        measure=lambda seed: {"accuracy": delta(seed)["accuracy"], "head": learnt(HEAD, seed)},
        holds=lambda seen: seen.gap("accuracy", "head") > 0,
        goal="masks > head in the mean",
        unit="%",
    ),
)
