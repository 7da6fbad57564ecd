"""What each rung of customization is worth alone: ``python -m tools.ladder [--quick] [--json] [--task NAME]``.

On every task the same few rows train, with no federation between, a model of words, a head on frozen features, LoRA in
the top layer, the top two and all layers, and the whole model. Each trained rung is fedge's own method, run by its own
``client`` on one device that has all rows, for the same number of steps (the head for more: a step of it costs next to
nothing, because its features are kept). Each rung has one learning rate, the same on all tasks of a model. Where the
ladder is flat, the cheap rung is the honest plan for everybody; where it is steep, depth is worth what it costs.

A figure is kept in a file (``--cache``), so that an interrupted or a repeated call measures what is missing only.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from fedge.data.baselines import language_baselines, linear_baseline
from fedge.data.encode import Data, encode
from fedge.data.raw import Raw
from fedge.data.source import read
from fedge.errors import FedgeError
from fedge.methods.make import make
from fedge.models.load import MINILM, Loaded, load
from fedge.run.evaluate import share_of, test
from fedge.run.launcher import Options, up
from fedge.spec.cache import cache_folder
from fedge.testing.driver import drive
from tools.figures import show

Say = Callable[[str], None]

#: The trained rungs from the cheapest up: method and fields, depth as a number of layers (0: all of them).
RUNGS: dict[str, tuple[str, int]] = {
    "head": ("head", 0),
    "LoRA top 1": ("lora", 1),
    "LoRA top 2": ("lora", 2),
    "LoRA all": ("lora", 0),
    "full": ("fedavg", 0),
}
WORDS = "words"


@dataclass(frozen=True)
class Made:
    """A nano model that a train stage made, from random weights, on another data set."""

    model: str
    dataset: str
    options: dict[str, Any]
    rounds: int
    rows: int
    text: str | None = None


@dataclass(frozen=True)
class Ladder:
    """A task: its data (below the data folder), the model, how much of both, and a learning rate for each method."""

    name: str
    dataset: str
    model: str | Made
    rows: int
    lr: dict[str, float]
    task: str | None = None
    text: str | None = None
    test: str | None = None
    length: int = 32
    steps: int = 60
    batch: int = 16
    test_rows: int = 300


_MINILM_LR = {"head": 1e-2, "lora": 2e-3, "fedavg": 2e-4}
_NANO_LR = {"head": 1e-2, "lora": 4e-3, "fedavg": 2e-3}
#: A small image model that knows clothes.
FASHION = Made("vit-nano", "fashion_mnist.npz", {"image_size": 28, "patch": 7, "channels": 1}, 40, 6000)
_GPT = Made("gpt-nano", "medquad_instruct", {}, 12, 3000)

TASKS = (
    Ladder("sst2", "sst2/train.csv", MINILM, 600, _MINILM_LR, test="sst2/dev.csv"),
    Ladder("medquad_cls", "medquad_cls", MINILM, 600, _MINILM_LR, length=48),
    Ladder("sib200", "sib200_12lang", MINILM, 600, _MINILM_LR, length=48),
    Ladder("cifar10 from fashion", "cifar10_subset.npz", FASHION, 2000, _NANO_LR, steps=300, batch=32, test_rows=1000),
    Ladder("fsdd from fashion", "fsdd_logmel.npz", FASHION, 1200, _NANO_LR, steps=120, batch=32),
    Ladder(
        "shakespeare from medquad",
        "tiny_shakespeare/input.txt",
        _GPT,
        2000,
        _NANO_LR,
        task="causal-lm",
        length=64,
        steps=200,
    ),
)


@dataclass
class Ready:
    """A task's data and model, read when the first rung needs them."""

    ladder: Ladder
    folder: Path
    say: Say
    _held: tuple[Raw, Data, Loaded] | None = field(default=None, repr=False)

    def load(self) -> tuple[Raw, Data, Loaded]:
        """The raw data, the encoded data and the model."""
        if self._held is None:
            ladder = self.ladder
            raw = read(
                ladder.dataset,
                folder=self.folder,
                text=ladder.text,
                test=None if ladder.test is None else str(self.folder / ladder.test),
                task=ladder.task,
                rows=None if ladder.task == "causal-lm" else ladder.rows,
                seed=0,
            )
            name = ladder.model if isinstance(ladder.model, str) else str(made(ladder.model, self.folder, self.say))
            kind = ladder.task or raw.kind
            loaded = load(name, kind, classes=len(raw.names) or None, labels=list(raw.names) or None, seed=0)
            config = loaded.config
            shape = (config["num_channels"], config["image_size"]) if "num_channels" in config else None
            data = encode(raw, loaded.preprocessor or shape, loaded.task, ladder.length, loaded.input_names)
            self._held = raw, data, loaded
        return self._held

    def measure(self, rung: str, seed: int) -> float:
        """Accuracy of a rung on the test rows; of language modelling, that of the next token."""
        raw, data, loaded = self.load()
        if rung == WORDS:
            found = language_baselines(data)[-1] if loaded.task.generative else linear_baseline(raw, seed)
            return float(found["accuracy"])
        ladder = self.ladder
        rows = share_of(data.train, ladder.rows, seed)
        tested = share_of(data.test, ladder.test_rows, 0)
        key, layers = RUNGS[rung]
        options: dict[str, Any] = {"lr": ladder.lr[key], "steps": ladder.steps, "batch": ladder.batch}
        if key == "head":
            options["steps"] = 5 * ladder.steps
        if layers:
            options["depth"] = layers / _layers(loaded)
        method = make(key, options)
        if loaded.task.kind not in method.card.tasks:  # a head of a language model is no rung: it is not retrained
            return float(test(loaded.model, tested, loaded.task, method.predict).metrics["accuracy"])
        driven = drive(method, loaded.model, {"alone": rows}, loaded.task, seed=seed)
        return float(test(driven.final(), tested, loaded.task, method.predict).metrics["accuracy"])


