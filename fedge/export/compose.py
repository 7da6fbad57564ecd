"""Graphs composed from stages: one exit alone, or all of them with the decision where to leave inside the graph.

The decision is nested ``If``: a batch whose score does not reach the threshold goes on into the else branch, which
holds the next stage. Weights lie in the outer graph, each once by content, and the branches reach for them there. A
runtime runs one branch alone, so blocks beyond the exit that is taken cost nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fedge import __version__
from fedge.export.criteria import score_nodes
from fedge.export.graph import OUTPUT
from fedge.export.stages import NEXT, Stage

THRESHOLDS = "thresholds"
EXIT = "exit_index"


@dataclass
class _Weights:
    """The initializers of a composed graph, each content once."""

    tensors: dict[str, onnx.TensorProto] = field(default_factory=dict)
    _names: dict[bytes, str] = field(default_factory=dict)

    def add(self, tensor: onnx.TensorProto) -> str:
        """The name under which the composed graph holds this content."""
        key = content_key(tensor)
        if key not in self._names:
            name = tensor.name
            while name in self.tensors:
                name += "_"
            kept = onnx.TensorProto()
            kept.CopyFrom(tensor)
            kept.name = name
            self._names[key], self.tensors[name] = name, kept
        return self._names[key]


def content_key(tensor: onnx.TensorProto) -> bytes:
    """What two initializers have in common that hold the same numbers in the same shape and type."""
    held = tensor.raw_data or numpy_helper.to_array(tensor).tobytes()
    return sha256(f"{tensor.data_type} {list(tensor.dims)} ".encode() + held).digest()


def truncated(stages: Sequence[Stage], at: int) -> onnx.ModelProto:
    """The graph that ends at exit ``at`` (an index into the stages): the model's inputs in, ``logits`` out."""
    weights = _Weights()
    nodes: list[onnx.NodeProto] = []
    state: dict[str, str] = {}
    for index, stage in enumerate(stages[: at + 1]):
        added, outputs = _absorb(stage, f"s{index + 1}.", state, weights)
        nodes += added
        state = outputs
    nodes.append(helper.make_node("Identity", [state[OUTPUT]], [OUTPUT], name=OUTPUT))
    nodes = _needed(nodes, [OUTPUT])
    (logits,) = (value for value in stages[at].proto.graph.output if value.name == OUTPUT)
    return _model(stages[: at + 1], nodes, _model_inputs(stages), [logits], weights)


def adaptive(stages: Sequence[Stage], criterion: str, thresholds: Sequence[float], *, tokens: bool) -> onnx.ModelProto:
    """The graph that leaves at the first exit whose score reaches its threshold; the last exit always does.

    Outputs: ``logits`` of that exit, and ``exit_index``, its index counted from 0, as a number without dimensions: a
    batch leaves as a whole, when its least certain row is certain enough. ``thresholds``, float ``[exits - 1]``, is an
    input with a default. criterion: one of ``criteria.CRITERIA``. tokens: logits stand at token positions; the last
    one that the attention mask keeps decides.
    """
    weights = _Weights()
    bound = numpy_helper.from_array(np.asarray(thresholds, dtype=np.float32), THRESHOLDS)
    weights.tensors[THRESHOLDS] = bound
    walk = _Walk(stages, criterion, weights, "attention_mask" if tokens else None)
    nodes = walk.from_stage(0, {})
    inputs = [*_model_inputs(stages), helper.make_tensor_value_info(THRESHOLDS, TensorProto.FLOAT, [len(thresholds)])]
    (logits,) = (value for value in stages[0].proto.graph.output if value.name == OUTPUT)
    outputs = [logits, helper.make_tensor_value_info(EXIT, TensorProto.INT64, [])]
    return _model(stages, nodes, inputs, outputs, weights)


