"""The closed words for what is sent and for what codecs do to it, and which chains of codecs are legal. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

#: What a tensor is for. Closed, so that codecs, privacy and reports can say what they touch.
ROLES = (
    "weights",
    "delta",
    "mask",
    "scalars",
    "logits",
    "prototypes",
    "statistics",
    "activations",
    "gradients",
    "keys",
    "shares",
)
#: Roles that no codec may touch: their bits are random, and a changed one spoils what it unlocks.
SECRET = ("keys", "shares")
#: What a codec does, in the only order in which it may be done, with the words for it.
STEPS = {
    "transform": "transforms",
    "sparsify": "sparsifies",
    "quantise": "quantises",
    "entropy": "entropy-codes",
}


@dataclass(frozen=True)
class Part:
    """One codec of a chain: its name, the roles that it touches, and the steps that it takes, in order."""

    name: str
    roles: tuple[str, ...]
    steps: tuple[str, ...]


def refusal(chain: Sequence[Part]) -> tuple[int, str, str] | None:
    """Why a chain is illegal: the place of the codec at fault, what is wrong, what to do. None for a legal one.

    On every role the steps of all its codecs must come in the order of ``STEPS``, each at most once.
    """
    order = list(STEPS)
    for place, part in enumerate(chain):
        for earlier in chain[:place]:
            common = [role for role in part.roles if role in earlier.roles]
            if not common:
                continue
            twice = [step for step in part.steps if step in earlier.steps]
            on = ", ".join(common)
            if twice:
                wrong = f"'{part.name}' {STEPS[twice[0]]} {on}, as '{earlier.name}' before it does"
                return place, wrong, "leave one of them out, or give them different roles by only: [...]"
            first = min(part.steps, key=order.index)
            last = max(earlier.steps, key=order.index)
            if order.index(first) < order.index(last):
                wrong = f"'{part.name}' {STEPS[first]} {on} after '{earlier.name}', which {STEPS[last]}"
                return place, wrong, f"put '{part.name}' before '{earlier.name}'"
    return None
