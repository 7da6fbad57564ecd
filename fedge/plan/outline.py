"""What the answers of a variant are made of: roles, names, types and shapes, out of a rehearsal on fake tensors.

By it a coordinator knows an answer of the wrong shape before a method sees it: a tensor of shape ``[1]`` would be
spread over a whole layer, and no average would fail.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from fedge.core.method import Method
from fedge.core.payload import Cell, Payload
from fedge.plan.costs import held_by
from fedge.plan.fake import RememberingMode
from fedge.plan.rehearsal import Rehearsal, Setting
from fedge.plan.shapes import ShapedRows, faked, skeleton
from fedge.plan.trace import REPEATS, silent

#: Roles whose tensors follow from who is left in a round; the protocol that they belong to checks them itself.
_PROTOCOL = frozenset({"keys", "shares"})
#: Role, name, type and the number of dimensions: what is the same in every answer of one kind.
Kind = frozenset[tuple[str, str, str, int]]
Shapes = dict[tuple[str, str], tuple[int | None, ...]]


@dataclass(frozen=True)
class Outline:
    """The kinds of answers that a variant gives, each with its tensors' shapes; None for a size that varies."""

    kinds: dict[Kind, Shapes]

    def wrong(self, answer: Payload) -> str | None:
        """What no answer of the variant has, in words; None for an answer that may be one."""
        cells = _outside_protocols(answer.cells)
        kind = _kind(cells)
        if kind in self.kinds:
            shapes = self.kinds[kind]
            for role, name, dtype, shape in sorted(cells):
                right = shapes[role, name]
                if any(size not in (None, mine) for size, mine in zip(right, shape, strict=True)):
                    wanted = ", ".join("any" if size is None else str(size) for size in right)
                    return f"its answer has {role} '{name}' as {dtype} {list(shape)}, and its method sends [{wanted}]"
            return None
        nearest = min(self.kinds, key=lambda known: (len(known ^ kind), sorted(known)), default=Kind())
        for role, name, dtype, dimensions in sorted(kind - nearest):
            return (
                f"its answer has {role} '{name}' as {dtype} of {dimensions} dimensions, which its method does not send"
            )
        role, name, _, _ = min(nearest - kind)
        return f"its answer lacks {role} '{name}'"


def outline_of(method: Method, variant: Method, setting: Setting) -> Outline | None:
    """The outline of ``variant``'s answers; None where it can't be known before.

    That is where a method's sizes depend on what is learnt (such methods waive the kit's 'bytes'), and where it can't
    be traced. A size that differs between a device with many rows and one with a single row, or between few and more
    repetitions, is one that varies.
    """
    if any(dict(held.card.waives).get("bytes") for held in (method, variant, *held_by(method), *held_by(variant))):
        return None
    apart = skeleton(setting.base)
    heard: list[frozenset[Cell]] = []
    try:
        with silent(), RememberingMode():
            base = faked(apart)
            for rows in (setting.rows, ShapedRows(setting.rows, 1)):
                rehearsal = Rehearsal(method, variant, replace(setting, rows=rows), base, fake=True)
                for first in method.phases():
                    counts = [name for name in REPEATS if isinstance(getattr(variant.working(first), name, None), int)]
                    rehearsal.fill(first, dict.fromkeys(counts, 1))
                    rehearsal.round(first, dict.fromkeys(counts, 2))
                heard += rehearsal.answers
    except Exception:  # whatever a method raises on tensors without data; the same is then measured, not traced
        return None
    return _merged(heard)


def _merged(answers: Iterable[frozenset[Cell]]) -> Outline:
    kinds: dict[Kind, Shapes] = {}
    for answer in answers:
        cells = _outside_protocols(answer)
        known = kinds.setdefault(_kind(cells), {})
        for role, name, _, shape in cells:
            before = known.get((role, name), shape)
            known[role, name] = tuple(a if a == b else None for a, b in zip(before, shape, strict=True))
    return Outline(kinds)


def _kind(cells: Iterable[Cell]) -> Kind:
    return frozenset((role, name, dtype, len(shape)) for role, name, dtype, shape in cells)


def _outside_protocols(cells: Iterable[Cell]) -> frozenset[Cell]:
    return frozenset(cell for cell in cells if cell[0] not in _PROTOCOL)