@dataclass
class _Walk:
    """The way down through the stages, one ``If`` within the other."""

    stages: Sequence[Stage]
    criterion: str
    weights: _Weights
    mask: str | None
    earlier: dict[str, str] = field(default_factory=dict)

    def from_stage(self, at: int, state: dict[str, str]) -> list[onnx.NodeProto]:
        """The nodes from stage ``at`` on, which end in ``logits`` and ``exit_index`` (named apart within branches)."""
        nodes, outputs = _absorb(self.stages[at], f"s{at + 1}.", state, self.weights)
        suffix = f"_{at + 1}" if at else ""
        if at == len(self.stages) - 1:
            return [*nodes, *self._leave(at, outputs[OUTPUT], suffix)]
        prefix = f"x{at + 1}."
        scoring, score, self.earlier = score_nodes(
            self.criterion, prefix, outputs[OUTPUT], self.mask, self.earlier, self._constant
        )
        index = self._constant(np.asarray(at, dtype=np.int64))
        enough = [
            helper.make_node("Gather", [THRESHOLDS, index], [f"{prefix}threshold"], axis=0),
            helper.make_node("GreaterOrEqual", [score, f"{prefix}threshold"], [f"{prefix}sure"]),
        ]
        leave = self._branch(self._leave(at, outputs[OUTPUT], f"_{at + 1}a"), f"_{at + 1}a", f"leave-{at + 1}")
        onward = self._branch(self.from_stage(at + 1, outputs), f"_{at + 2}", f"stage-{at + 2}")
        names = [f"{OUTPUT}{suffix}", f"{EXIT}{suffix}"]
        decide = helper.make_node("If", [f"{prefix}sure"], names, then_branch=leave, else_branch=onward)
        return [*nodes, *scoring, *enough, decide]

    def _leave(self, at: int, logits: str, suffix: str) -> list[onnx.NodeProto]:
        index = self._constant(np.asarray(at, dtype=np.int64))
        return [
            helper.make_node("Identity", [logits], [f"{OUTPUT}{suffix}"]),
            helper.make_node("Identity", [index], [f"{EXIT}{suffix}"]),
        ]

    def _branch(self, nodes: list[onnx.NodeProto], suffix: str, name: str) -> onnx.GraphProto:
        (given,) = (value for value in self.stages[0].proto.graph.output if value.name == OUTPUT)
        logits = onnx.ValueInfoProto()
        logits.CopyFrom(given)
        logits.name = f"{OUTPUT}{suffix}"
        index = helper.make_tensor_value_info(f"{EXIT}{suffix}", TensorProto.INT64, [])
        return helper.make_graph(nodes, name, [], [logits, index])

    def _constant(self, value: np.ndarray) -> str:
        return self.weights.add(numpy_helper.from_array(value, f"c.{value.dtype}.{value.tolist()}".replace(" ", "")))


def _absorb(
    stage: Stage, prefix: str, state: Mapping[str, str], weights: _Weights
) -> tuple[list[onnx.NodeProto], dict[str, str]]:
    """A stage's nodes with names of their own in a larger graph, and what its outputs are called there.

    state: what the stage's inputs of ``STATE`` are called there; its other inputs keep their names.
    """
    inner = stage.proto.graph
    called = {value.name: state.get(value.name, value.name) for value in inner.input}
    for tensor in inner.initializer:
        called[tensor.name] = weights.add(tensor)
    nodes = [_renamed(node, prefix, called) for node in inner.node]
    outputs = {value.name.removeprefix(NEXT): called.get(value.name, value.name) for value in inner.output}
    return nodes, outputs


def _renamed(node: onnx.NodeProto, prefix: str, called: dict[str, str]) -> onnx.NodeProto:
    found = onnx.NodeProto()
    found.CopyFrom(node)
    for output in node.output:
        if output:
            called.setdefault(output, prefix + output)
    found.name = prefix + node.name if node.name else ""
    found.input[:] = [called.get(name, name) for name in node.input]
    found.output[:] = [called.get(name, name) for name in node.output]
    for attribute in found.attribute:
        for inner in (attribute.g, *attribute.graphs) if attribute.HasField("g") else attribute.graphs:
            own = dict(called)
            nodes = [_renamed(each, prefix, own) for each in inner.node]
            del inner.node[:]
            inner.node.extend(nodes)
            for value in inner.output:
                value.name = own.get(value.name, value.name)
    return found


def _read(node: onnx.NodeProto) -> Iterable[str]:
    """The names that a node reads, those read within its branches included."""
    yield from node.input
    for attribute in node.attribute:
        for inner in (attribute.g, *attribute.graphs) if attribute.HasField("g") else attribute.graphs:
            for each in inner.node:
                yield from _read(each)


def _needed(nodes: Sequence[onnx.NodeProto], outputs: Iterable[str]) -> list[onnx.NodeProto]:
    """The nodes on which the outputs rest, in their order."""
    wanted, kept = set(outputs), []
    for node in reversed(nodes):
        if wanted & set(node.output):
            kept.append(node)
            wanted.update(_read(node))
    return kept[::-1]


def _model_inputs(stages: Sequence[Stage]) -> list[onnx.ValueInfoProto]:
    return list(stages[0].proto.graph.input)


def _model(
    stages: Sequence[Stage],
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    weights: _Weights,
) -> onnx.ModelProto:
    read = {name for node in nodes for name in _read(node)}
    held = [tensor for name, tensor in weights.tensors.items() if name in read]
    made = helper.make_graph(nodes, "fedge", inputs, outputs, initializer=held)
    opsets: dict[str, int] = {}
    for stage in stages:
        for entry in stage.proto.opset_import:
            opsets[entry.domain] = max(entry.version, opsets.get(entry.domain, 0))
    proto: onnx.ModelProto = helper.make_model(
        made,
        opset_imports=[helper.make_opsetid(domain, version) for domain, version in sorted(opsets.items())],
        producer_name="fedge",
        producer_version=__version__,
    )
    proto.ir_version = max(stage.proto.ir_version for stage in stages)
    return proto
