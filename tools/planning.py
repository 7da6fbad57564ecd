"""Whether the plan tells the truth, and how soon: ``python -m tools.planning [--quick] [--json] [--only PART]``.

Three parts:

- ``pairs``: eight methods on two models, and devices whose memory is just what some variant needs, so that between them
  they pick every variant that a device may pick. All are planned, and then really run behind the host's wall: peak
  memory, bytes each way (with and without entropy coding), emulated seconds, and who was killed.
- ``promises``: 200 devices with memory log-uniform from a quarter of a method's need to four times of it, whose picks
  are judged by the peaks that ``pairs`` measured.
- ``times``: a hundred devices of ten profiles and eight methods planned cold and again, on the vit-nano that fedge
  makes by default and on the larger one of the pairs, and a configuration of seventy billion weights without its
  weights. Wall time on a busy host says little, so process time stands beside it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from fedge.core.cost import Budget, Cost
from fedge.errors import FedgeError
from fedge.plan.choose import Offer, choose
from fedge.run.folder import RunFolder
from fedge.run.launcher import Options
from fedge.run.planning import planned, profile
from fedge.spec import load_federation
from tools.figures import figure, show
from tools.memory import words

METHODS = ("fedavg", "lora", "ffa_lora", "bitfit", "head", "fedper", "fedrep", "fedkseed")
QUICK = ("fedavg", "lora", "head")
PROFILES = [
    "pi-zero-2w",
    "pi-3b-plus",
    "pi-4b-4g",
    "pi-5-8g",
    "pixel-6",
    "galaxy-s22",
    "iphone-12",
    "jetson-nano-4g",
    "nuc-n100-16g",
    "laptop-m1-8g",
]
DEVICES = 200
#: A model that has its default size, and those of the pairs, ten million weights each.
DEFAULT = "vit-nano by default"
_SIZES = {
    DEFAULT: ("vit-nano", "{dataset: digits, test: 5%}"),
    "vit-nano": (
        "{name: vit-nano, options: {hidden: 384, layers: 6, heads: 6, mlp: 1536}}",
        "{dataset: digits, test: 5%}",
    ),
    "bert-nano": (
        "{name: bert-nano, options: {hidden: 384, layers: 6, heads: 6, mlp: 1536}}",
        "{dataset: words.csv, test: 5%, length: 32}",
    ),
}
_MODELS = tuple(name for name in _SIZES if name != DEFAULT)
_HEAD = """\
name: planning
model: {model}
data: {data}
devices:
{devices}
evaluate: {{every: 2, rows: 16}}
stages:
{stages}
"""
_LLAMA_70B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "use_cache": False,
}


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@dataclass
class Found:
    """Of each model the offers (method -> rows of the plan), and the pairs that ran; and pairs with codecs."""

    offers: dict[str, dict[str, list[dict[str, Any]]]] = field(default_factory=dict)
    pairs: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    killed: int = 0
    coded: list[dict[str, Any]] = field(default_factory=list)


def write(folder: Path, name: str, model: str, devices: list[str], stages: list[str]) -> Path:
    """A federation's file."""
    words(folder / "words.csv")
    path = folder / f"{name}.yaml"
    written, data = _SIZES[model]
    lines = {
        "devices": "\n".join(f"  {line}" for line in devices),
        "stages": "\n".join(f"  - {line}" for line in stages),
    }
    path.write_text(_HEAD.format(model=written, data=data, **lines))
    return path


def stage(method: str, **more: Any) -> str:
    """A stage of two short rounds, of which the second is reported."""
    return "customize: " + json.dumps({"method": method, "rounds": 2, "steps": 2, "batch": 16, **more})


def picked(offers: list[dict[str, Any]], memory: float) -> dict[str, Any] | None:
    """The offer that a device of so much memory picks."""
    menu = [Offer(at, row["method"], row["variant"], row["cost"]) for at, row in enumerate(offers)]
    choice = choose(menu, Budget(int(memory), 1e12, 1e12, 1e12, 1e12))
    return None if choice.index is None else offers[choice.index]


def sizes(offers: dict[str, list[dict[str, Any]]], most: int) -> list[int]:
    """Few sizes of memory, each just enough for something, at which devices pick all that any may pick."""
    found, seen = [], set()
    for size in sorted({row["cost"].memory_needed for rows in offers.values() for row in rows}):
        picks = {id(row) for rows in offers.values() if (row := picked(rows, size)) is not None}
        if picks - seen and len(found) < most:
            found.append(size)
            seen |= picks
    return found


