"""What a chain of codecs costs the device that encodes: counted once, on random numbers of the answer's shapes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily

from fedge.codecs.chain import Chain
from fedge.core.payload import Payload
from fedge.meter.work import Counter, Work

#: Role, name, shape and type of each tensor of a payload.
Shapes = tuple[tuple[str, str, tuple[int, ...], torch.dtype], ...]


@dataclass(frozen=True)
class Encoding:
    """The work, the bytes held meanwhile beyond the answer itself, and the bytes that the device keeps for later.

    The work is that of torch's operations; a decomposition counts for its traffic alone.
    """

    work: Work = field(default_factory=Work)
    peak: int = 0
    kept: int = 0


def encoding(chain: Chain, answer: Payload) -> Encoding:
    """What it costs to encode an answer, of which only the shapes matter."""
    touched = [role for role in answer.parts if chain.of(role)]
    shapes = tuple((role, n, tuple(t.shape), t.dtype) for role in touched for n, t in answer[role].items())
    return _counted(chain, shapes) if shapes else Encoding()


@lru_cache(maxsize=16)
def _counted(chain: Chain, shapes: Shapes) -> Encoding:
    with unset_fake_temporarily():
        rng = torch.Generator().manual_seed(0)
        answer = Payload()
        for role, name, shape, dtype in shapes:
            answer.parts.setdefault(role, {})[name] = torch.randn(shape or (1,), generator=rng).reshape(shape).to(dtype)
        state: dict[str, object] = {}
        chain.encode(answer, rng, state)  # the second message is that of most rounds: something is kept from the first
        kept = sum(tensor.numel() * tensor.element_size() for tensor in _tensors(state))
        counter = Counter(memory=True)
        with counter:
            chain.encode(answer, rng, state)
    return Encoding(counter.work, counter.peak, kept)


def _tensors(state: object) -> Iterator[Tensor]:
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, dict):
        for value in state.values():
            yield from _tensors(value)
