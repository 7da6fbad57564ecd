"""The virtual clock against measurements on real devices that others published.

``python -m tools.fidelity.ondevice ROWS.csv`` prints how far predictions miss, each made without the rows that it is
judged on; ``--fit`` fits every stack to all rows and writes ``devices/rates.yaml``. The csv has the columns of
`source, device, processor, model, params_M, method, dtype, batch, seq_len_or_image, quantity, value, unit, note`.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from scipy.stats import kendalltau, spearmanr

from fedge.core.cost import KINDS
from fedge.spec.rates import CLASSES
from fedge.spec.shipped import shipped
from tools.fidelity.fitting import FAMILIES, Fitted, Seen, fit
from tools.fidelity.published import Left, Row, rows
from tools.fidelity.seen import says
from tools.figures import show

#: Where the rows lie: a csv, named on the command line or in the environment.
PLACE = "FEDGE_ONDEVICE"


@dataclass(frozen=True)
class Told:
    """A row and what was predicted for it, in seconds; ``fair``: from rows of its device, or of others, at all."""

    row: Row
    seconds: float
    fair: bool

    @property
    def error(self) -> float:
        assert self.row.seconds is not None
        return abs(self.seconds / self.row.seconds - 1)


def measure(quick: bool) -> Iterator[dict[str, Any]]:
    """Every figure, for ``python -m tools.fidelity ondevice``."""
    data = os.environ.get("FEDGE_SHARED_DATA")
    root = Path(data) if data else Path(__file__).resolve().parents[3] / "shared" / "data"
    path = Path(os.environ.get(PLACE) or root / "ondevice" / "ondevice.csv")
    if not path.is_file():
        yield says("measurements on devices", False, f"no csv of them: {PLACE} names one")
        return
    yield from figures(*rows(path))


def timed(found: Iterable[Row]) -> dict[str, list[Row]]:
    """The rows with a time, by stack."""
    by: dict[str, list[Row]] = {}
    for row in found:
        if row.seconds is not None:
            by.setdefault(row.stack, []).append(row)
    return by


def fitted(found: Sequence[Row]) -> Fitted:
    """A stack fitted to these rows."""
    seen = [
        Seen(r.host.name, r.host.kind, r.host.flops, r.host.bandwidth, r.step.work, r.seconds or 0.0, r.reads)
        for r in found
    ]
    return fit(seen)


def _predicted(told: Fitted, row: Row) -> float:
    return told.seconds(row.host.name, row.host.kind, row.host.flops, row.host.bandwidth, row.step.work, row.reads)


def without_model(found: Iterable[Row]) -> list[Told]:
    """Each row predicted from those of other models; fair where the device and stack have such rows."""
    out = []
    for stacked in timed(found).values():
        for model in sorted({row.model for row in stacked}):
            told = fitted([row for row in stacked if row.model != model])
            out += [
                Told(row, _predicted(told, row), row.host.name in told.devices) for row in stacked if row.model == model
            ]
    return out


def without_device(found: Iterable[Row]) -> list[Told]:
    """Each row predicted from those of other devices; fair where the stack has such rows."""
    out = []
    for stacked in timed(found).values():
        for device in sorted({row.host.name for row in stacked}):
            others = [row for row in stacked if row.host.name != device]
            told = fitted(others)
            mine = [row for row in stacked if row.host.name == device]
            out += [Told(row, _predicted(told, row), bool(others)) for row in mine]
    return out


def as_shipped(found: Iterable[Row]) -> list[Told]:
    """Each row predicted from the shipped ``rates.yaml``, which may have been fitted to other rows altogether."""
    document = yaml.safe_load((shipped("devices") / "rates.yaml").read_text())
    out = []
    for stack, stacked in timed(found).items():
        told = _read(document[stack]) if stack in document else fit(())
        out += [Told(row, _predicted(told, row), stack in document) for row in stacked]
    return out


def figures(found: Sequence[Row], left: Sequence[Left]) -> list[dict[str, Any]]:
    """Every figure asked for, beside its goal."""
    apart, away = without_model(found), without_device(found)
    known = [told for told in apart if told.fair]
    held = [told for told in away if told.fair]
    out = [
        _quantile("calibrated, a model left out: median error", known, 0.5, 0.20),
        _quantile("calibrated, a model left out: 90th percentile", known, 0.9, 0.50),
        _quantile("a device left out: median error", held, 0.5, 0.50),
    ]
    ratios = _ratios(apart)
    out.append(_line("ratios between methods: median error", statistics.median(ratios), 0.15, ratios))
    best = {told.row.line: told for told in away if told.fair} | {told.row.line: told for told in known}
    for kind in ("all", *sorted({told.row.host.kind for told in best.values()})):
        mine = [told for told in best.values() if kind in ("all", told.row.host.kind)]
        asked, told_s = [t.row.seconds for t in mine], [t.seconds for t in mine]
        for name, rank in (("Spearman", spearmanr), ("Kendall", kendalltau)):
            value = float(rank(asked, told_s)[0])
            out.append({"name": f"{name}, {kind}", "value": round(value, 3), "unit": "", "spread": 0, "n": len(mine)})
    memory = [abs(needed(row) / row.memory - 1) for row in found if row.memory]
    if memory:
        out.append(_line("peak memory: median error", statistics.median(memory), None, memory))
    for stack in sorted({told.row.stack for told in known}):
        mine = [told for told in known if told.row.stack == stack]
        out.append(_quantile(f"calibrated, {stack}: median error", mine, 0.5, None))
    out.append({"name": "rows that can't be rebuilt", "value": len(left), "unit": "rows", "spread": 0, "n": len(left)})
    return out


def needed(row: Row) -> float:
    """Peak bytes: the weights as they are stored, and what a step holds beyond them in fp32."""
    stored = {"ggml-q4_0": 4.5 / 32, "ggml-q8_0": 8.5 / 32, "ggml-tq2_0": 2.06 / 32, "ggml-fp16": 0.5}
    return row.step.weights * stored.get(row.stack, 1.0) + row.step.held


def _ratios(told: Sequence[Told]) -> list[float]:
    out = []
    for a, b in itertools.combinations(told, 2):
        if a.row.alike == b.row.alike and a.row.method != b.row.method:
            assert a.row.seconds is not None
            assert b.row.seconds is not None
            out.append(abs(a.seconds / b.seconds / (a.row.seconds / b.row.seconds) - 1))
    return out


def _quantile(name: str, told: Sequence[Told], at: float, goal: float | None) -> dict[str, Any]:
    errors = [one.error for one in told]
    return _line(name, float(np.quantile(errors, at)) if errors else float("nan"), goal, errors)


def _line(name: str, value: float, goal: float | None, of: Sequence[float]) -> dict[str, Any]:
    line: dict[str, Any] = {"name": name, "value": round(value * 100, 1), "unit": "%"}
    if goal is not None:
        line |= {"goal": f"<= {goal * 100:g}", "holds": bool(value <= goal)}
    low, high = (float(np.quantile(of, q)) for q in (0.25, 0.75)) if of else (0.0, 0.0)
    return {**line, "spread": round((high - low) * 100, 1), "n": len(of)}


#: What each stack is, and where it computes.
ABOUT = {
    "pytorch": ("PyTorch in fp32, eager, on the processor", "cpu"),
    "pytorch-cuda": ("PyTorch in fp32, eager, with CUDA", "gpu"),
    "pytorch-int8": ("PyTorch, int8 by qnnpack, on the processor", "cpu"),
    "pytorch-cuda-fp16": ("PyTorch in fp16, eager, with CUDA", "gpu"),
    "tensorrt": ("TensorRT in fp16", "gpu"),
    "ggml-q4_0": ("ggml (llama.cpp) on Vulkan or Metal, LoRA on a base of 4 bits", "gpu"),
    "ggml-q8_0": ("ggml (llama.cpp) on Vulkan or Metal, LoRA on a base of 8 bits", "gpu"),
    "ggml-tq2_0": ("ggml (llama.cpp) on Vulkan or Metal, LoRA on a ternary base", "gpu"),
    "mobile-cpp": ("MobileFineTuner, C++ in fp32 on a phone's processor", "cpu"),
    "dl4j": ("Deeplearning4j on Android", "cpu"),
    "xnnpack": ("ExecuTorch with XNNPACK, inference", "cpu"),
    "iree": ("IREE on the processor, inference", "cpu"),
    "iree-vulkan": ("IREE on Vulkan, inference", "gpu"),
    "tflite": ("TensorFlow Lite on the processor, inference", "cpu"),
    "tflite-gpu": ("TensorFlow Lite on the GPU, inference", "gpu"),
    "mnn": ("MNN in fp32 on the processor, inference", "cpu"),
    "mnn-fp16": ("MNN in fp16 on the processor, inference", "cpu"),
}
#: Classes of measured processors -> those of profiles.
_CLASSES = {"board": ("board",), "phone": ("phone",), "phone-gpu": ("phone",), "jetson-gpu": ("jetson",)}
_CLASSES["gpu"] = ("laptop", "server")

_HEAD = """\
# What software stacks sustain of a device's own rates. Written by `python -m tools.fidelity.ondevice ROWS.csv --fit`:
# a robust least squares of the logarithm of measured times (tools/fidelity/fitting.py has the formula and the priors).
# matmul and traffic: shares of the profile's `compute` and `memory_bandwidth` (its accelerator's, of a stack on a gpu).
# slower: families of arithmetic in times of a product of matrices. dispatch: of an operation, on a board. classes and
# devices: how much longer they take than that. error: median, each model left out in turn. Most stacks have few rows.
"""


def write(found: Sequence[Row]) -> Path:
    """Fit every stack to all rows, and write what the virtual clock reads."""
    misses: dict[str, list[float]] = {}
    for told in without_model(found):
        if told.fair:
            misses.setdefault(told.row.stack, []).append(told.error)
    document = {}
    for stack, stacked in sorted(timed(found).items()):
        about, on = ABOUT.get(stack, (stack, "cpu"))
        told = fitted(stacked)
        document[stack] = _entry(told, about, on, len(stacked), misses.get(stack))
    path = shipped("devices") / "rates.yaml"
    beside = path.with_suffix(".new")
    beside.write_text(_HEAD + yaml.safe_dump(document, sort_keys=False, default_flow_style=None, width=110))
    os.replace(beside, path)
    return path


def _entry(told: Fitted, about: str, on: str, count: int, misses: Sequence[float] | None) -> dict[str, Any]:
    matmul = told.terms["matmul"]
    main = _CLASSES[next(iter(told.classes))][0]
    entry: dict[str, Any] = {
        "about": about,
        "runs_on": on,
        "matmul": _digits(matmul),
        "traffic": _digits(told.terms["traffic"]),
        "dispatch": f"{_digits(told.terms['dispatch'] / CLASSES[main] * 1e6):g}us",
        "slower": {name: _digits(matmul / told.terms[name]) for name in KINDS},
        "rows": count,
    }
    if misses:
        entry["error"] = _digits(statistics.median(misses))
    if len(told.classes) > 1:
        entry["classes"] = {name: _digits(value) for kind, value in told.classes.items() for name in _CLASSES[kind]}
    entry["devices"] = {name.removesuffix("/gpu"): _digits(value) for name, value in told.devices.items()}
    return entry


def _read(entry: dict[str, Any]) -> Fitted:
    """What ``_entry`` wrote."""
    terms = {"matmul": entry["matmul"], "traffic": entry["traffic"], "start": 1e-9}
    terms |= {name: entry["matmul"] / entry["slower"][name] for name in FAMILIES if name != "matmul"}
    gpu = entry["runs_on"] == "gpu"
    terms["dispatch"] = float(entry["dispatch"].removesuffix("us")) / 1e6
    classes = entry.get("classes") or {}
    by_kind = {kind: classes[names[0]] for kind, names in _CLASSES.items() if names[0] in classes}
    devices = entry.get("devices") or {}
    return Fitted(
        terms, by_kind, {**devices, **({f"{name}/gpu": value for name, value in devices.items()} if gpu else {})}
    )


def _digits(value: float) -> float:
    return float(f"{value:.3g}")


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="?", default=os.environ.get(PLACE), help="a csv of measurements on devices")
    parser.add_argument("--fit", action="store_true", help="fit every stack and write devices/rates.yaml")
    parser.add_argument("--shipped", action="store_true", help="judge devices/rates.yaml as it is, nothing fitted")
    parser.add_argument("--left", action="store_true", help="list the rows that can't be rebuilt, and why")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if not options.rows or not Path(options.rows).is_file():
        parser.error(f"a csv of measurements is needed, as an argument or in {PLACE}")
    found, left = rows(Path(options.rows))
    if options.left:
        for one in left:
            print(f"{options.rows}:{one.line}: {one.why}")
        return 0
    if options.fit:
        print(write(found))
        return 0
    if options.shipped:
        told = [one for one in as_shipped(found) if one.fair]
        return show(
            [
                _quantile("as shipped: median error", told, 0.5, None),
                _quantile("as shipped: 90th percentile", told, 0.9, None),
                _line(
                    "as shipped, ratios between methods: median error",
                    statistics.median(_ratios(told) or [float("nan")]),
                    None,
                    _ratios(told),
                ),
            ],
            options.json,
        )
    return show(figures(found, left), options.json)


if __name__ == "__main__":
    sys.exit(main())
