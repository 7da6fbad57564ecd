"""A multi-exit model as a chain of ONNX graphs: one for the blocks between two exits, with the exit at their end.

All that is exported of such a model is composed from these: each block is traced once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import onnx
from torch import Tensor, nn

from fedge.errors import FedgeError
from fedge.export import graph
from fedge.models.exits import MultiExit
from fedge.models.share import share

#: What the stages hand to each other: the hidden state, and what a recurrent exit remembers besides.
STATE = ("hidden", "memory")
#: What an output that becomes such an input is called: a name stands for one value in a graph.
NEXT = "next_"


@dataclass(frozen=True)
class Stage:
    """One stage. blocks: its exit, counted in blocks of the model. proto: inputs are the model's own for the first
    stage, and what it needs of ``STATE`` and the attention mask for the others; outputs are the next stage's state and
    ``logits``."""

    blocks: int
    proto: onnx.ModelProto

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of its inputs."""
        return tuple(value.name for value in self.proto.graph.input)

    @property
    def hands_on(self) -> tuple[str, ...]:
        """What of ``STATE`` it gives to the next stage; nothing for the last."""
        names = (value.name for value in self.proto.graph.output if value.name != graph.OUTPUT)
        return tuple(name.removeprefix(NEXT) for name in names)


class _Traced(nn.Module):
    """A stage as it is traced."""

    def __init__(self, model: MultiExit, at: int):
        super().__init__()
        self.model = _alone(model, at)
        self.blocks = model.points[at]
        self.first, self.last = at == 0, at == len(model.points) - 1

    def forward(self, columns: dict[str, Tensor]) -> tuple[Tensor, ...]:
        state = tuple(columns[name] for name in STATE if name in columns)
        inputs = {name: column for name, column in columns.items() if name not in STATE}
        state, _, logits = self.model.stage(self.blocks, state, inputs)
        return (logits,) if self.last else (*state, logits)


def _alone(model: MultiExit, at: int) -> MultiExit:
    """A copy whose other blocks and exits are empty, so that the tracer does not carry them along."""
    short = share(model)
    assert isinstance(short, MultiExit)
    kept = model.span(at)
    for index in range(len(short.parts.layers)):
        if index not in kept:
            short.parts.layers[index] = nn.Identity()  # type: ignore[index]
    for blocks in list(short.exits):
        if int(blocks) != model.points[at]:
            short.exits[blocks] = nn.Identity()
    if short.accumulator is not None and not model.form.shared:
        for index in range(len(short.accumulator.layers)):
            if index not in kept:
                short.accumulator.layers[index] = nn.Identity()
    return short.eval()


def trace(model: MultiExit, example: Mapping[str, Tensor], say: Callable[[str], None]) -> list[Stage]:
    """The stages of a model in evaluation mode, shallowest first.

    example: the model's inputs, at least two rows of at least two tokens. say: told before each stage. FedgeError,
    naming the stage, for one that cannot be traced.
    """
    stages = []
    given = dict(example)
    for at, blocks in enumerate(model.points):
        say(f"stage {at + 1}: blocks up to {blocks} become an ONNX graph")
        traced = _Traced(model, at)
        outputs = traced(given)
        handed = dict(zip(STATE, (tensor.detach() for tensor in outputs[:-1]), strict=False))
        try:
            proto = graph.convert(traced, given, outputs=[*(NEXT + name for name in handed), graph.OUTPUT])
        except FedgeError as error:
            raise FedgeError(f"the stage up to block {blocks}: {error.message}", hint=error.hint) from error
        stages.append(Stage(blocks, proto))
        masks = {name: column for name, column in example.items() if name == "attention_mask"}
        given = {**handed, **masks}
    return stages
