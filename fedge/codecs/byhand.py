"""A codec in the hands of a method that encodes its messages itself, both ways, because that is what the method is.

Both ends know the names and shapes of what is encoded (``like``), so nothing travels beside the codec's own tensors.
On the tensors of a plan, which have no numbers, the sizes are those that the codec foretells.
"""

from __future__ import annotations

import torch

from fedge.codecs.chain import fits
from fedge.codecs.codec import Codec
from fedge.core.payload import Tree
from fedge.core.traced import is_traced


def encoded(codec: Codec, tree: Tree, drawn: torch.Generator) -> Tree:
    """What the codec makes of tensors; it keeps nothing for later."""
    if is_traced(*tree.values()):
        return {name: torch.empty(t.shape, dtype=t.dtype) for name, t in codec.outline(tree)[0].items()}
    return codec.encode(tree, drawn, {})[0]


def decoded(codec: Codec, sent: Tree, like: Tree) -> Tree:
    """The tensors that ``encoded`` was given; ``like`` has their names, shapes and types.

    Raises ProtocolError for what the codec can't have given.
    """
    if is_traced(*sent.values()):
        return {name: torch.empty(t.shape, dtype=t.dtype) for name, t in like.items()}
    outline, meta = codec.outline({name: tensor.to("meta") for name, tensor in like.items()})
    fits(sent, outline, exact=codec.fixed)
    return codec.decode(sent, meta)
