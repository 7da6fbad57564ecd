"""Combinations, split models and exits."""

from __future__ import annotations

import torch

from fedge.methods.combine.fedbuff import FedBuff
from fedge.methods.combine.stages import Stages
from fedge.methods.customize.fedavg import FedAvg
from fedge.methods.deploy.anytime import Anytime
from fedge.methods.deploy.depthfl import DepthFL
from fedge.methods.deploy.joint import Joint
from fedge.methods.train.split import Split
from fedge.models.names import tensors
from fedge.testing.driver import Driven
from tools.claims.arms import FULL, HEAD, STEPPED
from tools.claims.claim import Claim, Figures
from tools.claims.world import ROUNDS, World, digits, learnt

#: Of the four devices, the last is so many times slower than the others.
SLOW = 6


def head_start(seed: int) -> Figures:
    staged = Stages(of=(HEAD, FULL), switch=(2,))
    return {"head, then all": learnt(staged, seed), "all": learnt(FULL, seed)}


def waiting(seed: int) -> Figures:
    """Twelve server steps on three answers each while one of four devices is slow, and six rounds that wait for it.

    Time is counted in local rounds of a fast device: the buffered server steps each time, the other waits ``SLOW``.
    """
    world = digits(seed)

    def arriving(round: int, turn: int, names: list[str]) -> list[str]:
        late = "d03"
        return sorted(names, key=lambda name: (name == late and (round + 1) % SLOW != 0, name))

    buffered = world.begin(FedBuff(inner=FULL, buffer=3))
    buffered.go(2 * ROUNDS, order=arriving)  # type: ignore[arg-type]
    return {
        "FedBuff": world.accuracy(buffered),
        "FedAvg": learnt(FULL, seed),
        "times sooner": SLOW * ROUNDS / (2 * ROUNDS),
    }


def one_piece(seed: int) -> Figures:
    """Both halves of a split model after a round with one device, beside training in one piece on its batches."""
    world = digits(seed)
    rows = {"all": world.train}
    split = world.run(Split(steps=4, batch=32, lr=1e-2, optimizer="sgd"), 1, rows)
    plain = world.run(FedAvg(steps=4, batch=32, lr=1e-2, optimizer="sgd"), 1, rows)
    ours, whole, base = tensors(split.final()), tensors(plain.final()), tensors(world.base)
    went = sum(float((whole[name] - base[name]).square().sum()) for name in whole) ** 0.5
    off = sum(float((ours[name] - whole[name]).square().sum()) for name in whole) ** 0.5
    return {"difference": off / went}


@torch.no_grad()
def exits(world: World, driven: Driven) -> list[float]:
    """Accuracy of each exit of the model that a stage leaves."""
    model = driven.final().eval()
    batch = next(world.test.chunks(len(world.test)))
    found = model(pixel_values=batch["pixel_values"])
    return [float((logits.argmax(-1) == batch["labels"]).float().mean()) for logits in found]


def anytime(seed: int) -> Figures:
    world = digits(seed)
    found = exits(world, world.run(Anytime(**STEPPED, lr=1e-2, exits=(1, 2))))
    return {"last exit": found[-1], "first exit": found[0]}


def joint(seed: int) -> Figures:
    world = digits(seed)
    found = exits(world, world.run(Joint(**STEPPED, lr=3e-3, exits=(1, 2))))
    frozen = exits(world, world.run(Anytime(**STEPPED, lr=1e-2, exits=(1, 2))))
    return {"first exit": found[0], "last exit": found[-1], "heads alone, first": frozen[0]}


def depth(seed: int) -> Figures:
    """Two of four devices hold one block; the others both: beside those two others alone."""
    world = digits(seed)
    method = DepthFL(**STEPPED, lr=3e-3, exits=(1, 2))
    parts = world.parts()
    shallow = [variant for variant in method.variants() if getattr(variant, "deepest", None) == 1]
    variants = dict.fromkeys(sorted(parts)[:2], shallow[0]) if shallow else {}
    together = exits(world, world.run(method, rows=parts, variants=variants))
    alone = exits(world, world.run(method, rows={name: parts[name] for name in sorted(parts)[2:]}))
    return {"all, last exit": together[-1], "deep devices alone": alone[-1]}


CLAIMS = (
    Claim(
        method="stages",
        name="head-start",
        says="a head trained first makes full fine-tuning learn more in the same rounds",
        paper="LP+FT (Legate et al. 2024; Kumar et al. 2022)",
        measure=head_start,
        holds=lambda seen: seen.gap("head, then all", "all") > 0,
        goal="> fine-tuning all from the start, six rounds each",
        unit="%",
    ),
    Claim(
        method="fedbuff",
        name="time",
        says="with stragglers the same accuracy is there sooner than by waiting for them",
        paper="3.3× faster than synchronous FedAvg (arXiv 2106.06639)",
        measure=waiting,
        holds=lambda seen: seen.gap("FedAvg", "FedBuff") <= 0.02 and seen.mean("times sooner") > 1,
        goal="12 buffered steps within 2 points of 6 rounds that wait, in a third of their time",
        unit="%",
    ),
    Claim(
        method="split",
        name="whole",
        says="split training is training in one piece",
        paper="equal (FedBERT, TIST 2022)",
        measure=one_piece,
        holds=lambda seen: seen.worst("difference") <= 0.02,
        goal="≤ 2 % of the way that the weights went, one device, float32",
    ),
    Claim(
        method="anytime",
        name="depth",
        says="later exits are better: a device trades depth for accuracy",
        paper="direction (Liu et al. 2022)",
        measure=anytime,
        holds=lambda seen: seen.gap("last exit", "first exit") > 0,
        goal="last exit > first, on a frozen backbone",
        unit="%",
    ),
    Claim(
        method="joint",
        name="backbone",
        says="exits trained with their blocks are better than heads on frozen ones",
        paper="direction (MSDNet, arXiv 1703.09844)",
        measure=joint,
        holds=lambda seen: seen.gap("first exit", "heads alone, first") > 0,
        goal="first exit > that of heads alone",
        unit="%",
    ),
    Claim(
        method="depthfl",
        name="shallow",
        says="devices too small for the whole model still help it",
        paper="CIFAR-100: 76.1 with all depths, above leaving the small devices out (ICLR 2023)",
        measure=depth,
        holds=lambda seen: seen.gap("all, last exit", "deep devices alone") > 0,
        goal="last exit with the shallow devices > without them",
        unit="%",
    ),
)
