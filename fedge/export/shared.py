"""Several graphs over one file of weights: what they have in common is stored once, found by content."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx

from fedge.export.compose import content_key

WEIGHTS_FILE = "weights.bin"
#: Smaller tensors stay in the graph: shapes and constants, which a runtime reads before it loads weights.
_SMALL = 1024
_ALIGNED, _PAGE, _LARGE = 64, 4096, 2**16


def save_shared(graphs: Mapping[str, onnx.ModelProto], place: Path) -> dict[str, int]:
    """Write ``place/<name>.onnx`` for each graph and ``weights.bin`` for all; returns how many leading bytes of the
    weights each graph reads.

    Weights lie in the order in which graphs name them, so with the shallow graphs first a device that holds only those
    needs only the beginning of the file. OSError where the disk does not take it.
    """
    offsets: dict[bytes, tuple[int, int]] = {}
    reaches = {}
    end = 0
    with open(place / WEIGHTS_FILE, "wb") as out:
        for name, proto in graphs.items():
            made = onnx.ModelProto()
            made.CopyFrom(proto)
            reaches[name] = 0
            for tensor in made.graph.initializer:
                if len(tensor.raw_data) < _SMALL:
                    continue
                key = content_key(tensor)
                if key not in offsets:
                    step = _PAGE if len(tensor.raw_data) >= _LARGE else _ALIGNED
                    start = -(-end // step) * step
                    out.write(bytes(start - end) + tensor.raw_data)
                    offsets[key] = (start, len(tensor.raw_data))
                    end = start + len(tensor.raw_data)
                _refer(tensor, *offsets[key])
                reaches[name] = max(reaches[name], sum(offsets[key]))
            onnx.save(made, str(place / f"{name}.onnx"))
    return reaches


def _refer(tensor: onnx.TensorProto, offset: int, length: int) -> None:
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", WEIGHTS_FILE), ("offset", str(offset)), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)
