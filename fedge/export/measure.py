"""An exported model's time, memory and answers, measured in a process of its own, behind a memory wall where there is
one."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from fedge.emulation.wall import Group, Wall
from fedge.errors import FedgeError, InfeasibleError, MissingError

#: Queries and seconds of a single-stream run as MLPerf's rules have it (mlcommons.org, inference mobile).
MLPERF = (1024, 60.0)


@dataclass(frozen=True)
class Cap:
    """The memory that a device grants, and the wall that holds the process to it."""

    device: str
    memory: int
    wall: Wall


@dataclass(frozen=True)
class Order:
    """What to run. model: a file, or the folder of a chain with ``batch`` rows at once and so many ``stages``."""

    model: Path
    queries: int = 100
    seconds: float = 0.0
    thresholds: Sequence[float] | None = None
    batch: int = 0
    stages: int = 0
    criterion: str = "max_prob"


@dataclass(frozen=True)
class Measured:
    """What came of it: seconds to load, each query's processor and elapsed seconds, the predicted class and exit index
    of each row that was reached, bytes resident at most beyond numpy, onnxruntime and the rows."""

    load_s: float
    queries: int
    seconds: float
    cpu_s: list[float]
    wall_s: list[float]
    answers: list[int]
    exits: list[int]
    memory: int

    def percentiles(self, times: Sequence[float]) -> dict[str, float]:
        """Milliseconds at p50, p90 and p95."""
        return {f"p{at}": 1000 * float(np.percentile(times, at)) for at in (50, 90, 95)}


def measure(order: Order, columns: Mapping[str, np.ndarray], cap: Cap | None = None) -> Measured:
    """Run an order on rows, on one thread of the CPU.

    InfeasibleError, naming the device, when the model does not fit the memory that it grants; MissingError where there
    is no such file, FedgeError for one that onnxruntime cannot run.
    """
    if not order.model.exists():
        raise MissingError(f"there is no exported model {order.model}")
    group = cap.wall.open("infer", cap.device, 0) if cap else None
    with tempfile.TemporaryDirectory(prefix="fedge-export-") as place:
        rows = Path(place) / "rows.npz"
        np.savez(rows, **columns)  # type: ignore[arg-type]
        _nothing(rows.with_name("nothing.onnx"))
        try:
            said, killed = _talk(order, rows, cap, group)
        finally:
            if group is not None:
                group.close()
    if killed or said.get("refused") == "memory":
        assert cap is not None or not killed
        grants = f"the {cap.memory / 2**20:.0f} MiB that {cap.device} grants" if cap else "this host's memory"
        raise InfeasibleError(
            f"{_called(order.model)} does not fit {grants}", hint="a shallower exit or int8 takes less"
        )
    if "error" in said:
        raise FedgeError(f"onnxruntime cannot run {_called(order.model)}: {said['error']}", hint="export it again")
    return Measured(**said)


def _nothing(path: Path) -> None:
    """A graph of one product, with which a process gets to know onnxruntime."""
    square = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 2]) for name in "xy"]
    made = helper.make_graph([helper.make_node("MatMul", ["x", "x"], ["y"])], "nothing", square[:1], square[1:])
    opset = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(made, opset_imports=opset, ir_version=10), str(path))


def _called(model: Path) -> str:
    return "/".join(model.parts[-2:])


def _talk(order: Order, rows: Path, cap: Cap | None, group: Group | None) -> tuple[dict[str, Any], bool]:
    """The child's last word, and whether the wall killed it."""
    command = [sys.executable, "-m", "fedge.export.trial"]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stderr is not None
    try:
        told = {**vars(order), "model": str(order.model), "rows": str(rows), "group": group.record() if group else None}
        print(json.dumps(told), file=child.stdin, flush=True)
        ready = child.stdout.readline()
        limit = None
        if ready and group is not None and cap is not None:
            group.adopt(child.pid)
            limit = group.usage() + cap.memory
            if "launcher" in group.sides:
                group.apply(limit)
        with suppress(BrokenPipeError):
            print(json.dumps({"limit": limit}), file=child.stdin, flush=True)
        last = child.stdout.readline()
        child.stdin.close()
        complaint = child.stderr.read()
        child.wait()
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()
        for pipe in (child.stdin, child.stdout, child.stderr):
            with suppress(BrokenPipeError):
                pipe.close()
    if group is not None and child.returncode and group.killed_for_memory():
        return {}, True
    if not last:
        lines = complaint.strip().splitlines() or [f"it ended with status {child.returncode}"]
        raise FedgeError(f"the process that runs {_called(order.model)} failed: {lines[-1]}")
    found: dict[str, Any] = json.loads(last)
    return found, False
