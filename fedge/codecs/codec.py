"""The interface of a codec: a frozen dataclass of its numbers and three functions of it.

``encode`` takes a role's tensors by name and gives others, ``decode`` takes those back, and ``outline`` says of
tensors without data (on torch's meta device) what ``encode`` will give. Four rules, from which predicted bytes,
safe decoding and small headers follow:

1. What depends on the numbers goes into tensors; the meta is a function of names, shapes and types alone and equals
   what ``outline`` gives, so that it never travels: the receiver makes it anew.
2. ``outline`` tells the exact shape of every tensor; only a codec that isn't ``fixed`` may give one-dimensional
   tensors that are shorter than outlined.
3. Tensors that a codec does not touch keep their names. Its own are called ``<key>.<piece>``, and there are as few of
   them as possible (one vector for all tensors together), because every name costs some 70 bytes.
4. ``encode`` leaves its input as it is and draws randomness from its generator alone; ``state`` is this codec's on this
   device, a dict of tensors and JSON values that survives rounds, empty at first and whenever the shapes have changed.

``decode`` may trust that the tensors have the outlined types and shapes, and not what stands in them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from fedge.core.fields import doc
from fedge.core.method import State
from fedge.core.payload import DTYPES, Tree
from fedge.core.roles import ROLES, SECRET, STEPS

Meta = dict[str, Any]
#: Roles whose numbers may be rounded: averages of them lose precision and nothing else.
NUMBERS = ("weights", "delta", "logits", "prototypes", "activations", "gradients")
#: Roles of which parts may be left out, because what is left out now can be sent later.
CHANGES = ("delta", "gradients")
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True, kw_only=True)
class Codec:
    """See the module's text. ``feedback``, where a codec has such a field, asks the chain for error feedback."""

    #: The name in YAML, and the beginning of its tensors' names.
    key: ClassVar[str]
    roles: ClassVar[tuple[str, ...]]
    steps: ClassVar[tuple[str, ...]]
    summary: ClassVar[str]
    paper: ClassVar[str]
    lossless: ClassVar[bool] = False
    fixed: ClassVar[bool] = True

    only: tuple[str, ...] = field(default=(), metadata=doc("roles to touch; all that it may, when none is named"))

    def __post_init__(self) -> None:
        for role in self.only:
            if role not in self.roles:
                raise ValueError(f"'{self.key}' must not touch {role}; it may touch {', '.join(self.roles)}")

    @property
    def touches(self) -> tuple[str, ...]:
        """The roles that this one touches."""
        return self.only or self.roles

    def encode(self, tree: Tree, rng: torch.Generator, state: State) -> tuple[Tree, Meta]:
        raise NotImplementedError

    def decode(self, tree: Tree, meta: Meta) -> Tree:
        raise NotImplementedError

    def outline(self, tree: Tree) -> tuple[Tree, Meta]:
        raise NotImplementedError

    def variance(self, tree: Tree) -> float | None:
        """For unbiased codecs the ω of ``E‖C(x) − x‖² ≤ ω‖x‖²`` over all tensors of these shapes; None for others."""
        return None

    def name(self, piece: str) -> str:
        return f"{self.key}.{piece}"


def legal(kind: type[Codec]) -> None:
    """Raise TypeError when a class is not a codec that a chain can hold."""
    known = [role for role in ROLES if role not in SECRET]
    for what, given, words in (("roles", kind.roles, known), ("steps", kind.steps, list(STEPS))):
        wrong = [word for word in given if word not in words]
        if wrong or not given:
            raise TypeError(f"{kind.__name__}.{what}: {', '.join(wrong) or 'none'}; they are among {', '.join(words)}")


def floats(tree: Tree) -> Tree:
    """The floating-point tensors, in order: what lossy codecs touch."""
    return {name: tensor for name, tensor in tree.items() if tensor.is_floating_point()}


def rest(tree: Tree, taken: Tree) -> Tree:
    return {name: tensor for name, tensor in tree.items() if name not in taken}


def blank(dtype: torch.dtype, *shape: int) -> Tensor:
    """A tensor of which only type and shape exist."""
    return torch.empty(shape, dtype=dtype, device="meta")


def listed(tree: Tree) -> list[list[Any]]:
    """Name, type and shape of each tensor, as JSON."""
    return [[name, _NAMES[tensor.dtype], list(tensor.shape)] for name, tensor in tree.items()]


def blanks(entries: list[list[Any]]) -> Tree:
    """The tensors that ``listed`` listed, without data."""
    return {name: blank(DTYPES[dtype], *shape) for name, dtype, shape in entries}


def total(tree: Tree) -> int:
    return sum(tensor.numel() for tensor in tree.values())


def joined(tree: Tree, dtype: torch.dtype | None = None) -> Tensor:
    """All tensors as one vector, of ``dtype`` or of the type that holds them all."""
    dtype = dtype or widest(tree)
    flat = [tensor.reshape(-1).to(dtype) for tensor in tree.values()]
    return torch.cat(flat) if flat else torch.empty(0, dtype=dtype)


def widest(tree: Tree) -> torch.dtype:
    """The type that holds every number of floating-point tensors; float32 for none."""
    found: torch.dtype | None = None
    for tensor in tree.values():
        found = tensor.dtype if found is None else torch.promote_types(found, tensor.dtype)
    return found or torch.float32


def cut(vector: Tensor, like: Tree) -> Tree:
    """A vector cut into tensors of the shapes and types of ``like``."""
    pieces = torch.split(vector, [tensor.numel() for tensor in like.values()])
    return {n: piece.reshape(t.shape).to(t.dtype) for (n, t), piece in zip(like.items(), pieces, strict=True)}