def measure(folder: Path, methods: tuple[str, ...], models: tuple[str, ...], most: int, found: Found) -> None:
    """Plan, run at the wall, and keep both."""
    links = ("wifi4", "lte-cat4")  # without jitter, which is drawn as messages pass and which no plan can know
    roomy = ["pi: {profile: pi-4b-4g, memory: 8GiB}"]
    for model in models:
        path = write(
            folder, f"{model}-menu", model, ["pi: {profile: pi-4b-4g, memory: 8GiB}"], [stage(m) for m in methods]
        )
        found.offers[model] = offers = {}
        for staged in planned(load_federation(path), say):
            for offer in staged.menu:
                row = {"method": offer.method, "variant": offer.variant, "cost": offer.cost}
                offers.setdefault(offer.method, []).append(row)
        devices = [
            f"tight-{at}: {{profile: pi-4b-4g, memory: {size}B, network: {{name: {links[at % 2]}, jitter: 0s}}}}"
            for at, size in enumerate(sizes(offers, most))
        ]
        # what a device downloads is all that anybody has trained: as planned, where one trains all that there is
        devices.append("roomy: {profile: pi-4b-4g, memory: 8GiB, network: {name: wifi4, jitter: 0s}}")
        path = write(folder, model, model, devices, [stage(method) for method in methods])
        found.pairs[model] = profile(path, (), Options(runs=folder / "runs"), say)
        lines = RunFolder(Path(found.pairs[model][0]["run"])).read_lines("metrics.jsonl")
        lost = [line["lost"] for line in lines if line["round"] is None and line["lost"]]
        found.killed += sum(one["cause"] == "memory" and one["phase"] != "plan" for one in lost)
    codecs: tuple[list[Any], ...] = (["int8"], [{"topk": 0.1}, "int8"], ["int8", "zstd"], ["ternary"])
    path = write(folder, "coded", "vit-nano", roomy, [stage("lora", codec=chain) for chain in codecs])
    found.coded = profile(path, (), Options(runs=folder / "runs"), say)
    for row, chain in zip(found.coded, codecs, strict=True):
        row["fixed"] = not {"zstd", "ternary"} & {part for part in chain if isinstance(part, str)}


def pair_figures(found: Found) -> list[dict[str, Any]]:
    rows = [row for rows in found.pairs.values() for row in rows]
    memory = [100 * abs(row["measured_peak_memory"] / row["peak_memory"] - 1) for row in rows]
    seconds = [100 * abs(row["measured_virtual_s"] / row["virtual_s"] - 1) for row in rows]
    wrong = sum(row[f"measured_{way}"] != row[way] for row in rows for way in ("bytes_up", "bytes_down"))
    wrong += sum(row["measured_bytes_up"] != row["bytes_up"] for row in found.coded if row["fixed"])
    entropy = [row["bytes_up"] / row["measured_bytes_up"] for row in found.coded if not row["fixed"]]
    lines = [
        figure("peak memory, median error of the plan over pairs of device and method", memory, "%", 3.0),
        _single("peak memory, worst error", max(memory), "%", 10.0, len(memory)),
        _single(
            "byte counts, headers included, that the plan got wrong (codecs of fixed size)",
            wrong,
            "of them",
            0,
            2 * len(rows),
        ),
        _single("emulated seconds, worst error", max(seconds), "%", 5.0, len(seconds)),
    ]
    if entropy:
        lines.append(_single("bytes up over those counted, entropy coder", max(entropy), "×", 1.1, len(entropy)))
        lines.append(
            _single("bytes counted over those foretold, entropy coder", 1 / min(entropy), "×", 1.0, len(entropy))
        )
    return lines


def promise_figures(found: Found) -> list[dict[str, Any]]:
    """Judge 200 devices a model by the measured peaks of what they pick, and of what they might have picked."""
    fits = broken = refused = timid = ran = 0
    for model, offers in found.offers.items():
        chance = random.Random(f"{model}-devices")
        peaks = {_key(row): row["measured_peak_memory"] for row in found.pairs[model]}
        # by the plan of the devices that ran: what a method keeps of its rows goes by how many it has
        needs = {_key(row): Cost(row["peak_memory"]).memory_needed for row in found.pairs[model]}
        ran += len(found.pairs[model])
        for rows in offers.values():
            known = [row for row in rows if _key(row) in peaks]
            need = max((peaks[_key(row)] for row in known), default=0)
            for _ in range(DEVICES if known else 0):
                memory = need * math.exp(chance.uniform(math.log(0.25), math.log(4)))
                for row in known:  # the plan's verdict on each variant, not only on the one that is picked
                    if needs[_key(row)] <= memory:
                        fits += 1
                        broken += peaks[_key(row)] > memory
                    else:
                        refused += 1
                        timid += 1.1 * peaks[_key(row)] <= memory
    share = 100 * timid / max(1, refused)
    return [
        _single("verdicts 'fits' that the measured peak breaks", broken, "of them", 0, fits),
        _single("verdicts 'does not fit' that would have had 10 % to spare", share, "%", 5.0, refused),
        _single("devices killed among those run at their wall", found.killed, "of them", 0, ran),
    ]


