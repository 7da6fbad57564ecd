"""What models that wrap another have in common: names stay the base's, and the anatomy is the base's but for a part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

from torch import Tensor, nn

from fedge.models.anatomy import Anatomy, Inputs


class Around(nn.Module):
    """A module whose ``base`` is kept out of the module tree and its children put there, under their own names."""

    base: nn.Module

    def __init__(self, base: nn.Module):
        super().__init__()
        object.__setattr__(self, "base", base)
        for name, child in base.named_children():
            self.add_module(name, child)
        for name, parameter in base.named_parameters(recurse=False):
            self.register_parameter(name, parameter)

    @property
    def config(self) -> Any:
        """The base model's configuration."""
        return self.base.config

    def train(self, mode: bool = True) -> Self:
        """Training or evaluation mode, of the base too."""
        super().train(mode)
        self.base.train(mode)
        return self


class Inner(Anatomy):
    """An anatomy that is another's, to be varied."""

    def __init__(self, model: nn.Module, inner: Anatomy):
        super().__init__(model, inner.core, inner.prefix)
        self.inner = inner
        self.blocks_path = inner.blocks_path  # type: ignore[misc]
        self.norm_name = inner.norm_name  # type: ignore[misc]
        self.leading = inner.leading  # type: ignore[misc]

    @property
    def layers(self) -> Sequence[nn.Module]:
        return self.inner.layers

    @property
    def head_prefixes(self) -> tuple[str, ...]:
        return self.inner.head_prefixes

    @property
    def idle_prefixes(self) -> tuple[str, ...]:
        return self.inner.idle_prefixes

    @property
    def vocabulary(self) -> Tensor:
        return self.inner.vocabulary

    @property
    def linear(self) -> nn.Linear | None:
        return self.inner.linear

    @property
    def per_token(self) -> bool:
        return self.inner.per_token

    def embed(self, inputs: Inputs) -> Tensor:
        return self.inner.embed(inputs)

    def prompted(self, inputs: Inputs, prompt: Tensor) -> Tensor:
        return self.inner.prompted(inputs, prompt)

    def placed(self, vectors: Tensor) -> Tensor:
        return self.inner.placed(vectors)

    def mask(self, inputs: Inputs, hidden: Tensor) -> Any:
        return self.inner.mask(inputs, hidden)

    def block(self, index: int, hidden: Tensor, mask: Any) -> Tensor:
        return self.inner.block(index, hidden, mask)

    def finish(self, hidden: Tensor) -> Tensor:
        return self.inner.finish(hidden)

    def pool(self, hidden: Tensor, inputs: Inputs) -> Tensor:
        return self.inner.pool(hidden, inputs)

    def head(self, features: Tensor) -> Tensor:
        return self.inner.head(features)


def put(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module in the place of the one of that name, also in what the model wraps."""
    owner, _, child = name.rpartition(".")
    wrapped: nn.Module | None = model
    while wrapped is not None:
        setattr(wrapped.get_submodule(owner), child, module)
        wrapped = wrapped.__dict__.get("base")
