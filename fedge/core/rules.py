"""Aggregation that a minority of hostile answers can't bend at will: rules that stand in for a mean of changes.

Answers are trees of named tensors, all weighted alike, since an attacker could claim any number of rows. An answer may
lack tensors, or hold a leading block of one; a coordinate is judged among those who sent it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from fedge.core.payload import Tree


def median(answers: Sequence[Tree]) -> Tree:
    """Coordinate by coordinate; of an even number the mean of the two in the middle (Yin et al. 2018, 1803.01498)."""
    return _ordered(answers, lambda count: ((count - 1) // 2, count // 2 + 1))


def trimmed(answers: Sequence[Tree], share: float) -> Tree:
    """The mean without the ``share`` of lowest and of highest values of each coordinate (the same paper)."""

    def kept(count: Tensor) -> tuple[Tensor, Tensor]:
        cut = torch.minimum((share * count).floor().long(), (count - 1) // 2)
        return cut, count - cut

    return _ordered(answers, kept)


def krum(answers: Sequence[Tree], hostile: int, keep: int = 1) -> tuple[Tree, list[int]]:
    """The mean of the ``keep`` answers that lie closest to their ``n − f − 2`` nearest (Blanchard et al. 2017).

    ``s_k = Σ ‖Δ_k − Δ_j‖²`` over those j; Krum keeps the one of least s, Multi-Krum several. Returns which, too.
    """
    distances = torch.tensor([[_distance(a, b) for b in answers] for a in answers], dtype=torch.float64)
    distances.fill_diagonal_(math.inf)
    near = max(1, min(len(answers) - 1, len(answers) - hostile - 2))
    scores = distances.sort(dim=1).values[:, :near].sum(dim=1)
    chosen = sorted(scores.argsort(stable=True)[:keep].tolist())
    return mean([answers[at] for at in chosen]), chosen


def mean(answers: Sequence[Tree], factors: Sequence[float] | None = None, total: float | None = None) -> Tree:
    """``Σ a_k Δ_k / Σ a_k`` over those who sent a coordinate, or over ``total`` where that is given."""
    sums: Tree = {}
    counts: Tree = {}
    for answer, factor in zip(answers, factors or [1.0] * len(answers), strict=True):
        for name, tensor in answer.items():
            if name not in sums:
                shape = _extent([a[name] for a in answers if name in a])
                sums[name], counts[name] = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape)
            part = _block(tensor)
            sums[name][part] += factor * tensor.to(torch.float64)
            counts[name][part] += factor
    divisor = {name: torch.full_like(count, total) if total is not None else count for name, count in counts.items()}
    return {name: (tensor / divisor[name].clamp_min(1e-12)).to(torch.float32) for name, tensor in sums.items()}


def norm(answer: Tree) -> float:
    """``‖Δ‖``."""
    return math.sqrt(sum(float(tensor.to(torch.float64).square().sum()) for tensor in answer.values()))


def clipped(answers: Sequence[Tree], bound: float | None = None) -> tuple[Tree, float]:
    """The mean of ``Δ_k min(1, τ / ‖Δ_k‖)``; τ is ``bound``, or the median of the norms. Returns τ, too."""
    norms = [norm(answer) for answer in answers]
    limit = bound if bound is not None else float(torch.tensor(norms, dtype=torch.float64).median())
    scaled = [
        {name: tensor * min(1.0, limit / max(size, 1e-300)) for name, tensor in answer.items()}
        for answer, size in zip(answers, norms, strict=True)
    ]
    return mean(scaled), limit


def trusted(answers: Sequence[Tree], root: Tree) -> Tree | None:
    """FLTrust (Cao et al. 2021, arXiv 2012.13995): answers as far as they point where the server's own change does.

    ``TS_k = relu(cos(Δ_k, Δ_0))``, ``Δ = Σ TS_k Δ_k ‖Δ_0‖ / ‖Δ_k‖ / Σ TS_k``. None where no answer does.
    """
    size = norm(root)
    scores, scaled = [], []
    for answer in answers:
        own = norm(answer)
        inner = sum(float((tensor * root[name][_block(tensor)]).double().sum()) for name, tensor in answer.items())
        scores.append(max(0.0, inner / max(own * size, 1e-300)))
        scaled.append({name: tensor * (size / max(own, 1e-300)) for name, tensor in answer.items()})
    return mean(scaled, scores) if sum(scores) > 0 else None


def _ordered(answers: Sequence[Tree], kept: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tree:
    """The mean of each coordinate's values from a place in their order to another; ``kept(count) -> (first, end)``."""
    found: Tree = {}
    for name in dict.fromkeys(name for answer in answers for name in answer):
        sent = [answer[name] for answer in answers if name in answer]
        stack = torch.full((len(sent), *_extent(sent)), math.nan, dtype=torch.float64)
        for at, tensor in enumerate(sent):
            stack[at][_block(tensor)] = tensor.to(torch.float64)
        count = (~stack.isnan()).sum(0)
        first, end = kept(count)
        place = torch.arange(len(sent)).view(-1, *[1] * (stack.dim() - 1))
        inside = (place >= first) & (place < end)
        values = stack.sort(dim=0).values  # what is not a number comes last
        total = torch.where(inside, values, torch.zeros_like(values)).sum(0)
        found[name] = (total / (end - first).clamp_min(1)).to(torch.float32)
    return found


def _distance(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """``‖a − b‖²`` over what both hold, as if all coordinates were as far apart as these."""
    total, common, whole = 0.0, 0, sum(tensor.numel() for tensor in a.values())
    for name, tensor in a.items():
        if name in b:
            shape = [min(m, n) for m, n in zip(tensor.shape, b[name].shape, strict=True)]
            part = tuple(slice(0, size) for size in shape)
            total += float((tensor[part].double() - b[name][part].double()).square().sum())
            common += math.prod(shape)
    return total * whole / common if common else math.inf


def _extent(tensors: Sequence[Tensor]) -> list[int]:
    return [max(sizes) for sizes in zip(*(tensor.shape for tensor in tensors), strict=True)]


def _block(tensor: Tensor) -> tuple[slice, ...]:
    return tuple(slice(0, size) for size in tensor.shape)
