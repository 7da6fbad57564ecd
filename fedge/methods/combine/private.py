"""Differential privacy around a method: each device's answer is cut down to a norm, and noise hides what is left of it.

Central (DP-FedAvg, McMahan et al. 2018, arXiv 1710.06963): the server cuts down what it decoded, and the method sees
``Δ̄ = (Σ_k Δ_k min(1, S/‖Δ_k‖) + N(0, z²S²)) / qN`` with the fixed ``qN``, the expected size of a cohort. Local: a
device sends ``Δ min(1, S/‖Δ‖) + N(0, z²S²)``. DP-FTRL (Kairouz et al. 2021, arXiv 2103.00039): central, the noise of
rounds from a tree, so that the sum of t rounds has the noise of ``popcount(t)`` of them. Adaptive clipping (Andrew et
al. 2021, arXiv 1905.03871): ``S ← S exp(−0.2 (b̃ − γ))`` with ``b̃`` the noised share of norms below S.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from fedge.core.method import Card, Device, Method, Replies, Server, State, Talk
from fedge.core.payload import Payload, Tree
from fedge.errors import MethodError
from fedge.methods.combine.shell import Outline, Shell, Sum, as_one, widened
from fedge.privacy.noise import add_gaussian, clipped, gaussian
from fedge.privacy.tree import advance

#: How fast an adaptive clip moves, and the share of a cohort that the noise of its count hides (the paper's choice).
_RATE, _HIDDEN = 0.2, 0.05


@dataclass(frozen=True, kw_only=True)
class Private(Shell):
    """``noise`` is z, ``clip`` S, ``expected`` qN. A device's weight is 1, its number of rows stays with it.

    epoch: rounds of a tree, 0 for fresh noise. quantile: γ of adaptive clipping, None for a fixed clip. system: noise
    from the operating system's randomness rather than the run's seed.
    """

    where: Literal["central", "local"] = "central"
    clip: float = 1.0
    noise: float = 1.0
    expected: float = 1.0
    epoch: int = 0
    quantile: float | None = None
    system: bool = False

    #: A cohort of nobody is an outcome like any other, and must look like it.
    unasked: ClassVar[bool] = True

    @property
    def card(self) -> Card:  # type: ignore[override]
        return replace(self.inner.card, claims=(), family="own")

    def init(self, srv: Server) -> State:
        return {**super().init(srv), "clip": self.clip, "outline": {}, "tree": {}}

    # -- on the device -----------------------------------------------------------------------------------------------

    def client(self, dev: Device, down: Payload) -> Payload | Talk:
        answer = alone(self.inner, dev, down)
        if self.where != "local":
            return answer
        parts, _ = clipped(answer.parts, self.clip)
        generator = None if self.system else dev.generator("privacy")
        noised = {role: add_gaussian(tree, self.noise * self.clip, generator) for role, tree in sorted(parts.items())}
        return Payload(noised, 1.0)

    # -- on the server -----------------------------------------------------------------------------------------------

    def combine(self, srv: Server, state: State, replies: Replies) -> tuple[State, Replies]:
        if self.where == "local" or srv.rehearsed:
            return state, replies
        bound: float = state["clip"]
        outline: Outline = state["outline"]
        for reply in replies.values():
            outline = widened(outline, reply.parts)
        total, below = Sum(outline), 0
        for reply in replies.values():
            parts, size = clipped(reply.parts, bound)
            total.add(parts)
            below += int(size <= bound)
        tree, noise = self._noise(srv, state["tree"], outline, bound)
        mean = {
            role: {name: (tensor + noise[f"{role}/{name}"]) / self.expected for name, tensor in tree.items()}
            for role, tree in total.parts.items()
        }
        state = {**state, "outline": outline, "tree": tree, "clip": self._moved(srv, bound, below)}
        return state, as_one(mean, self.expected, replies, list(replies) or sorted(srv.variants)[:1])

    def _noise(self, srv: Server, tree: State, outline: Outline, bound: float) -> tuple[State, Tree]:
        """This round's noise for everything in the outline, and the tree after it."""
        shapes = {f"{role}/{name}": shape for role, named in outline.items() for name, shape in named.items()}
        std = self.for_sum * bound

        def fresh(level: int) -> Tree:
            generator = None if self.system else srv.generator(f"privacy {level}")
            return {name: gaussian(tuple(shape), std, generator) for name, shape in sorted(shapes.items())}

        if not self.epoch:
            return {}, fresh(0)
        number = srv.round // self.epoch
        if tree.get("epoch") != number:
            tree = {"step": 0, "nodes": {}}
        nodes, change = advance(tree["nodes"], tree["step"] + 1, fresh)
        return {"epoch": number, "step": tree["step"] + 1, "nodes": nodes}, change

    @property
    def for_sum(self) -> float:
        """The noise that the sum gets: more than z where some of the budget goes to counting norms."""
        if self.quantile is None:
            return self.noise
        left = self.noise**-2 - (2 * self.for_count) ** -2
        if left <= 0:
            raise MethodError("privacy: adaptive clipping needs more devices, or more noise")
        return left**-0.5

    @property
    def for_count(self) -> float:
        """The standard deviation of the noise on the count of norms below the clip."""
        return max(_HIDDEN * self.expected, self.noise)

    def _moved(self, srv: Server, bound: float, below: int) -> float:
        if self.quantile is None:
            return bound
        generator = None if self.system else srv.generator("privacy count")
        noised = below + float(gaussian((), self.for_count, generator))
        return bound * math.exp(-_RATE * (min(max(noised / self.expected, 0.0), 1.0) - self.quantile))


def alone(method: Method, dev: Device, down: Payload) -> Payload:
    """A device's one answer. MethodError for a method that has a conversation instead, or says more than tensors."""
    answer = method.client(dev, down)
    if not isinstance(answer, Payload):
        raise MethodError(f"{method.card.name} answers in several turns; only one answer a round can be covered")
    if answer.meta:
        raise MethodError(f"{method.card.name} sends {', '.join(answer.meta)} beside its tensors, which nothing covers")
    return answer
