"""Gradient inversion: rows whose gradient is what a device's change says it was.

Inverting Gradients (Geiping et al. 2020, arXiv 2003.14053): ``min_x 1 − cos(∇L(x, y), −Δ) + λ TV(x)`` by Adam on the
sign of its gradient, labels known, pixels within their range. It grew out of DLG (Zhu et al. 2019, arXiv 1906.08935),
whose distance is ``‖∇L(x, y) − g‖²``. A linear layer on the input gives a single row away exactly: ``x = ΔW_i / Δb_i``.
Token embeddings that are trained move for the tokens that were there, and for no others.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fedge.core.payload import Tree
from fedge.core.task import Task
from fedge.models.names import trainable

#: Weight of total variation, step of the attacker's Adam.
_SMOOTH, _RATE = 1e-2, 0.1


def invert(
    model: nn.Module,
    task: Task,
    change: Tree,
    labels: Tensor,
    like: Tensor,
    *,
    steps: int = 200,
    squared: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor | None:
    """Images of ``like``'s shape and range whose gradient on ``model`` points where ``−change`` does.

    squared: DLG's distance, which takes the change for the gradient itself. None where the change holds none of the
    model's trainable tensors.
    """
    aimed = {name: parameter for name, parameter in trainable(model).items() if name in change}
    if not aimed:
        return None
    goal = [-change[name].double().float() for name in aimed]
    parts = [tuple(slice(0, size) for size in tensor.shape) for tensor in goal]
    low, high = float(like.min()), float(like.max())
    x = torch.rand(like.shape, generator=generator) * (high - low) + low
    x.requires_grad_(True)
    optimizer = torch.optim.Adam([x], lr=_RATE * (high - low))
    model.eval()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = _RATE * (high - low) * (0.1 if step > 2 * steps // 3 else 1.0)
        with sdpa_kernel(SDPBackend.MATH):  # the others have no second derivative
            loss = task.loss(model, {"pixel_values": x, "labels": labels})
            found = torch.autograd.grad(loss, list(aimed.values()), create_graph=True, allow_unused=True)
            gap = _gap([f[p] if f is not None else None for f, p in zip(found, parts, strict=True)], goal, squared)
            (slope,) = torch.autograd.grad(gap + _SMOOTH * variation(x) / (high - low), [x])
        x.grad = slope.sign()
        optimizer.step()
        with torch.no_grad():
            x.clamp_(low, high)
    return x.detach()


def _gap(found: list[Tensor | None], goal: list[Tensor], squared: bool) -> Tensor:
    pairs = [(f, g) for f, g in zip(found, goal, strict=True) if f is not None]
    if squared:
        return torch.stack([(f - g).square().sum() for f, g in pairs]).sum()
    inner = torch.stack([(f * g).sum() for f, g in pairs]).sum()
    ours, theirs = (torch.stack([pair[at].square().sum() for pair in pairs]).sum().sqrt() for at in (0, 1))
    return 1 - inner / (ours * theirs).clamp_min(1e-20)


def variation(images: Tensor) -> Tensor:
    """Mean absolute difference of neighbouring pixels."""
    return (images[..., 1:, :] - images[..., :-1, :]).abs().mean() + (images[..., 1:] - images[..., :-1]).abs().mean()


def correlation(found: Tensor, true: Tensor) -> float:
    """Pearson's of the best pair of a found and a true image; above 0.9 anybody knows what it shows."""
    ours, theirs = (t.flatten(1).double() - t.flatten(1).double().mean(1, keepdim=True) for t in (found, true))
    ours, theirs = (t / t.norm(dim=1, keepdim=True).clamp_min(1e-12) for t in (ours, theirs))
    return float((ours @ theirs.T).max())


def linear_input(change: Mapping[str, Tensor], layer: str) -> Tensor | None:
    """The one row that a linear layer was given, ``[in]``, from its change by a step of plain SGD; None without one."""
    weight, bias = change.get(f"{layer}.weight"), change.get(f"{layer}.bias")
    if weight is None or bias is None or not bool(bias.any()):
        return None
    row = int(bias.abs().argmax())
    return weight[row] / bias[row]


def tokens(change: Mapping[str, Tensor], vocabulary: int) -> set[int]:
    """The tokens whose embeddings moved; empty where no table of ``vocabulary`` rows was trained."""
    found: set[int] = set()
    for name, tensor in change.items():
        if tensor.dim() == 2 and len(tensor) == vocabulary and "embed" in name:
            found |= set(tensor.abs().amax(1).nonzero().flatten().tolist())
    return found
