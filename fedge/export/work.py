"""What it costs to leave at each exit: work counted on one row, and from it a device's seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx
import torch
from torch import Tensor

from fedge.emulation.roofline import Rates, compute_seconds
from fedge.meter.work import Counter, Work
from fedge.models.exits import MultiExit


@dataclass(frozen=True)
class Leaving:
    """Leaving at one exit: floating-point operations, bytes moved but for weights, and bytes of weights read."""

    flops: float
    traffic: float
    weights: int

    def seconds(self, rates: Rates) -> float:
        """Modelled seconds on a device. Arithmetic counts as in fp32 whatever the precision, because profiles do not
        say what a device gains from integers; weights count as they are stored."""
        return compute_seconds(self.flops, self.traffic + self.weights, 0, rates)


def by_exit(model: MultiExit, columns: Mapping[str, Tensor]) -> list[Leaving]:
    """The cost of leaving at each exit, from the forward pass of one row in fp32; earlier exits' heads included."""
    found = []
    state: tuple[Tensor, ...] = ()
    total = Work()
    weights = 0
    with torch.no_grad():
        for at, blocks in enumerate(model.points):
            with Counter() as counter:
                state, _, _ = model.stage(blocks, state, columns)
            total = total + counter.work
            weights += _weights(model, at)
            found.append(Leaving(total.flops, max(0.0, total.traffic - weights), weights))
    return found


def _weights(model: MultiExit, at: int) -> int:
    """Bytes of the weights of one stage, of embeddings the rows that one token reads left out."""
    modules = model.modules_of(at)
    return sum(tensor.numel() * tensor.element_size() for module in modules for tensor in module.parameters())


def scaled(costs: Sequence[Leaving], full: onnx.ModelProto, stored: onnx.ModelProto) -> list[Leaving]:
    """The same costs with the blocks' weights in another precision.

    full, stored: the last stage's graph in fp32 and as it is stored; the first also holds embeddings, which some
    precisions leave as they are and of which a row reads little.
    """
    ratio = _held(stored) / max(1, _held(full))
    return [Leaving(cost.flops, cost.traffic, round(cost.weights * ratio)) for cost in costs]


def _held(proto: onnx.ModelProto) -> int:
    return sum(len(tensor.raw_data) for tensor in proto.graph.initializer)
