"""Payload: the one thing that travels between server and device, and its bytes.

The bytes are a safetensors file (https://github.com/huggingface/safetensors): eight bytes of header length, a JSON
header, the tensors. They are written and read here rather than through the library because both sides of a device
live under a memory wall: writing goes once into one buffer, reading gives views of the received buffer.
``tests/core/test_payload.py`` holds both directions against the library.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fedge.core.roles import ROLES
from fedge.errors import ProtocolError

Tree = dict[str, Tensor]
#: Role, name, type and shape of a tensor.
Cell = tuple[str, str, str, tuple[int, ...]]

#: The types that may be sent, by their names in safetensors files.
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_SIZES = {dtype: torch.empty((), dtype=dtype).element_size() for dtype in DTYPES.values()}
_HEADER_LIMIT = 8 << 20


@dataclass
class Payload:
    """Named tensors by role, the weight with which the sender counts, and a small JSON object.

    ``weight`` is the number of training rows unless the method says otherwise.
    """

    parts: dict[str, Tree] = field(default_factory=dict)
    weight: float = 1.0
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for role in self.parts:
            if role not in ROLES:
                raise ValueError(f"'{role}' is not a role; roles are {', '.join(ROLES)}")

    def __getitem__(self, role: str) -> Tree:
        """The tensors of a role; empty when the sender sent none."""
        return self.parts.get(role, {})

    @property
    def nbytes(self) -> int:
        """Bytes of tensor data, without any header."""
        return sum(tensor.numel() * tensor.element_size() for tree in self.parts.values() for tensor in tree.values())

    @property
    def cells(self) -> frozenset[Cell]:
        """What the payload is made of; tensors may be without data (meta, fake)."""
        return frozenset(
            (role, name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
            for role, tree in self.parts.items()
            for name, tensor in tree.items()
        )

    def to_bytes(self) -> bytearray:
        """The payload as safetensors bytes, each tensor copied once."""
        return pack(*self._file())

    @property
    def header_bytes(self) -> int:
        """Bytes of the file beyond the tensors' data; tensors may be without data (meta, fake)."""
        tensors, metadata = self._file()
        return len(_header(tensors, metadata)[0])

    def _file(self) -> tuple[Tree, dict[str, str]]:
        tensors = {f"{role}/{name}": tensor for role, tree in self.parts.items() for name, tensor in tree.items()}
        about = {"weight": self.weight, "meta": self.meta, "roles": list(self.parts)}
        return tensors, {"fedge": json.dumps(about, sort_keys=True, allow_nan=False)}

    @classmethod
    def from_bytes(cls, data: bytes | bytearray | memoryview) -> Payload:
        """Read what ``to_bytes`` wrote. The tensors are views of ``data``, unless it can't be written to.

        Raises ProtocolError for bytes that are not such a payload.
        """
        tensors, metadata = unpack(data)
        try:
            about = json.loads(metadata["fedge"])
            weight, meta, roles = float(about["weight"]), dict(about["meta"]), list(about["roles"])
            parts: dict[str, Tree] = {role: {} for role in roles}
            for key, tensor in tensors.items():
                role, _, name = key.partition("/")
                parts[role][name] = tensor
            payload = cls(parts, weight, meta)
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
            raise ProtocolError(f"the payload's description can't be read: {error}") from error
        if not math.isfinite(weight) or weight < 0:
            raise ProtocolError(f"the payload's weight {weight} is not a finite number of at least 0")
        return payload

    def not_finite(self) -> str | None:
        """The role and name of a tensor with numbers that are not finite; None where all are.

        Tensors that lie side by side in one buffer, as they do after ``from_bytes``, are looked at in one piece.
        """
        if all(_is_finite(run) for run in _runs([t for tree in self.parts.values() for t in tree.values()])):
            return None
        for role, tree in self.parts.items():
            for name, tensor in tree.items():
                if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                    return f"{role} '{name}'"
        return None


def _runs(tensors: list[Tensor]) -> list[Tensor]:
    """The floating-point numbers of ``tensors``, neighbours of one storage joined."""
    runs: list[Tensor] = []
    for tensor in tensors:
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        before = runs[-1] if runs else None
        if (
            before is not None
            and before.dtype == tensor.dtype
            and tensor.is_contiguous()
            and before.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()
            and before.storage_offset() + before.numel() == tensor.storage_offset()
        ):
            runs[-1] = before.as_strided((before.numel() + tensor.numel(),), (1,), before.storage_offset())
        else:
            runs.append(tensor.reshape(-1))
    return runs


def _is_finite(numbers: Tensor) -> bool:
    low, high = torch.aminmax(numbers)  # one pass, and a NaN comes through
    return math.isfinite(low) and math.isfinite(high)


def pack(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytearray:
    """Tensors as safetensors bytes in one buffer; larger element sizes come first, then names in order."""
    start, order = _header(tensors, metadata)
    sizes = [tensors[name].numel() * tensors[name].element_size() for name in order]
    out = bytearray(len(start) + sum(sizes))
    out[: len(start)] = start
    at = len(start)
    for name, size in zip(order, sizes, strict=True):
        tensor = tensors[name].detach()
        if size:
            torch.frombuffer(out, dtype=tensor.dtype, count=tensor.numel(), offset=at).copy_(tensor.reshape(-1))
        at += size
    return out


def _header(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None) -> tuple[bytes, list[str]]:
    """The bytes before the data, and the order in which the tensors follow."""
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name in order:
        tensor = tensors[name]
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, order


def unpack(data: bytes | bytearray | memoryview) -> tuple[Tree, dict[str, str]]:
    """Views of the tensors in safetensors bytes (of a copy, where these are read-only), and the file's metadata.

    Every length and offset is checked before a view is made. Raises ProtocolError for anything malformed.
    """
    whole = memoryview(data)
    if len(whole) < 8:
        raise ProtocolError(f"{len(whole)} bytes are too few for a payload")
    length = int.from_bytes(whole[:8], "little")
    if length > _HEADER_LIMIT or 8 + length > len(whole):
        raise ProtocolError(f"a payload header of {length} bytes does not fit")
    start = 8 + length
    if whole.readonly:
        data = bytearray(whole)  # a tensor that is written to would change what nobody may change
    tensors: Tree = {}
    try:
        body = torch.frombuffer(data, dtype=torch.uint8) if len(whole) else torch.empty(0, dtype=torch.uint8)
        header = json.loads(bytes(whole[8:start]))
        metadata = {str(key): str(value) for key, value in header.pop("__metadata__", {}).items()}
        for name, entry in header.items():
            tensors[name] = _view(body, name, entry, start, len(whole))
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, OverflowError, RuntimeError) as error:
        raise ProtocolError(f"the payload's header can't be read: {error}") from error
    return tensors, metadata


def _view(data: Tensor, name: str, entry: dict[str, Any], start: int, end: int) -> Tensor:
    dtype, shape = DTYPES[entry["dtype"]], [int(size) for size in entry["shape"]]
    first, last = (int(offset) for offset in entry["data_offsets"])
    count = math.prod(shape)
    size = count * _SIZES[dtype]
    if min(shape, default=0) < 0 or first < 0 or last - first != size or start + last > end:
        raise ProtocolError(f"tensor '{name}' lies outside the payload")
    if count == 0:
        return torch.empty(shape, dtype=dtype)
    return data[start + first : start + last].view(dtype).view(shape)
