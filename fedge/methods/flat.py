"""The trained tensors as one vector, of which a part travels by its places.

What adapters and heads hold lies in one vector in the order of the tensors' names, the same on the server and on every
device whatever it trains; so a place is a number, and who trains less sends fewer places.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Size, Tensor, nn

from fedge.codecs import bits
from fedge.codecs.largest import how_many, largest
from fedge.core.fold import Coverage
from fedge.core.payload import Tree
from fedge.errors import ProtocolError
from fedge.methods.lowrank import is_factor
from fedge.models.anatomy import anatomy, is_known
from fedge.models.names import tensors, trainable

Shapes = Mapping[str, Size]


def adapters_and_heads(model: nn.Module) -> Tree:
    """Every adapter's factors at full rank, and the classifier, in the order of their names; not copied."""
    heads = anatomy(model).head_prefixes if is_known(model) else ()
    heads = tuple(prefix for prefix in heads if "classifier" in prefix or "pooler" in prefix)
    own = set(trainable(model))
    found = {n: t for n, t in tensors(model).items() if is_factor(n) or n.startswith(heads) or n in own}
    return dict(sorted(found.items()))


def shapes(tree: Tree) -> Shapes:
    return {name: tensor.shape for name, tensor in tree.items()}


def flat(tree: Tree, of: Shapes) -> Tensor:
    """Tensors as a vector; zeros where the tree lacks one, or holds the leading block of one alone."""
    pieces = []
    for name, shape in of.items():
        tensor = tree.get(name)
        if tensor is None or tensor.shape != shape:
            whole = torch.zeros(shape)
            if tensor is not None:
                whole[tuple(slice(0, size) for size in tensor.shape)] = tensor
            tensor = whole
        pieces.append(tensor.reshape(-1))
    return torch.cat(pieces)


def unflat(vector: Tensor, of: Shapes) -> Tree:
    """A vector as tensors."""
    pieces = vector.split([shape.numel() for shape in of.values()])
    return {name: piece.reshape(shape) for (name, shape), piece in zip(of.items(), pieces, strict=True)}


def kept(vector: Tensor, density: float, trained: int | None = None) -> Tensor:
    """Places, ascending, of the largest numbers: the share ``density`` of all, or of the ``trained`` ones."""
    return largest(vector, how_many(density, len(vector) if trained is None else trained))


def sparse(vector: Tensor, places: Tensor) -> Tree:
    """The numbers at some places, as they travel: four bytes each, and their places packed."""
    return {"values": vector[places], "places": bits.pack_places(places, len(vector))}


def dense(sent: Tree, size: int) -> tuple[Tensor, Tensor]:
    """The vector that ``sparse`` sent, zeros elsewhere, and its places. ProtocolError for what it can't have sent."""
    values, packed = sent.get("values"), sent.get("places")
    if values is None or packed is None or len(values) > size:
        raise ProtocolError("an answer without values and places of the vector")
    if len(packed) != bits.places_nbytes(len(values), size):
        raise ProtocolError(f"{len(packed)} bytes can't be {len(values)} places of {size}")
    places = bits.unpack_places(packed, len(values), size)
    vector = torch.zeros(size, dtype=values.dtype)
    vector[places] = values
    return vector, places


def mean(vectors: Iterable[tuple[float, Tensor]], size: int) -> Tensor:
    """``Σ a_k v_k / Σ a_k``; who left a place out says that it did not change."""
    coverage = Coverage({"all": Size([size])})
    for weight, vector in vectors:
        coverage.add(weight, {"all": vector})
    return coverage.mean()[0]["all"]