def _key(row: dict[str, Any]) -> str:
    return json.dumps([row["method"], row["variant"]], sort_keys=True)


def time_figures(folder: Path, quick: bool) -> list[dict[str, Any]]:
    """Cold, again, each trace, and seventy billion weights."""
    devices = [f"{name}: {{profile: {name}, count: 10}}" for name in PROFILES]
    methods = [stage(method) for method in (QUICK if quick else METHODS)]
    fleets = {model: write(folder, model.replace(" ", "-"), model, devices, methods) for model in (DEFAULT, "vit-nano")}
    (folder / "llama").mkdir()
    (folder / "llama" / "config.json").write_text(json.dumps(_LLAMA_70B))
    large = folder / "llama.yaml"
    large.write_text(
        "model: ./llama\ndata: {dataset: words.csv, text: text, length: 128}\n"
        "devices:\n  box: {profile: laptop-m1-8g}\n"
        "stages:\n  - customize: {method: lora, batch: 4}\n"
    )
    lines: list[dict[str, Any]] = []
    hundred = "100 devices of ten profiles, eight methods"
    planned_again = [(f"{hundred}, {name}", path, True) for name, path in fleets.items()]
    for name, path, again in (*planned_again, ("70 billion weights, LoRA", large, False)):
        cache = folder / f"cache-{path.stem}"
        for what, goal in (("cold", 20.0), ("again", 2.0))[: 2 if again else 1]:
            wall, spent, code = _timed(path, cache)
            if code not in (0, 3):
                raise FedgeError(f"fedge plan {path.name} ended with {code}")
            lines.append(_single(f"{name}, planned {what}", wall, "s", goal if again else None, 1))
            lines.append(_single(f"{name}, planned {what}: process time", spent, "s", None, 1))
    for name, path in fleets.items():
        os.environ["FEDGE_CACHE"] = str(folder / f"cache-traces-{path.stem}")
        lines.append(figure(f"a trace of a variant, {name}, process time", _traces(path), "s", 1.0))
    return lines


def _timed(path: Path, cache: Path) -> tuple[float, float, int]:
    """Wall and process seconds of ``fedge plan`` in a process of its own, and its exit code."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, "-m", "fedge", "plan", str(path), "--json"]
    done = subprocess.run(
        command, stdout=subprocess.DEVNULL, env={**os.environ, "FEDGE_CACHE": str(cache)}, check=False
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - began, spent, done.returncode


def _traces(path: Path) -> list[float]:
    """Process seconds of each trace, one after another: on one core nothing is traced ahead in other processes."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        moments: list[tuple[bool, float]] = []
        planned(load_federation(path), lambda line: moments.append(("tracing" in line, time.process_time())))
        moments.append((False, time.process_time()))
    finally:
        os.sched_setaffinity(0, allowed)
    return [after[1] - before[1] for before, after in pairwise(moments) if before[0]]


def _single(name: str, value: float, unit: str, goal: float | None, n: int) -> dict[str, Any]:
    line = {**figure(name, [value], unit, goal), "n": n}
    line.pop("spread")
    return line


def main() -> int:
    """Measure and print; 0 when the goals hold."""
    parser = argparse.ArgumentParser(prog="python -m tools.planning", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one model, three methods")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--only", choices=("pairs", "times"), help="pairs (with promises), or times")
    parser.add_argument("--model", action="append", choices=_MODELS, help="pairs on this model alone")
    told = parser.parse_args()
    methods, models = (QUICK, ("vit-nano",)) if told.quick else (METHODS, tuple(told.model or _MODELS))
    lines: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="fedge-planning-") as name:
        folder = Path(name)
        os.environ.setdefault("FEDGE_CACHE", str(folder / "cache"))
        try:
            if told.only != "times":
                found = Found()
                measure(folder, methods, models, 4 if told.quick else 16, found)
                lines += pair_figures(found) + promise_figures(found)
            if told.only != "pairs":
                words(folder / "words.csv")
                lines += time_figures(folder, told.quick)
        except FedgeError as error:
            print(f"tools.planning: {error}", file=sys.stderr)
            return error.exit_code
    return show(lines, told.json)


if __name__ == "__main__":
    raise SystemExit(main())
