"""Counting work and live memory under torch's dispatcher, on real tensors or on fake ones."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten


def _attention(*args: Any, out_val: Any = None, **kwargs: Any) -> int:
    """Fused attention forward: two products of [.., T, d] with [.., d, S]; query [B, H, T, d], key [B, H, S, d]."""
    query, key = args[0], args[1]
    batch, heads, positions, width = query.shape
    return 2 * 2 * batch * heads * positions * key.shape[2] * width


def _attention_backward(*args: Any, out_val: Any = None, **kwargs: Any) -> int:
    """Its backward: the scores again, and four products for the three gradients."""
    return _attention(args[1], args[2]) * 5 // 2


# torch's registry leaves out the kernels that scaled_dot_product_attention takes on a CPU.
_FLOPS: dict[Any, Callable[..., int]] = dict(flop_registry)
_FLOPS[aten._scaled_dot_product_flash_attention_for_cpu] = _attention
_FLOPS[aten._scaled_dot_product_flash_attention_for_cpu_backward] = _attention_backward


@dataclass(frozen=True)
class Work:
    """Floating-point operations, bytes moved to and from memory, and operations dispatched."""

    flops: float = 0.0
    traffic: float = 0.0
    ops: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.traffic + other.traffic, self.ops + other.ops)

    def __sub__(self, other: Work) -> Work:
        return Work(self.flops - other.flops, self.traffic - other.traffic, self.ops - other.ops)

    def __mul__(self, times: float) -> Work:
        return Work(self.flops * times, self.traffic * times, round(self.ops * times))


class Counter(TorchDispatchMode):
    """Counts work, and with ``memory`` the bytes of storages that came to be and are still alive.

    ``known`` storages (the frozen base) are never counted as live. Views cost nothing; an operation's traffic is the
    bytes of the tensors that it reads and writes.
    """

    def __init__(self, *, memory: bool = False, known: Sequence[Tensor] = ()):
        super().__init__()
        self.flops = 0.0
        self.traffic = 0.0
        self.ops = 0
        self.live = 0
        self.peak = 0
        self._memory = memory
        self._seen: dict[int, weakref.ref[Any]] = {}
        self._known = {tensor.untyped_storage()._cdata for tensor in known}

    @property
    def work(self) -> Work:
        return Work(self.flops, self.traffic, self.ops)

    def hold(self, tensor: Tensor) -> None:
        """Count a tensor that was made outside of this mode as live from now on."""
        self._track(tensor)

    def bump(self, nbytes: int) -> None:
        """Note a moment at which ``nbytes`` beyond the live tensors are held (a message being packed)."""
        self.peak = max(self.peak, self.live + nbytes)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func.namespace == "prim":  # questions about a tensor, asked of fake ones only
            return out
        packet = func._overloadpacket
        self.ops += 1
        if packet in _FLOPS:
            self.flops += _FLOPS[packet](*args, **kwargs, out_val=out)
        outputs = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        if not func.is_view:
            inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            self.traffic += sum(leaf.numel() * leaf.element_size() for leaf in inputs + outputs)
            if self._memory:
                for leaf in outputs:
                    self._track(leaf)
        return out

    def _track(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        address = storage._cdata
        if address in self._known or address in self._seen:
            return
        size = storage.nbytes()

        def gone(_: Any, address: int = address, size: int = size) -> None:
            if self._seen.pop(address, None) is not None:
                self.live -= size

        self._seen[address] = weakref.ref(storage, gone)
        self.live += size
        self.peak = max(self.peak, self.live)
