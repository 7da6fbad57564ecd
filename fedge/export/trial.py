"""A program that holds and runs one exported model as a device would: ``python -m fedge.export.trial``.

It imports numpy and onnxruntime and nothing of PyTorch. An order comes as a line of JSON on standard input, before
anything heavy is imported, since a process must be in its group before it touches memory; it answers ``ready`` with its
resident bytes, waits for ``go``, and ends with a line of results. ``fedge.export.measure`` is the other end.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedge.emulation import process
from fedge.emulation.malloc import pin_malloc
from fedge.emulation.wall import is_allocation_failure, rejoin

_WARMUP = 10


def main() -> None:
    """Follow one order."""
    order = json.loads(sys.stdin.readline())
    group = rejoin(order["group"]) if order["group"] else None
    if group is not None:
        group.join()
    process.die_with_parent()
    pin_malloc()
    import numpy as np

    # what the first session of a process allocates and pages in once is no part of any model
    _open(Path(order["rows"]).with_name("nothing.onnx")).run(None, {"x": np.zeros((2, 2), dtype=np.float32)})
    with np.load(order["rows"]) as held:
        columns = {name: held[name] for name in held.files}
    _tell(ready=_resident())
    said = json.loads(sys.stdin.readline())
    if group is not None and said["limit"] is not None and "device" in group.sides:
        group.apply(said["limit"])
    try:
        result = (_batches if order["batch"] else _single_stream)(order, columns)
    except Exception as error:
        if is_allocation_failure(error):
            _tell(refused="memory")
        else:
            _tell(error=(str(error).splitlines() or [type(error).__name__])[0])
        return
    _tell(**result)


def _tell(**said: Any) -> None:
    print(json.dumps(said), flush=True)


def _resident() -> int:
    found = process.memory(os.getpid())
    return found.resident if found else 0


def _open(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.enable_cpu_mem_arena = (
        False  # the arena keeps what it once took: memory would be the largest row's, doubled
    )
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _single_stream(order: Mapping[str, Any], columns: Mapping[str, Any]) -> dict[str, Any]:
    """One query after the other, the next when the last one ends, until there were enough of them and they took long
    enough; every query is one row without padding."""
    import numpy as np

    before = _resident()
    process.forget_highest(os.getpid())
    start = time.perf_counter()
    session = _open(Path(order["model"]))
    load_s = time.perf_counter() - start
    names = [one.name for one in session.get_inputs()]
    wanted = [one.name for one in session.get_outputs() if one.name in ("logits", "exit_index")]
    count = len(next(iter(columns.values())))
    queries = [_row(columns, at, names) for at in range(count)]
    if order["thresholds"] is not None:
        bound = np.asarray(order["thresholds"], dtype=np.float32)
        queries = [{**query, "thresholds": bound} for query in queries]
    for at in range(_WARMUP):
        session.run(wanted, queries[at % count])
    cpu: list[float] = []
    wall: list[float] = []
    answers, exits = [-1] * count, [0] * count
    began = time.perf_counter()
    while len(cpu) < order["queries"] or time.perf_counter() - began < order["seconds"]:
        at = len(cpu) % count
        started, busy = time.perf_counter(), time.thread_time()
        found = session.run(wanted, queries[at])
        cpu.append(time.thread_time() - busy)
        wall.append(time.perf_counter() - started)
        logits = found[0][0]
        answers[at] = int((logits if logits.ndim == 1 else logits[-1]).argmax())
        exits[at] = int(found[1]) if len(found) > 1 else 0
    after = process.memory(os.getpid())
    return {
        "load_s": load_s,
        "queries": len(cpu),
        "seconds": time.perf_counter() - began,
        "cpu_s": cpu,
        "wall_s": wall,
        "answers": answers[: len(cpu)],
        "exits": exits[: len(cpu)],
        "memory": max(0, (after.highest if after else 0) - before),
    }


def _row(columns: Mapping[str, Any], at: int, names: list[str]) -> dict[str, Any]:
    """One row's inputs without the padding at its end."""
    row = {name: columns[name][at : at + 1] for name in names}
    if "attention_mask" not in columns:
        return row
    used = columns["attention_mask"][at].nonzero()[0]
    width = int(used[-1]) + 1 if len(used) else 1
    return {name: column[:, :width] for name, column in row.items()}


def _batches(order: Mapping[str, Any], columns: Mapping[str, Any]) -> dict[str, Any]:
    """All rows through the chain in batches; rows that are sure leave, the next stage gets the others alone."""
    from fedge.export.chain import Chain

    before = _resident()
    process.forget_highest(os.getpid())
    start = time.perf_counter()
    chain = Chain(Path(order["model"]), order["stages"], _open)
    load_s = time.perf_counter() - start
    rows = len(next(iter(columns.values())))
    cpu: list[float] = []
    wall: list[float] = []
    answers: list[int] = []
    exits: list[int] = []
    began = time.perf_counter()
    for first in range(0, rows, order["batch"]):
        part = {name: column[first : first + order["batch"]] for name, column in columns.items()}
        started, busy = time.perf_counter(), time.thread_time()
        logits, left = chain.leave_early(part, order["criterion"], order["thresholds"])
        cpu.append(time.thread_time() - busy)
        wall.append(time.perf_counter() - started)
        answers += logits.argmax(-1).tolist()
        exits += left.tolist()
    after = process.memory(os.getpid())
    return {
        "load_s": load_s,
        "queries": rows,
        "seconds": time.perf_counter() - began,
        "cpu_s": cpu,
        "wall_s": wall,
        "answers": answers,
        "exits": exits,
        "memory": max(0, (after.highest if after else 0) - before),
    }


if __name__ == "__main__":
    main()
