"""Fake tensors whose operations are remembered: the same operation on the same shapes is worked out once.

Torch's own cache does this too, at a fifth of a millisecond a hit. Training repeats a few hundred operations thousands
of times, so a lean key and a lean way back are most of what a trace takes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from fedge.meter.work import UNKNOWN

_DEVICE = torch.ops.prim.device.default
_ITEM = torch.ops.aten._local_scalar_dense.default
_ADD = torch.ops.aten.add_.Tensor
_CPU = torch.device("cpu")
#: Arguments that are compared by type and value. The type counts because ``1 == 1.0 == True``.
_PLAIN = frozenset(
    {int, float, bool, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format, complex}
)
#: Operations that change shapes in place, or whose outcome depends on numbers.
_TAGS = (torch.Tag.inplace_view, torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)
_NEVER = frozenset({"aten::set_", "aten::resize_", "aten::lift", "aten::lift_fresh", "aten::lift_fresh_copy"})

Key = tuple[Any, ...]
#: What operations come to; it holds no tensor and so serves every trace of this process.
_known: dict[Key, Any] = {}
_usable: dict[Any, bool] = {}


@dataclass(frozen=True)
class _Same:
    """The output is one of the arguments (an operation in place)."""

    at: int


@dataclass(frozen=True)
class _New:
    """The output's geometry; ``of``: the argument whose memory it views, None for memory of its own."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    offset: int
    of: int | None


class RememberingMode(FakeTensorMode):  # type: ignore[no-untyped-call]
    """A fake mode for dense tensors on the CPU; whatever else comes goes torch's own way."""

    _first: dict[str, Any] | None = None

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and torch's guard against it costs more than the operation

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is _DEVICE:  # asked at every other operation
            return args[0].fake_device
        if func is _ITEM and args[0].constant is not None:
            return args[0].constant.item()
        if func is _ADD and not kwargs and type(args[1]) is int and args[0].constant is not None:
            args[0].constant.add_(args[1])  # the steps that an optimizer counts
            return args[0]
        kwargs = kwargs or {}
        key = self._key(func, args, kwargs)
        if key is None:
            return super().__torch_dispatch__(func, types, args, kwargs)
        if key in _known:
            return self._made(_known[key], args)
        out = super().__torch_dispatch__(func, types, args, kwargs)
        usable, recipe = _recipe(out, args)
        if usable:
            _known[key] = recipe
        else:
            _usable[func] = False
        return out

    def recall(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """The outcome of a known operation for a counter above this mode, spared a way through torch; else UNKNOWN."""
        key = self._key(func, args, kwargs)
        return self._made(_known[key], args) if key in _known else UNKNOWN

    def _key(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Key | None:
        usable = _usable.get(func)
        if usable is None:
            usable = _usable[func] = _can_be_remembered(func)
        if not usable:
            return None
        parts: list[Any] = [func]
        if not _describe(args, parts):
            return None
        for name, value in kwargs.items():
            parts.append(name)
            if not _describe((value,), parts):
                return None
        return tuple(parts)

    def _made(self, recipe: Any, args: Sequence[Any]) -> Any:
        kind = type(recipe)
        if kind is _Same:
            return args[recipe.at]
        if kind is _New:
            with torch._C._DisableTorchDispatch():
                if recipe.of is None:
                    shaped = torch.empty_strided(recipe.shape, recipe.stride, dtype=recipe.dtype, device="meta")
                else:
                    memory = args[recipe.of].untyped_storage()
                    shaped = torch.empty(0, dtype=recipe.dtype, device="meta")
                    shaped.set_(memory, recipe.offset, recipe.shape, recipe.stride)
            return self._faked(shaped)
        if kind is tuple or kind is list:
            return kind([self._made(one, args) for one in recipe])
        return recipe

    def _faked(self, shaped: Tensor) -> FakeTensor:
        """A fake tensor of a meta tensor's shape. Its attributes are those of the first, which torch made: checking
        arguments takes torch four times as long.
        """
        if self._first is None:
            first = FakeTensor(self, shaped, _CPU)
            self._first = dict(first.__dict__)
            return first
        made = Tensor._make_subclass(FakeTensor, shaped, False, dispatch_device=True, device_for_backend_keys=_CPU)
        torch._C._set_throw_on_mutable_data_ptr(made)
        made.__dict__.update(self._first)
        return made


def _can_be_remembered(func: Any) -> bool:
    if not isinstance(func, torch._ops.OpOverload) or func.namespace != "aten":
        return False
    return func._schema.name not in _NEVER and not any(tag in func.tags for tag in _TAGS)


def _describe(args: Sequence[Any], parts: list[Any]) -> bool:
    """Append what an outcome depends on; False where that isn't known from shapes and plain values."""
    for arg in args:
        kind = type(arg)
        if kind is FakeTensor:
            if arg.constant is not None or arg._fake_device != _CPU:
                return False
            parts += (arg.shape, arg.stride(), arg.dtype, arg.storage_offset())
        elif kind in _PLAIN:
            parts += (kind, arg)
        elif kind is list or kind is tuple:
            parts += (kind, len(arg))
            if not _describe(arg, parts):
                return False
        elif kind is torch.Generator:
            parts.append(kind)
        else:
            return False
    return True


def _recipe(out: Any, args: Sequence[Any]) -> tuple[bool, Any]:
    """How to make an output again from other arguments of the same shapes; False first where that can't be said."""
    if out is None or type(out) in (bool, int, float):
        return True, out
    if isinstance(out, (tuple, list)):
        found = [_recipe(one, args) for one in out]
        kind = list if isinstance(out, list) else tuple
        return all(usable for usable, _ in found), kind(recipe for _, recipe in found)
    if type(out) is not FakeTensor or out.constant is not None or out.layout is not torch.strided:
        return False, None
    for at, arg in enumerate(args):
        if arg is out:
            return True, _Same(at)
    of = None
    for at, arg in enumerate(args):
        if isinstance(arg, Tensor) and arg.untyped_storage()._cdata == out.untyped_storage()._cdata:
            of = at
    if of is not None and args[of].dtype is not out.dtype:
        return False, None
    plain = not (out.dtype.is_complex or out.is_conj() or out.is_neg())
    return plain, _New(tuple(out.shape), out.stride(), out.dtype, int(out.storage_offset()), of)
