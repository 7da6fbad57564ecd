"""A stage in other number formats: half floats, 8-bit integers with scales found as it runs, 4-bit weights.

Stages are converted before they are composed: onnxruntime's tools do not reach into the branches of an ``If`` without
losing the thresholds.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from pathlib import Path

import onnx

from fedge.errors import ConfigError, FedgeError
from fedge.export import graph
from fedge.export.stages import Stage

PRECISIONS = ("fp32", "fp16", "int8", "int4")
#: Weights in a block that share a scale, for 4 bits.
_BLOCK = 32


def known(precision: str) -> None:
    """ConfigError for what is none of ``PRECISIONS``."""
    if precision not in PRECISIONS:
        raise ConfigError(f"precision '{precision}' cannot be exported; there is {', '.join(PRECISIONS)}")


def precise(stages: list[Stage], precision: str) -> list[Stage]:
    """The stages in another precision; their inputs and outputs stay float32. FedgeError where that fails."""
    known(precision)
    return [Stage(stage.blocks, precise_graph(stage.proto, precision)) for stage in stages]


def precise_graph(proto: onnx.ModelProto, precision: str) -> onnx.ModelProto:
    """The same for one graph; the graph that is given stays as it is."""
    if precision == "fp32":
        return proto
    given = onnx.ModelProto()
    given.CopyFrom(proto)
    logger = logging.getLogger()
    level = logger.level
    try:
        logger.setLevel(logging.ERROR)  # the tools report each node on the root logger
        made = _CONVERT[precision](given)
    except Exception as error:
        lines = str(error).splitlines() or [type(error).__name__]
        raise FedgeError(f"onnxruntime's tools cannot turn a stage into {precision}: {lines[0]}") from error
    finally:
        logger.setLevel(level)
    graph.anonymise(made)
    return made


def _fp16(proto: onnx.ModelProto) -> onnx.ModelProto:
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    # the tool takes initializers apart in place and needs to know the types of the values between
    made: onnx.ModelProto = convert_float_to_float16(onnx.shape_inference.infer_shapes(proto), keep_io_types=True)
    OnnxModel.graph_topological_sort(made.graph)  # it puts the casts of inputs last
    return made


def _int8(proto: onnx.ModelProto) -> onnx.ModelProto:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory(prefix="fedge-export-") as place:
        path = Path(place) / "stage.onnx"
        # unsigned weights: the sums of signed ones overflow on x86 without VNNI, which then says something else than a
        # device does (a tiny ViT kept 79 % of its labels there, and 97 % so)
        quantize_dynamic(
            proto, path, op_types_to_quantize=["MatMul", "Gather"], per_channel=True, weight_type=QuantType.QUInt8
        )
        made: onnx.ModelProto = onnx.load(str(path))
    return made


def _int4(proto: onnx.ModelProto) -> onnx.ModelProto:
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    tool = MatMulNBitsQuantizer(proto, block_size=_BLOCK, is_symmetric=True, accuracy_level=4)
    tool.process()
    made: onnx.ModelProto = tool.model.model
    return made


_CONVERT: dict[str, Callable[[onnx.ModelProto], onnx.ModelProto]] = {"fp16": _fp16, "int8": _int8, "int4": _int4}
