"""Full fine-tuning and the methods that train some of the weights: what they cost and what they learn."""

from __future__ import annotations

import torch

from fedge.methods.customize.bitfit import BitFit
from fedge.methods.customize.fedavg import FedAvg
from fedge.methods.customize.head import Head
from fedge.models.names import tensors
from fedge.models.variant import assemble
from tools.claims.arms import BIAS, FULL, HEAD
from tools.claims.claim import Claim, Figures
from tools.claims.costs import on_minilm, roberta_numbers
from tools.claims.world import digits, learnt


def accuracies(seed: int) -> Figures:
    return {"full": learnt(FULL, seed), "head": learnt(HEAD, seed)}


def one_step(seed: int) -> Figures:
    """A full-batch SGD step on each device, averaged, beside one on all rows in one place."""
    world, lr = digits(seed), 0.1
    parts = world.parts()
    most = max(len(rows) for rows in parts.values())
    method = FedAvg(steps=1, batch=most, lr=lr, optimizer="sgd")
    ours = tensors(world.run(method, 1, parts).final())
    model = assemble(method, world.base, world.seed, "stage", 0).model.train()
    batch = next(world.train.chunks(len(world.train)))
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    found = torch.autograd.grad(world.task.loss(model, batch), [model.get_parameter(name) for name in names])
    base = tensors(world.base)
    off = max(
        float((ours[n] - (base[n] - lr * g)).norm() / (lr * g).norm().clamp_min(1e-3))
        for n, g in zip(names, found, strict=True)
    )
    return {"difference": off}


def bias_and_head(seed: int) -> Figures:
    return {"bias": learnt(BIAS, seed), "head": learnt(HEAD, seed)}


def bias_traffic(seed: int) -> Figures:
    trained, whole = roberta_numbers(BitFit())
    return {"times less": whole / trained}


def head_traffic(seed: int) -> Figures:
    return {"share of full": on_minilm(Head()).bytes_up / on_minilm(FedAvg()).bytes_up}


CLAIMS = (
    Claim(
        method="fedavg",
        name="accuracy",
        says="full fine-tuning is what the others are measured against: a linear probe learns less",
        paper="reference",
        measure=accuracies,
        holds=lambda seen: seen.gap("full", "head") > 0,
        goal="full > head in the mean",
        unit="%",
    ),
    Claim(
        method="fedavg",
        name="one-step",
        says="one full-batch step on each device is one on all rows in one place (FedSGD)",
        paper="equal (McMahan et al. 2017, section 2)",
        measure=one_step,
        holds=lambda seen: seen.worst("difference") <= 1e-3,
        goal="≤ 1e-3 of the step, in float32",
    ),
    Claim(
        method="head",
        name="traffic",
        says="only the classifier travels",
        paper="reference",
        measure=head_traffic,
        holds=lambda seen: seen.worst("share of full") < 0.001,
        goal="< 0.1 % of full fine-tuning's bytes (MiniLM, 4 classes, at the frame)",
        unit="%",
        data=(),
    ),
    Claim(
        method="bitfit",
        name="accuracy",
        says="tuning the biases learns at least what a linear probe does",
        paper="direction (FedPEFT, arXiv 2210.01708)",
        measure=bias_and_head,
        holds=lambda seen: seen.gap("bias", "head") >= 0,
        goal="bias ≥ head in the mean",
        unit="%",
    ),
    Claim(
        method="bitfit",
        name="traffic",
        says="less traffic than full fine-tuning of RoBERTa-base",
        paper="about 190× (FedPETuning, ACL Findings 2023); which biases are counted is not said",
        measure=bias_traffic,
        holds=lambda seen: abs(seen.mean("times less") / 190 - 1) <= 0.1,
        goal="within 10 % of 190×",
        unit="×",
        data=(),
    ),
)
