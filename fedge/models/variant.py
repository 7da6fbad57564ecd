"""A variant's model out of a stage's base, the same on the server, on every device and in the planner."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn

from fedge.core.method import Method
from fedge.core.payload import Tree
from fedge.core.rng import seed_everything
from fedge.models.halved import halve
from fedge.models.names import load, tensors, trainable
from fedge.models.share import own, share, storages


@dataclass
class Assembled:
    """A variant's model and the values that its trainable tensors start from, by payload name.

    Those that the base holds are the base's own tensors, so that they cost nothing twice.
    """

    model: nn.Module
    initial: Tree
    _places: list[tuple[nn.Parameter, Tensor]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._places = [(parameter, parameter.data) for parameter in self.model.parameters()]

    def reset(self) -> None:
        """Put the model back to what ``build`` made of the base; what a download brought is let go of."""
        for parameter, data in self._places:
            parameter.data = data
        load(self.model, self.initial)


def assemble(method: Method, base: nn.Module, *seed: str | int) -> Assembled:
    """Build a variant on a copy that shares the base's memory; what it trains gets memory of its own.

    ``seed`` names the stage: new tensors (adapters, exits) are drawn from it alone, so every device has the same.
    """
    seed_everything(*seed, "build")
    model = own(method.build(share(base)), storages(base))
    held = tensors(base)
    initial = {
        name: held[name] if name in held and held[name].shape == parameter.shape else parameter.detach().clone()
        for name, parameter in trainable(model).items()
    }
    return Assembled(model, initial)


def seated(method: Method, base: nn.Module, *seed: str | int) -> Assembled:
    """``assemble`` for a device: what the variant does not train is kept in the type that it says.

    A server's models stay as the base is, whatever its devices keep.
    """
    built = assemble(method, base, *seed)
    return built if method.keeps() == "fp32" else Assembled(halve(built.model, base), built.initial)


def duplicate(base: nn.Module) -> nn.Module:
    """The base with memory of its own, nothing trainable."""
    return own(share(base).requires_grad_(True)).requires_grad_(False)
