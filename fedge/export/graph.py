"""From a PyTorch model to one ONNX graph that says nothing of the machine on which it was made."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from google.protobuf.message import DecodeError
from torch import Tensor, nn
from torch.export import Dim

from fedge import __version__
from fedge.errors import FedgeError

#: The key of ``ModelProto.metadata_props`` under which an exported file describes itself, as JSON.
MANIFEST = "fedge.manifest"
OUTPUT = "logits"

#: Inputs whose second dimension counts tokens.
_TOKENS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
#: A protobuf message, and with it a file without external weights, cannot be larger.
_LARGEST = 2**31 - 2**20


class _Logits(nn.Module):
    """A model as it is traced: its inputs by name in, the (deepest) logits out."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, columns: dict[str, Tensor]) -> Tensor:
        return logits_of(self.model(**columns))


def logits_of(output: Any) -> Tensor:
    """The logits in what a model returned: a tensor, a Hugging Face output, or a list of which the last counts."""
    if isinstance(output, list):
        output = output[-1]
    return output if isinstance(output, Tensor) else output.logits


def convert(model: nn.Module, example: Mapping[str, Tensor], *, outputs: Sequence[str] = ()) -> onnx.ModelProto:
    """The graph of a model in evaluation mode: inputs as in ``example``, output ``logits``.

    example: the inputs by name, at least two rows of at least two tokens. The first dimension becomes 'batch' and that
    of tokens 'sequence', both free; all others stay as they are. outputs: names of the tensors that the model returns,
    where it is called with the dictionary itself and returns a tuple (a stage). FedgeError for a model that cannot be
    traced, has an operator that ONNX lacks, or is too large for one file.
    """
    size = sum(tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *model.buffers()))
    if size > _LARGEST:
        raise FedgeError(f"the weights take {size / 2**30:.1f} GiB, and an ONNX file holds less than 2 GiB")
    text = any(name in _TOKENS for name in example)
    sequences = (*_TOKENS, "hidden") if text else ()
    # what a recurrent exit remembers has a place for each token in a language model alone
    free = {
        name: dict.fromkeys((0, 1) if name in sequences or (text and column.dim() == 4) else (0,), Dim.DYNAMIC)
        for name, column in example.items()
    }
    # copies: of a view the tracer would guard the tensor that it looks into
    given = ({name: column.clone() for name, column in example.items()},)
    try:
        with torch.no_grad():
            # tracing apart from translating: given a model, the translator would try one way of tracing after another
            program = torch.export.export(
                model if outputs else _Logits(model), given, dynamic_shapes=(free,), strict=False
            )
            made = torch.onnx.export(
                program,
                given,
                dynamo=True,
                input_names=list(example),
                output_names=list(outputs or [OUTPUT]),
                optimize=True,
                verbose=False,
            )
    except Exception as error:
        lacking = _lacking(error)
        if lacking:
            raise FedgeError(
                f"the model cannot be turned into an ONNX graph: ONNX has no operator for PyTorch's {lacking}",
                hint="write that part of the model with other operators",
            ) from error
        raise FedgeError(f"the model cannot be turned into an ONNX graph: {_cause(error)}") from error
    assert made is not None
    proto: onnx.ModelProto = made.model_proto
    anonymise(proto)
    _name_dimensions(proto.graph)
    proto.producer_name, proto.producer_version = "fedge", __version__
    return proto


def anonymise(proto: onnx.ModelProto) -> None:
    """Clear, in place, all that the exporter noted about its source: stack traces, scopes, doc strings, value types."""
    del proto.metadata_props[:]
    proto.doc_string = ""
    _anonymise(proto.graph)
    for function in proto.functions:
        _clear(function, *function.node)


def describe(proto: onnx.ModelProto, manifest: Mapping[str, Any]) -> None:
    """Write the manifest into the model's metadata, in place of one that is there."""
    onnx.helper.set_model_props(proto, {MANIFEST: json.dumps(manifest, sort_keys=True)})


def manifest_of(path: Path) -> dict[str, Any]:
    """What an exported file says of itself. FedgeError where it is damaged or none of fedge's."""
    try:
        proto = onnx.load(str(path), load_external_data=False)
    except DecodeError as error:
        raise FedgeError(f"{path} is damaged: it is no ONNX file", hint="export it again") from error
    for entry in proto.metadata_props:
        if entry.key == MANIFEST:
            found: dict[str, Any] = json.loads(entry.value)
            return found
    raise FedgeError(f"{path} was not exported by fedge")


def inputs_of(proto: onnx.ModelProto) -> list[dict[str, Any]]:
    """Name, element type and dimensions (a number, or the name of a free one) of each input without a default."""
    found = []
    defaults = {tensor.name for tensor in proto.graph.initializer}
    for value in (value for value in proto.graph.input if value.name not in defaults):
        tensor = value.type.tensor_type
        kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
        found.append(
            {"name": value.name, "type": kind, "dims": [dim.dim_param or dim.dim_value for dim in tensor.shape.dim]}
        )
    return found


def _lacking(error: BaseException | None) -> str | None:
    """The PyTorch operator for which the exporter found nothing in ONNX, if that was it."""
    while error is not None:
        found = re.search(r"No ONNX function found for <OpOverload\(op='([\w.]+)'", str(error))
        if found:
            return found[1]
        error = error.__cause__
    return None


def _cause(error: BaseException) -> str:
    """The first line of what went wrong first; what the exporter raises on top is advice to its developers."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _anonymise(graph: onnx.GraphProto) -> None:
    _clear(graph, *graph.input, *graph.output, *graph.initializer, *graph.node)
    # types of intermediate values: a runtime infers them again, and stale ones break quantisation later
    del graph.value_info[:]


def _clear(*parts: Any) -> None:
    for part in parts:
        part.doc_string = ""
        if hasattr(part, "metadata_props"):
            del part.metadata_props[:]
        for attribute in getattr(part, "attribute", ()) if isinstance(part, onnx.NodeProto) else ():
            attribute.doc_string = ""
            for inner in (attribute.g, *attribute.graphs) if attribute.HasField("g") else attribute.graphs:
                _anonymise(inner)


def _name_dimensions(graph: onnx.GraphProto) -> None:
    """'batch' and 'sequence' for the symbols that tracing made up."""
    called: dict[str, str] = {}
    for value in graph.input:
        for dim, name in zip(value.type.tensor_type.shape.dim, ("batch", "sequence"), strict=False):
            if dim.dim_param:
                called.setdefault(dim.dim_param, name)
    for value in (*graph.input, *graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = re.sub(r"\w+", lambda found: called.get(found[0], found[0]), dim.dim_param)