def made(source: Made, folder: Path, say: Say) -> Path:
    """The folder of the model that a train stage makes (once)."""
    place = cache_folder() / "ladder" / digest({**asdict(source), "folder": str(folder)})
    if (place / "model" / "config.json").is_file():
        return place / "model"
    language = "causal-lm" if source.model == "gpt-nano" else "null"
    text = f"""\
name: ladder
model: {{name: {source.model}, task: {language}, options: {json.dumps(source.options)}}}
data: {{dataset: {folder / source.dataset}, rows: {source.rows}, length: 64}}
devices: {{box: {{profile: edge-server-t4, count: 2}}}}
evaluate: {{every: {source.rounds}, rows: 400}}
stages:
  - train: {{method: fedavg, rounds: {source.rounds}, steps: 25, batch: 32, lr: 2e-3}}
"""
    with tempfile.TemporaryDirectory(prefix="fedge-ladder-") as kept:
        path = Path(kept) / "ladder.yaml"
        path.write_text(text)
        run = up(path, (), Options(runs=Path(kept) / "runs", inline=True), say)
        place.mkdir(parents=True, exist_ok=True)
        (run.folder / "model").replace(place / "model")
    return place / "model"


def _layers(loaded: Loaded) -> int:
    return int(loaded.config.get("num_hidden_layers") or loaded.config["n_layer"])


def digest(about: object) -> str:
    """A short name for what can be written as JSON."""
    return sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:24]


def climb(ladder: Ladder, folder: Path, seeds: Sequence[int], cache: Path, say: Say) -> dict[str, list[float]]:
    """Every rung's accuracies, one a seed; those that are in the cache's file are not measured again."""
    ready = Ready(ladder, folder, say)
    versions = [version(name) for name in ("torch", "transformers", "peft")]
    found: dict[str, list[float]] = {}
    for rung in (WORDS, *RUNGS):
        for seed in seeds:
            key = digest([asdict(ladder), rung, RUNGS.get(rung), seed, versions])
            known = json.loads(cache.read_text()) if cache.is_file() else {}
            if key not in known:
                value = ready.measure(rung, seed)
                say(f"{ladder.name}: {rung}, seed {seed}: {value:.4f}")
                known = json.loads(cache.read_text()) if cache.is_file() else {}
                known[key] = {"task": ladder.name, "rung": rung, "seed": seed, "accuracy": value}
                cache.parent.mkdir(parents=True, exist_ok=True)
                beside = cache.with_suffix(".new")
                beside.write_text(json.dumps(known, indent=1))
                beside.replace(cache)
            found.setdefault(rung, []).append(known[key]["accuracy"])
    return found


def main() -> int:
    """Measure and print; the exit code is 0 unless something could not be measured."""
    parser = argparse.ArgumentParser(prog="python -m tools.ladder", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one seed of the tasks with small models")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--task", action="append", choices=[ladder.name for ladder in TASKS], help="only this one")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="the folder with the data sets")
    parser.add_argument("--cache", type=Path, default=cache_folder() / "ladder.json", help="file of what was measured")
    told = parser.parse_args()
    torch.set_num_threads(1)
    chosen = [ladder for ladder in TASKS if ladder.name in (told.task or [ladder.name])]
    if told.quick:
        chosen = [ladder for ladder in chosen if not isinstance(ladder.model, str)]
    seeds = range(1 if told.quick else told.seeds)
    lines: list[dict[str, Any]] = []
    try:
        for ladder in chosen:
            found = climb(ladder, told.data.resolve(), seeds, told.cache, lambda line: print(line, file=sys.stderr))
            lines += [_line(ladder.name, rung, values) for rung, values in found.items()]
    except FedgeError as error:
        print(f"tools.ladder: {error}", file=sys.stderr)
        return error.exit_code
    return show(lines, told.json)


def _line(task: str, rung: str, values: list[float]) -> dict[str, Any]:
    spread = round(max(values) - min(values), 4)
    value = round(statistics.mean(values), 4)
    return {"name": f"{task}: {rung}", "value": value, "unit": "accuracy", "spread": spread, "n": len(values)}


if __name__ == "__main__":
    raise SystemExit(main())
