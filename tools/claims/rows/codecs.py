"""Codecs: how much smaller they make a real change of weights, and what that costs in accuracy."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache, partial

import torch

from fedge.codecs.chain import Chain
from fedge.codecs.make import make
from fedge.core.fields import doc
from fedge.core.method import Device, State
from fedge.core.payload import Payload
from fedge.core.rng import generator
from fedge.methods.customize.fedavg import FedAvg
from tools.claims.arms import FULL, STEPPED
from tools.claims.claim import Claim, Figures
from tools.claims.world import digits, learnt


@dataclass(frozen=True, kw_only=True)
class Coded(FedAvg):
    """Full fine-tuning whose answers go through a codec and back, with error feedback where the codec has it."""

    codec: str = field(default="topk", metadata=doc("the codec"))

    def client(self, dev: Device, down: Payload) -> Payload:
        reply = super().client(dev, down)
        assert isinstance(reply, Payload)
        chain = Chain((make(self.codec),))
        left: State = dev.state.setdefault("left", {})
        return chain.decode(chain.encode(reply, dev.generator("codec"), left))


@cache
def change(seed: int) -> Payload:
    """What a device sends after a round of full fine-tuning: its matrices."""
    driven = digits(seed).run(FULL, 1)
    (sent,) = driven.sent[0]["d00"]
    return Payload({"delta": {name: tensor for name, tensor in sent["delta"].items() if tensor.numel() >= 512}})


def smaller(key: str, seed: int) -> Figures:
    """By how much the tensors of a message shrink, frames and headers apart."""
    sent = change(seed)
    coded = Chain((make(key),)).encode(sent, generator(seed, "claim"), {})
    return {"times smaller": sent.nbytes / coded.nbytes}


def mask_bits(seed: int) -> Figures:
    """Bits for each number of a drawn mask of which one in ten is set."""
    drawn = generator(seed, "mask")
    mask = torch.rand(65536, generator=drawn) < 0.1
    coded = Chain((make("mask"),)).encode(Payload({"mask": {"m": mask}}), generator(seed, "claim"), {})
    return {"bits": 8 * coded.nbytes / mask.numel()}


def learns(key: str, seed: int) -> Figures:
    coded = Coded(**STEPPED, lr=FULL.lr, codec=key)
    return {key: learnt(coded, seed), "as it is": learnt(FULL, seed)}


def _size(key: str, paper: str, least: float, most: float, says: str) -> Claim:
    return Claim(
        method=f"codec:{key}",
        name="size",
        says=says,
        paper=paper,
        measure=partial(smaller, key),
        holds=lambda seen: least <= seen.mean("times smaller") <= most,
        goal=f"{least:g} to {most:g} times smaller than float32",
        unit="×",
    )


def _accuracy(key: str, paper: str, says: str, points: float = 0.02) -> Claim:
    return Claim(
        method=f"codec:{key}",
        name="accuracy",
        says=says,
        paper=paper,
        measure=partial(learns, key),
        holds=lambda seen: seen.gap("as it is", key) <= points,
        goal=f"within {100 * points:g} points of sending all",
        unit="%",
    )


CLAIMS = (
    _size("fp16", "2×", 1.99, 2.01, "half precision halves"),
    _size("bf16", "2×", 1.99, 2.01, "half precision halves"),
    _size("int8", "4× (blocks of 512)", 3.8, 4.0, "8 bits a number"),
    _size("int4", "8× (blocks of 64, a scale each: 4.5 bits)", 6.5, 7.2, "4 bits a number"),
    _size("qsgd", "4 to 7× (arXiv 1610.02132)", 3.5, 7.0, "quantised to the norm"),
    _size("nnadq", "at most 9 bits a number (arXiv 2208.05174)", 3.5, 16.0, "bits by an error's cost"),
    _size("topk", "10 % of the numbers with their places", 5.0, 8.5, "a tenth of the numbers"),
    _size("randomk", "10 % of the numbers, no places: they follow from the seed", 9.0, 10.0, "a tenth of the numbers"),
    _size("sign", "32× (arXiv 1901.09847)", 30.0, 32.0, "one bit a number"),
    _size("zsign", "32× (arXiv 2302.02589)", 30.0, 32.0, "one bit a number"),
    _size("ternary", "47.6× against fp16 at 5 % (H(k) + k bits), so 95× here", 75.0, 96.0, "5 % kept as signs, Golomb"),
    _accuracy("topk", "no loss at 99 % dropped (arXiv 1704.05021)", "error feedback keeps the accuracy"),
    _accuracy("sign", "no loss with error feedback (arXiv 1901.09847)", "error feedback keeps the accuracy"),
    _accuracy("ternary", "STC at p = 1/400 as FedAvg (arXiv 1903.02891)", "5 % as signs keeps the accuracy"),
    _accuracy("powersgd", "within a point at rank 4 (arXiv 1905.13727)", "rank 4 keeps the accuracy"),
    _accuracy("int8", "no loss (arXiv 2110.02861)", "8 bits keep the accuracy", 0.01),
    Claim(
        method="codec:mask",
        name="size",
        says="a mask is coded at its entropy",
        paper="H(0.1) = 0.469 bits (FedPM, arXiv 2209.15328)",
        measure=mask_bits,
        holds=lambda seen: seen.worst("bits") <= 0.469 * 1.03,
        goal="≤ 3 % above the entropy",
        unit="bits",
        data=(),
    ),
)
