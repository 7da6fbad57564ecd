"""DeltaMask: a mask over pre-trained weights; only where it differs from the one all know travels (Tsouvalas et al.).

arXiv 2311.17299. With the round's uniforms u, which everyone draws from one seed, ``m_g = [u < θ_g]`` is known before
and after; a device trains from ``θ_g``, has ``m_k = [u < θ_k]``, and sends the places where the two differ, of these
the share κ with the largest ``KL(Bern(θ_k) ‖ Bern(θ_g))``. The server flips them and counts: ``α ← α + Σ m_k``,
``β ← β + K − Σ m_k``, ``θ_g = (α − 1) / (α + β − 2)``, the prior ``α = β = 1`` returning every ``reset`` rounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from fedge.core.method import Card, Device, Method, Replies, Server, State
from fedge.core.payload import Payload, Tree
from fedge.methods.tuning import Tuning, average, doc, enter, leave
from fedge.models import mask as masks
from fedge.models.anatomy import anatomy
from fedge.models.mask import LEAST, MOST
from fedge.models.names import load, trainable


@dataclass(frozen=True, kw_only=True)
class DeltaMask(Tuning):
    """The first ``probe`` rounds train the head alone; then it is frozen and the last blocks' weights are masked."""

    lr: float = field(default=0.1, metadata=doc("learning rate of the scores on the device"))
    head_lr: float = field(default=1e-2, metadata=doc("learning rate of the head in the rounds before"))
    blocks: int = field(default=5, metadata=doc("how many of the last blocks are masked"))
    probe: int = field(default=1, metadata=doc("rounds in which the head alone is trained, at first"))
    kappa: float = field(default=0.8, metadata=doc("κ: share of the differing places that is sent"))
    begin: float = field(default=3.0, metadata=doc("score of every weight at first; 3 keeps 95 % of them"))
    reset: int = field(default=1, metadata=doc("rounds after which the prior returns"))

    card: ClassVar[Card] = Card(
        name="DeltaMask",
        summary="masks over pre-trained weights; only the places where a mask differs from the known one are sent",
        paper="Tsouvalas et al. 2024, arXiv 2311.17299",
        stages=("customize",),
        path="customize/fine-tune/selective",
        leaves=("the places where the device's mask differs", "at first the change of the head", "number of rows"),
        stars=(1, 3, 3),
        deviations=(
            "places travel as a packed bit for each weight and exactly, by 'codec: [mask]' in less than the paper's "
            "fuse filter of 9 bits a place takes, and without its wrong flips",
            "κ is constant; the paper lets it follow a cosine",
            "device and server share the round's uniforms, so a place differs only where θ moved across its u",
            "the head is frozen after the rounds of probing",
            "the figure is that of the weights whose probability is above one half",
            "the survey describes ranking weight matrices by their L1 norm, which is another method",
        ),
        tasks=("image-classification", "text-classification"),
        alternatives=("bitfit", "lora", "fedpm"),
        roles=("mask", "delta"),
        waives=(("still", "the next probabilities are means of drawn masks, whether devices trained or not"),),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.blocks, self.reset) <= 0 or self.probe < 0 or self.head_lr <= 0 or not 0 < self.kappa <= 1:
            raise ValueError("blocks, reset and head_lr are above 0, probe at least 0, kappa in (0, 1]")
        if self.depth != 1:
            raise ValueError("'blocks' says how deep masks go, not 'depth'")
        if self.prox:
            raise ValueError("prox pulls trained weights, and masks train none")

    def variants(self) -> Sequence[Method]:
        lean = replace(self, micro_batch=max(1, self.batch // 4))
        return [self, lean, replace(lean, micro_batch=1)]

    def phases(self) -> Sequence[int]:
        return (0, self.probe) if self.probe else (0,)

    def build(self, base: nn.Module) -> nn.Module:
        parts = anatomy(base)
        names = [f"{name}.weight" for name in masks.layers(base, parts.layer_prefixes[-self.blocks :])]
        masks.score(base, names, lambda weight: torch.full_like(weight, self.begin))
        return self.mark(base, lambda name, layer: name.endswith(masks.SUFFIX))

    def init(self, srv: Server) -> State:
        heads = {n: p.detach().clone() for n, p in trainable(srv.model()).items() if not n.endswith(masks.SUFFIX)}
        return {"weights": heads, "changed": [], "moments": {}, "ones": {}, "seen": 0, "rounds": 0}

    def down(self, srv: Server, state: State, device: str) -> Payload:
        if srv.round < self.probe:
            return super().down(srv, state, device)
        head = {name: state["weights"][name] for name in state["changed"]}
        return Payload({"weights": head, "mask": theta_of(state)}, meta={"seed": seed_of(srv)})

    def client(self, dev: Device, down: Payload) -> Payload:
        probing = dev.round < self.probe
        for name, parameter in dev.model.named_parameters():
            if name in dev.initial:
                parameter.requires_grad_(name.endswith(masks.SUFFIX) != probing)
        start = enter(dev, down["weights"])
        if probing:
            replace(self, lr=self.head_lr).train(dev, dev.task.loss, start)
            return leave(dev, start)
        masks.load(dev.model, down["mask"])
        before = masks.probabilities(dev.model)
        self.train(dev, masks.through_masks(dev.task.loss), start)
        flips = flipped(before, masks.probabilities(dev.model), down.meta["seed"], self.kappa)
        return Payload({"mask": {name: masks.pack(flip) for name, flip in flips.items()}}, weight=len(dev.data))

    def update(self, srv: Server, state: State, replies: Replies) -> State:
        if srv.round < self.probe:
            return average(srv, state, replies)
        before = theta_of(state) or masks.probabilities(srv.model())
        known = {name: u < before[name] for name, u in uniforms(before, seed_of(srv)).items()}
        fresh = state["rounds"] % self.reset == 0
        ones: Tree = {} if fresh else dict(state["ones"])
        for reply in replies.values():
            for name, mask in known.items():
                mine = mask ^ masks.unpack(reply["mask"][name], mask.shape)
                ones[name] = ones[name] + mine if name in ones else mine.float()
        seen = len(replies) + (0 if fresh else state["seen"])
        return {**state, "ones": ones, "seen": seen, "rounds": state["rounds"] + 1}

    def final(self, srv: Server, state: State) -> nn.Module:
        model = srv.model()
        load(model, state["weights"])
        theta = theta_of(state) or masks.probabilities(model)
        return masks.settle(model, {name: chance > 0.5 for name, chance in theta.items()}).requires_grad_(False)


def theta_of(state: State) -> Tree:
    """``(α − 1) / (α + β − 2)`` with the prior's ones: the share of the counted masks that kept a weight."""
    return {name: (ones / state["seen"]).clamp(LEAST, MOST) for name, ones in state["ones"].items()}


def seed_of(srv: Server) -> int:
    """The seed of the round's uniforms, the same whenever it is asked for in a round; of ten digits, always."""
    return 10**9 + srv.generator("uniforms").initial_seed() % 10**9


def uniforms(like: Tree, seed: int) -> Tree:
    """The round's uniforms for tensors of these shapes, in the order of their names."""
    drawn = torch.Generator().manual_seed(seed)
    return {name: torch.rand(like[name].shape, generator=drawn) for name in sorted(like)}


def flipped(before: Tree, after: Tree, seed: int, kappa: float) -> Tree:
    """Where ``[u < θ_k]`` and ``[u < θ_g]`` differ, of these places the share κ with the largest divergence."""
    u = uniforms(before, seed)
    differs = {name: (u[name] < before[name]) ^ (u[name] < after[name]) for name in u}
    heights = {n: divergence(after[n], before[n]).masked_fill(~differs[n], -torch.inf) for n in u}
    ranked = torch.cat([height.reshape(-1) for height in heights.values()]).sort(descending=True).values
    count = torch.stack([differ.sum() for differ in differs.values()]).sum()
    last = ranked[((count * kappa).ceil().long() - 1).clamp_min(0)]
    return {name: differs[name] & (heights[name] >= last) for name in u}


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """``KL(Bern(p) ‖ Bern(q))`` for probabilities within (0, 1)."""
    p, q = p.clamp(1e-6, 1 - 1e-6), q.clamp(1e-6, 1 - 1e-6)
    return p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
