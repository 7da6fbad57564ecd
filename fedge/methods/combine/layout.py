"""One vector for tensors of which devices send different ones, or parts: where each lies, and who covers it.

After the tensors stands one number for each *cell*, a tensor's name with the shape in which somebody sends it: the
weight of those who do. So a sum of vectors tells the sum of each coordinate and the weight that it is to be divided by.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from fedge.core.payload import Tree
from fedge.errors import ProtocolError
from fedge.methods.combine.shell import Outline

#: Role, name, shape.
Cell = tuple[str, str, tuple[int, ...]]
_LIMIT = 4 << 20


def cells_of(parts: Mapping[str, Tree]) -> list[Cell]:
    """What an answer covers."""
    return [(role, name, tuple(t.shape)) for role, tree in sorted(parts.items()) for name, t in sorted(tree.items())]


def written(cells: Sequence[Cell]) -> str:
    """Cells as a short text; names repeat each other, so they are deflated."""
    return base64.b64encode(zlib.compress(json.dumps(cells, separators=(",", ":")).encode(), 9)).decode("ascii")


def read(text: object) -> list[Cell]:
    """The cells that ``written`` wrote. Raises ProtocolError for anything else."""
    try:
        inflate = zlib.decompressobj()
        data = inflate.decompress(base64.b64decode(str(text), validate=True), _LIMIT)
        found = [(role, name, tuple(shape)) for role, name, shape in json.loads(data)]
        if not inflate.eof or not all(
            isinstance(role, str) and isinstance(name, str) and all(type(n) is int and n >= 0 for n in shape)
            for role, name, shape in found
        ):
            raise ValueError("it is no list of roles, names and shapes")
    except (ValueError, TypeError, RecursionError, zlib.error, binascii.Error) as error:
        raise ProtocolError(f"what an answer covers can't be read: {error}") from error
    return found


@dataclass(frozen=True)
class Layout:
    """``cells``: everything that anybody sends, sorted and each once."""

    cells: tuple[Cell, ...]

    @classmethod
    def of(cls, answers: Sequence[Sequence[Cell]]) -> Layout:
        return cls(tuple(sorted({cell for answer in answers for cell in answer})))

    @cached_property
    def shapes(self) -> Outline:
        """The extent of each tensor, by role and name."""
        found: Outline = {}
        for role, name, shape in self.cells:
            before = found.setdefault(role, {}).get(name, [0] * len(shape))
            if len(before) != len(shape):
                raise ProtocolError(f"'{name}' is sent with {len(before)} and with {len(shape)} dimensions")
            found[role][name] = [max(a, b) for a, b in zip(before, shape, strict=True)]
        return found

    def places(self) -> Iterator[tuple[str, str, list[int], slice]]:
        """Role, name, shape and place in the vector of each tensor."""
        at = 0
        for role, tree in sorted(self.shapes.items()):
            for name, shape in sorted(tree.items()):
                count = math.prod(shape)
                yield role, name, shape, slice(at, at + count)
                at += count

    @cached_property
    def numbers(self) -> int:
        """Coordinates of tensors."""
        return sum(math.prod(shape) for tree in self.shapes.values() for shape in tree.values())

    @property
    def length(self) -> int:
        """Numbers of the vector."""
        return self.numbers + len(self.cells)
