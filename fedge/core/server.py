"""Server optimizers: what the server does with the mean change that the devices sent.

``Δ = Σ p_k (w_k − w)`` is the pseudo-gradient with its sign turned (Reddi et al. 2021, arXiv 2003.00295, algorithm 2;
FedAvgM: Hsu et al. 2019, arXiv 1909.06335; Nesterov's is the outer optimizer of DiLoCo, arXiv 2311.08105)::

    fedavg      w ← w + η Δ
    fedavgm     m ← β₁ m + Δ                              w ← w + η m
    nesterov    m ← β₁ m + Δ                              w ← w + η (Δ + β₁ m)
    fedadagrad  m ← β₁ m + (1−β₁) Δ   v ← v + Δ²           w ← w + η m / (√v + τ)      β₁ = 0 in the paper
    fedadam     m ← β₁ m + (1−β₁) Δ   v ← β₂ v + (1−β₂) Δ²  (same step)
    fedyogi     m ← β₁ m + (1−β₁) Δ   v ← v − (1−β₂) Δ² sign(v − Δ²)

with ``m₀ = 0`` and ``v₀ = τ²``, no bias correction. Coordinates that nobody trained in a round keep their weight and
their moments.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedge.core.payload import Tree

KINDS = ("fedavg", "fedavgm", "nesterov", "fedadam", "fedyogi", "fedadagrad")
ADAPTIVE = ("fedadam", "fedyogi", "fedadagrad")


@dataclass(frozen=True)
class ServerOptimizer:
    """One of ``KINDS`` with its numbers: lr is η, momentum β₁, beta2 β₂, tau τ."""

    kind: str = "fedavg"
    lr: float = 1.0
    momentum: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3

    def step(
        self, weights: Tree, change: Tree, moments: dict[str, Tree], covered: dict[str, Tensor] | None = None
    ) -> tuple[Tree, dict[str, Tree]]:
        """New weights and moments after a mean change ``Δ`` by name.

        ``weights`` must hold every name of ``change``; ``covered`` masks tensors that were trained in part.
        Integer tensors are taken over rather than stepped.
        """
        weights, moments = dict(weights), {kind: dict(tree) for kind, tree in moments.items()}
        for name, delta in change.items():
            old = weights[name]
            if not old.dtype.is_floating_point:
                weights[name] = (old + delta).to(old.dtype)
                continue
            mask = (covered or {}).get(name)
            step = self._direction(name, delta, moments, mask)
            if mask is not None:
                step = torch.where(mask, step, torch.zeros_like(step))
            weights[name] = (old + self.lr * step).to(old.dtype)
        return weights, moments

    def _direction(self, name: str, delta: Tensor, moments: dict[str, Tree], mask: Tensor | None) -> Tensor:
        if self.kind == "fedavg":
            return delta

        def moment(kind: str, start: float, new: Tensor) -> Tensor:
            old = moments.setdefault(kind, {}).get(name)
            if mask is not None:
                new = torch.where(mask, new, torch.full_like(new, start) if old is None else old)
            moments[kind][name] = new
            return new

        zero = torch.zeros_like(delta)
        m = moments.get("m", {}).get(name, zero)
        if self.kind == "fedavgm":
            return moment("m", 0.0, self.momentum * m + delta)
        if self.kind == "nesterov":
            return delta + self.momentum * moment("m", 0.0, self.momentum * m + delta)
        m = moment("m", 0.0, self.momentum * m + (1 - self.momentum) * delta)
        v = moments.get("v", {}).get(name, torch.full_like(delta, self.tau**2))
        square = delta * delta
        if self.kind == "fedadagrad":
            v = v + square
        elif self.kind == "fedadam":
            v = self.beta2 * v + (1 - self.beta2) * square
        else:
            v = v - (1 - self.beta2) * square * torch.sign(v - square)
        v = moment("v", self.tau**2, v)
        return m / (v.sqrt() + self.tau)
