"""Modules that stand in a model beside the base's own: described in JSON, put on again, and told apart by their names.

A model that holds some carries their descriptions, in the order in which they were put on, so that another process can
make the same structure out of the plain base: ``extend(base, described(model))``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

import torch
from torch import nn

#: What puts a kind of module onto a model, as 'module:function'; the description's fields are its arguments.
KINDS = {
    "adapters": "fedge.models.adapter:insert",
    "prompt": "fedge.models.prompt:prompted",
    "rewriter": "fedge.models.rewriter:rewrite",
    "projection": "fedge.models.projected:project",
}
#: The part of a tensor's name that says that it is none of the base's.
MARKS = frozenset({"adapter", "prompt_embeddings", "projected", "rewriter"})

Description = Mapping[str, Any]
_NOTE = "fedge_extras"


def note(model: nn.Module, kind: str, *, of: nn.Module | None = None, **fields: Any) -> nn.Module:
    """Write down on the model what was put onto it; returns the model. ``of``: the model that it wraps."""
    model.__dict__[_NOTE] = (*described(of or model), {"kind": kind, **fields})
    return model


def described(model: nn.Module) -> tuple[Description, ...]:
    """What was put onto the model, in order; empty for a plain one."""
    found: tuple[Description, ...] = model.__dict__.get(_NOTE, ())
    return found


def extend(model: nn.Module, said: Sequence[Description]) -> nn.Module:
    """The model with what is described and not there yet; what is new holds arbitrary numbers.

    Torch's global random state is left as it was.
    """
    state = torch.get_rng_state()
    have = [dict(one) for one in described(model)]
    for one in said:
        if dict(one) not in have:
            fields = {name: value for name, value in one.items() if name != "kind"}
            model = _putter(one["kind"])(model, **fields)
    torch.set_rng_state(state)
    return model.requires_grad_(False)


def unwrapped(model: nn.Module) -> nn.Module:
    """The base's own module, without what was put around it; what was put inside it stays."""
    while described(model) and isinstance(inner := model.__dict__.get("base"), nn.Module):
        model = inner
    return model


def is_extra(name: str) -> bool:
    """Whether a tensor of this name belongs to what was put on, rather than to the base."""
    return not MARKS.isdisjoint(name.split("."))


def to_json(model: nn.Module) -> str:
    return json.dumps(list(described(model)))


def _putter(kind: str) -> Callable[..., nn.Module]:
    module, _, name = KINDS[kind].partition(":")
    found: Callable[..., nn.Module] = getattr(import_module(module), name)
    return found
