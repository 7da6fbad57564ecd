"""When an exit is sure enough: the same scores as ONNX operators inside a graph and as numpy outside.

Every score grows with certainty and is held against a threshold from below, ``score >= threshold``:

- ``max_prob``: the largest probability (MSDNet);
- ``margin``: the largest less the second (CALM's softmax difference);
- ``entropy``: ``1 - H(p) / ln(classes)`` (DeeBERT's rule, turned round so that 1 is certain);
- ``patience``: how many exits before this one, without a gap, gave the same label (PABEE, arXiv 2006.04152).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

CRITERIA = ("max_prob", "margin", "entropy", "patience")


def scores(logits: Sequence[np.ndarray], criterion: str) -> np.ndarray:
    """The score of each row at each exit, float32 ``[rows, exits]``, from logits ``[rows, classes]`` by exit."""
    if criterion == "patience":
        return _agreeing(logits)
    return np.stack([_certainty(each.astype(np.float32), criterion) for each in logits], axis=1)


def taken(found: np.ndarray, thresholds: Sequence[float]) -> np.ndarray:
    """The index of the exit at which each row leaves, from its scores ``[rows, exits]``."""
    sure = found[:, :-1] >= np.asarray(thresholds, dtype=np.float32)
    last = np.ones((len(found), 1), dtype=bool)
    return np.argmax(np.concatenate([sure, last], axis=1), axis=1)


def _probabilities(logits: np.ndarray) -> np.ndarray:
    raised = np.exp(logits - logits.max(-1, keepdims=True))
    return raised / raised.sum(-1, keepdims=True)


def _certainty(logits: np.ndarray, criterion: str) -> np.ndarray:
    p = _probabilities(logits)
    if criterion == "max_prob":
        return p.max(-1)
    if criterion == "margin":
        top = np.partition(p, -2, axis=-1)
        return top[:, -1] - top[:, -2]
    entropy = -(p * np.log(np.maximum(p, np.finfo(np.float32).tiny))).sum(-1)
    return 1 - entropy / np.float32(np.log(p.shape[-1]))


def _agreeing(logits: Sequence[np.ndarray]) -> np.ndarray:
    labels = [each.argmax(-1) for each in logits]
    counts = [np.zeros(len(labels[0]), dtype=np.float32)]
    for before, now in pairwise(labels):
        counts.append(np.where(before == now, counts[-1] + 1, 0).astype(np.float32))
    return np.stack(counts, axis=1)


def score_nodes(
    criterion: str,
    prefix: str,
    logits: str,
    mask: str | None,
    earlier: dict[str, str],
    constant: Callable[[np.ndarray], str],
) -> tuple[list[onnx.NodeProto], str, dict[str, str]]:
    """The nodes that compute a batch's score, the least of its rows', the name of the result, and what the next exit
    must know of this one.

    logits: the name of ``[rows, classes]``, or with ``mask`` (the attention mask's) of ``[rows, tokens, classes]``, of
    which each row's last kept token counts. earlier: what this function gave at the exit before. constant: holds a
    value outside and gives its name.
    """
    nodes: list[onnx.NodeProto] = []

    def node(kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, list(inputs), [prefix + output], **attributes))
        return prefix + output

    if mask is not None:
        logits = _last_token(node, logits, mask, constant)
    if criterion == "patience":
        count, known = _patience(node, logits, earlier, constant)
        return nodes, node("ReduceMin", [count], "score", keepdims=0), known
    p = node("Softmax", [logits], "p", axis=-1)
    axis = constant(np.asarray([-1], dtype=np.int64))
    if criterion == "max_prob":
        each = node("ReduceMax", [p, axis], "each", keepdims=0)
    elif criterion == "margin":
        two = constant(np.asarray([2], dtype=np.int64))
        nodes.append(helper.make_node("TopK", [p, two], [f"{prefix}top", f"{prefix}where"], axis=-1))
        signs = constant(np.asarray([1, -1], dtype=np.float32))
        each = node("ReduceSum", [node("Mul", [f"{prefix}top", signs], "signed"), axis], "each", keepdims=0)
    else:
        floor = constant(np.asarray(np.finfo(np.float32).tiny))
        surprise = node("Mul", [p, node("Log", [node("Max", [p, floor], "kept")], "log")], "surprise")
        negative = node("ReduceSum", [surprise, axis], "negative", keepdims=0)
        width = node("Gather", [node("Shape", [p], "shape"), axis], "width", axis=0)
        most = node("Log", [node("Cast", [width], "classes", to=TensorProto.FLOAT)], "most")
        each = node("Add", [node("Div", [negative, most], "share"), constant(np.asarray([1], np.float32))], "each")
    return nodes, node("ReduceMin", [each], "score", keepdims=0), {}


def _last_token(node: Callable[..., str], logits: str, mask: str, constant: Callable[[np.ndarray], str]) -> str:
    """``[rows, classes]``: each row's logits at the last position that its mask keeps."""
    one = constant(np.asarray([1], dtype=np.int64))
    shape = node("Shape", [mask], "mask_shape")
    length = node("Gather", [shape, constant(np.asarray(1, dtype=np.int64))], "length", axis=0)
    zero, step = constant(np.asarray(0, dtype=np.int64)), constant(np.asarray(1, dtype=np.int64))
    places = node("Mul", [node("Range", [zero, length, step], "positions"), mask], "places")
    last = node("ReduceMax", [places, one], "last", keepdims=1)
    return node("GatherND", [logits, last], "picked", batch_dims=1)


def _patience(
    node: Callable[..., str], logits: str, earlier: dict[str, str], constant: Callable[[np.ndarray], str]
) -> tuple[str, dict[str, str]]:
    label = node("ArgMax", [logits], "label", axis=-1, keepdims=0)
    if not earlier:
        zero = node("Sub", [label, label], "none")
        count = node("Cast", [zero], "count", to=TensorProto.FLOAT)
    else:
        same = node("Cast", [node("Equal", [label, earlier["label"]], "same")], "agrees", to=TensorProto.FLOAT)
        more = node("Add", [earlier["count"], constant(np.asarray([1], dtype=np.float32))], "more")
        count = node("Mul", [more, same], "count")
    return count, {"label": label, "count": count}
