"""Counting work and live memory under torch's dispatcher, on real tensors or on fake ones."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode
from torch.utils.flop_counter import flop_registry

from fedge.core.cost import KINDS

aten = torch.ops.aten
_DEVICE = torch.ops.prim.device.default
#: What a mode's ``recall`` gives for an operation whose outcome it doesn't know.
UNKNOWN: Any = object()


def _tensors(value: Any) -> Sequence[Tensor]:
    """The tensors in an operation's argument or outcome: one, a list of them, or none."""
    if isinstance(value, Tensor):
        return (value,)
    if isinstance(value, (list, tuple)):
        return [leaf for item in value for leaf in _tensors(item)]
    return ()


def _attention(*args: Any, out_val: Any = None, **kwargs: Any) -> int:
    """Fused attention forward: two products of [.., T, d] with [.., d, S]; query [B, H, T, d], key [B, H, S, d]."""
    query, key = args[0], args[1]
    batch, heads, positions, width = query.shape
    return 2 * 2 * batch * heads * positions * key.shape[2] * width


def _attention_backward(*args: Any, out_val: Any = None, **kwargs: Any) -> int:
    """Its backward: the scores again, and four products for the three gradients."""
    return _attention(args[1], args[2]) * 5 // 2


def _convolution(*args: Any, out_val: Any = None, **kwargs: Any) -> int:
    """A product of each output with the weights that reach it; weight [out, in / groups, *kernel]."""
    moved = args[0] if args[6] else out_val
    return 2 * int(moved.numel()) * math.prod(args[1].shape[1:])


def _convolution_backward(*args: Any, out_val: Any = None, **kwargs: Any) -> int:
    """As many again for the gradient of the input, and for that of the weights, whichever are asked for."""
    moved = args[1] if args[7] else args[0]
    return 2 * int(moved.numel()) * math.prod(args[2].shape[1:]) * (int(args[10][0]) + int(args[10][1]))


def _recurrent(*args: Any, out_val: Any = None, **kwargs: Any) -> int:
    """A fused LSTM layer: at each step its gates from input and state; weights [gates, in] and [gates, out]."""
    steps, incoming = args[0].numel() // args[0].shape[-1], args[1]
    return 2 * int(steps) * (incoming.numel() + args[2].numel())


def _recurrent_backward(*args: Any, out_val: Any = None, **kwargs: Any) -> int:
    """As many again for what goes back, and for the weights."""
    return 2 * _recurrent(*args)


# torch's registry leaves out fused recurrent layers and the kernels that attention takes on a CPU, and takes the
# gradient of a grouped convolution's weights for that of a dense one: many times too much for depthwise convolutions.
_FLOPS: dict[Any, Callable[..., int]] = dict(flop_registry)
_FLOPS[aten._scaled_dot_product_flash_attention_for_cpu] = _attention
_FLOPS[aten._scaled_dot_product_flash_attention_for_cpu_backward] = _attention_backward
_FLOPS[aten.mkldnn_rnn_layer] = _recurrent
_FLOPS[aten.mkldnn_rnn_layer_backward] = _recurrent_backward
_FLOPS[aten.convolution] = _convolution
_FLOPS[aten.convolution_backward] = _convolution_backward


def _kind(packet: Any, args: Any) -> int | None:
    """The place in ``KINDS`` of an operation; None for products of matrices and attention."""
    if packet is aten.mkldnn_rnn_layer or packet is aten.mkldnn_rnn_layer_backward:
        return KINDS.index("recurrent")
    if packet is aten.convolution:
        weight, groups, backward = args[1], args[8], False
    elif packet is aten.convolution_backward:
        weight, groups, backward = args[2], args[9], True
    else:
        return None
    if groups > 1:
        return KINDS.index("depthwise")
    if backward:
        return KINDS.index("conv_backward")
    return KINDS.index("pointwise" if math.prod(weight.shape[2:]) == 1 else "conv")


@dataclass(frozen=True)
class Work:
    """Floating-point operations, bytes moved to and from memory, and operations dispatched.

    ``kinds``: how many of the floating-point operations are of each of ``KINDS``; the others are products of matrices.
    """

    flops: float = 0.0
    traffic: float = 0.0
    ops: int = 0
    kinds: tuple[float, ...] = (0.0,) * len(KINDS)

    def __add__(self, other: Work) -> Work:
        kinds = tuple(a + b for a, b in zip(self.kinds, other.kinds, strict=True))
        return Work(self.flops + other.flops, self.traffic + other.traffic, self.ops + other.ops, kinds)

    def __sub__(self, other: Work) -> Work:
        kinds = tuple(a - b for a, b in zip(self.kinds, other.kinds, strict=True))
        return Work(self.flops - other.flops, self.traffic - other.traffic, self.ops - other.ops, kinds)

    def __mul__(self, times: float) -> Work:
        kinds = tuple(a * times for a in self.kinds)
        return Work(self.flops * times, self.traffic * times, round(self.ops * times), kinds)

    @property
    def shares(self) -> dict[str, float]:
        """Which share of the floating-point operations each of ``KINDS`` has, those left out that have none."""
        if self.flops <= 0:
            return {}
        return {name: n / self.flops for name, n in zip(KINDS, self.kinds, strict=True) if n > 0}


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
        self.kinds = [0.0] * len(KINDS)
        self.live = 0
        self.peak = 0
        self._memory = memory
        self._seen: dict[int, weakref.ref[Any]] = {}
        self._known = {tensor.untyped_storage()._cdata for tensor in known}

    @property
    def work(self) -> Work:
        return Work(self.flops, self.traffic, self.ops, tuple(self.kinds))

    def hold(self, tensor: Tensor) -> None:
        """Count a tensor that was made outside of this mode as live from now on."""
        self._track(tensor)

    def bump(self, nbytes: int) -> None:
        """Note a moment at which ``nbytes`` beyond the live tensors are held (a message being packed)."""
        self.peak = max(self.peak, self.live + nbytes)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled under a counter, and torch's guard against it costs more than the counting

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _DEVICE:  # asked of fake tensors alone, at every other operation
            return args[0].fake_device
        kwargs = kwargs or {}
        beneath = _get_current_dispatch_mode()
        out = beneath.recall(func, args, kwargs) if hasattr(beneath, "recall") else UNKNOWN
        if out is UNKNOWN:
            out = func(*args, **kwargs)
        if func.namespace == "prim":
            return out
        packet = func._overloadpacket
        self.ops += 1
        if packet in _FLOPS:
            flops = _FLOPS[packet](*args, **kwargs, out_val=out)
            self.flops += flops
            kind = _kind(packet, args)
            if kind is not None:
                self.kinds[kind] += flops
        if not func.is_view:
            outputs = _tensors(out)
            for leaf in outputs:
                self.traffic += leaf.nbytes
            for value in (*args, *kwargs.values()):
                for leaf in _tensors(value):
                    self.traffic += leaf.nbytes
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
