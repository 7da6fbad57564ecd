"""One method on one tiny federation, with the rounds that several properties look at."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from fedge.core.method import Method, State
from fedge.core.payload import pack
from fedge.data.rows import Rows
from fedge.methods.make import difference
from fedge.plan.rehearsal import repeated
from fedge.plan.trace import REPEATS
from fedge.run.states import flatten
from fedge.testing.driver import Driven, start
from fedge.testing.tiny import Tiny

#: Devices and their numbers of rows.
DEVICES = {"a": 5, "b": 9, "c": 2}
#: Turns that no round of two steps has.
TURNS = 40
_SMALL = {**dict.fromkeys(REPEATS, 2), "batch": 4}


class Broken(Exception):
    """A property that does not hold: what was seen, and what the method's author can do about it."""

    def __init__(self, seen: str, mend: str):
        super().__init__(f"{seen}. {mend}")


@dataclass(frozen=True)
class Trail:
    """Undisturbed rounds, beside which several properties hold disturbed ones.

    driven: where they ended. states: the bits of the server's state after each. taken_up: the federation as other
    processes would take it up after the first round.
    """

    driven: Driven
    states: tuple[bytes, ...]
    taken_up: Driven


@dataclass(frozen=True)
class Case:
    """``method`` with few steps and small batches, on ``tiny``."""

    method: Method
    tiny: Tiny

    @classmethod
    def of(cls, method: Method, tiny: Tiny) -> Case:
        return cls(repeated(method, _SMALL), tiny)

    @cached_property
    def variants(self) -> list[Method]:
        """Richest first, as the planner would offer them."""
        return list(self.method.variants())

    @property
    def public(self) -> Rows:
        """Rows that server and devices share."""
        return self.tiny.rows(10, "public")

    def start(self, variants: Sequence[Method] | None = None, *, method: Method | None = None) -> Driven:
        """A federation before its first round: ``DEVICES`` that run ``variants`` in turn (None: the richest), or a
        device for each variant when there are more of them."""
        picked = list(variants or self.variants[:1])
        names = [*DEVICES, *(f"d{n}" for n in range(len(DEVICES), len(picked)))]
        rows = {name: self.tiny.rows(DEVICES.get(name, 4), name) for name in names}
        chosen = {name: picked[at % len(picked)] for at, name in enumerate(names)}
        tiny, public = self.tiny, self.public
        begun = start(method or self.method, tiny.model, rows, tiny.task, variants=chosen, public=public)
        begun.turns = TURNS
        return begun

    @cached_property
    def plain(self) -> Driven:
        """Two rounds of devices that all run the richest variant; to be looked at, not continued."""
        return self.start().go(2)

    @cached_property
    def trail(self) -> Trail:
        """Three rounds of devices that run ``mixed``; to be looked at, not continued."""
        driven = self.start(self.mixed).go(1)
        states, taken_up = [bits(driven.state)], driven.again()
        for _ in range(2):
            states.append(bits(driven.go(1).state))
        return Trail(driven, tuple(states), taken_up)

    @cached_property
    def mixed(self) -> list[Method]:
        """The richest, a middle and the leanest variant."""
        found = self.variants
        return [found[0], found[len(found) // 2], found[-1]]

    def called(self, variant: Method) -> str:
        """A variant in words."""
        differs = difference(variant, self.method)
        return "the richest variant" if not differs else "variant " + ", ".join(f"{k}={v}" for k, v in differs.items())

    @torch.no_grad()
    def logits(self, driven: Driven, model: nn.Module | None = None) -> Tensor:
        """What a model (None: the one that the stage leaves) says of the probe."""
        found = driven.final() if model is None else model
        return driven.server.method.predict(found.eval(), self.tiny.probe)


def idle(method: Method) -> Method | None:
    """The method with no repetition of anything, past its own check of its fields; None where it has no such field."""
    still = copy.copy(method)
    found = False
    for f in fields(method):
        value = getattr(method, f.name)
        new: Any = value
        if f.name in REPEATS and isinstance(value, int):
            new = 0
        elif isinstance(value, Method):
            new = idle(value)
        elif isinstance(value, tuple) and value and all(isinstance(item, Method) for item in value):
            inner = [idle(item) for item in value]
            new = None if None in inner else tuple(inner)
        if new is None and value is not None:
            return None
        if new is not value:
            object.__setattr__(still, f.name, new)
            found = True
    return still if found else None


def bits(state: State) -> bytes:
    """A state's bytes; equal for equal states."""
    tensors, text = flatten(state)
    return bytes(pack(tensors)) + text.encode()


def finite(state: State) -> bool:
    """Whether every number of a state's tensors is one."""
    tensors, _ = flatten(state)
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values() if tensor.is_floating_point())


def apart(a: Tensor, b: Tensor) -> float:
    """The largest difference of two tensors of numbers, in units of what float32 and their size make usual."""
    if a.shape != b.shape:
        return float("inf")
    if not a.numel():
        return 0.0
    worst = (a.double() - b.double()).abs().max() / max(1.0, float(b.double().abs().max()))
    return float(worst) if worst == worst else float("inf")
