"""What a step of a published model costs, counted on tensors that have shapes and no data.

A step of ``full``, ``head``, ``lora``, ``adapter`` or ``zo`` (two passes forwards) training, or ``inference``, at a
batch of two and of three; every other batch lies on the straight line through both. Counts of timm's models are kept in
``counts.json``, so that nobody needs timm to check them: ``python -m tools.fidelity.counts`` with timm and torchvision
on the path counts them again.
"""

from __future__ import annotations

import csv
import json
import logging
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedge.meter.work import Counter, Work
from fedge.models.adapter import Bottleneck
from fedge.models.lora import inject
from fedge.plan.fake import RememberingMode
from fedge.plan.shapes import faked
from tools.fidelity.rebuilt import Rebuilt, UnknownModelError, image, pixels, single, text, timm_name

KEPT = Path(__file__).with_name("counts.json")
#: A batch of one can't be normalised, and so can't be trained by some.
_BATCHES = (2, 3)


@dataclass(frozen=True)
class Step:
    """A step's work, the most bytes held at once beyond the model, and the model's bytes and those trained (fp32)."""

    work: Work
    held: int
    weights: int
    trained: int


def step(model: str, method: str, batch: int, size: str, params: float = 0.0) -> Step:
    """A step of a published model. UnknownModelError where it can't be rebuilt here.

    ``method`` as a row names it (``lora-r8``, ``adapter-depth6``); ``size``: a row's text of the length of a sequence
    or the side of an image; ``params`` in millions.
    """
    two, three = _pair(model, method, size, params)
    work = two.work + (three.work - two.work) * (batch - 2)
    return Step(work, two.held + (three.held - two.held) * (batch - 2), two.weights, two.trained)


@cache
def _pair(model: str, method: str, size: str, params: float) -> tuple[Step, Step]:
    for key in (f"{timm_name(model)} {method} {pixels(model, size)}", f"{model} {method} {size}"):
        if key in _kept():
            return _read(_kept()[key][0]), _read(_kept()[key][1])
    rebuilt = _rebuilt(model, size, params)
    try:
        return _count(rebuilt, method, _BATCHES[0]), _count(rebuilt, method, _BATCHES[1])
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError) as error:  # whatever foreign code says
        raise UnknownModelError(f"{model} can't be counted: {error}") from error


def _rebuilt(model: str, size: str, params: float) -> Rebuilt:
    numbers = re.search(r"\d+", size)
    length = int(numbers[0]) if numbers else 128
    if "layer " in model:
        return single(model, length)
    try:
        return text(model, length, params)
    except UnknownModelError:
        return image(model, pixels(model, size))


@cache
def _kept() -> Mapping[str, Any]:
    found: Mapping[str, Any] = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    return found


def _read(kept: Sequence[Any]) -> Step:
    flops, traffic, ops, kinds, held, weights, trained = kept
    return Step(Work(flops, traffic, ops, tuple(kinds)), held, weights, trained)


def _written(found: Step) -> list[Any]:
    work = found.work
    return [work.flops, work.traffic, work.ops, list(work.kinds), found.held, found.weights, found.trained]


def _count(rebuilt: Rebuilt, method: str, batch: int) -> Step:
    logging.getLogger("torch._subclasses.fake_tensor").setLevel(logging.CRITICAL + 1)
    with torch.device("meta"):
        model = rebuilt.build()
        _prepare(model, rebuilt, method)
    mine = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    with RememberingMode():
        model = faked(model)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in mine)
        training = method not in ("inference", "zo")
        model.train(training)
        held = [*model.parameters(), *model.buffers()]
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        counter = Counter(memory=True, known=held)
        inputs = rebuilt.inputs(batch)
        with counter:
            if not training:
                with torch.no_grad():
                    for _ in range(2 if method == "zo" else 1):
                        _answer(model(**inputs))
            else:
                optimizer = torch.optim.SGD(trained, lr=0.1)
                _answer(model(**inputs)).square().mean().backward()
                optimizer.step()
                optimizer.zero_grad()
        weights = sum(tensor.numel() * tensor.element_size() for tensor in held)
        size = sum(parameter.numel() * parameter.element_size() for parameter in trained)
    return Step(counter.work, counter.peak, weights, size)


def _answer(out: Any) -> Tensor:
    if isinstance(out, Tensor):
        return out
    for name in ("logits", "start_logits", "last_hidden_state"):
        if (found := getattr(out, name, None)) is not None:
            assert isinstance(found, Tensor)
            return found
    first = out[0]
    assert isinstance(first, Tensor)
    return first


def _prepare(model: nn.Module, rebuilt: Rebuilt, method: str) -> None:
    """Leave a gradient to what the method trains."""
    for parameter in model.parameters():
        parameter.requires_grad_(method == "full")
    if method == "head":
        last = [module for module in model.modules() if isinstance(module, (nn.Linear, nn.Conv2d))][-1]
        for parameter in last.parameters():
            parameter.requires_grad_(True)
    elif method.startswith("lora"):
        rank = re.search(r"r(\d+)", method)
        inject(model, rank=int(rank[1]) if rank else 8, alpha=16, targets=rebuilt.targets)
    elif method.startswith("adapter"):
        _adapt(model, rebuilt.blocks, method)


def _adapt(model: nn.Module, blocks: str, method: str) -> None:
    """Bottlenecks of 64 after both sublayers of the last blocks, all of them unless ``-depthN`` says how many."""
    if not blocks:
        raise UnknownModelError("adapters in a model whose blocks are not known")
    ends = [(name, module) for name, module in model.named_modules() if re.search(r"output\.dense$", name)]
    depth = re.search(r"depth(\d+)", method)
    kept = len(ends) if depth is None else 2 * int(depth[1])
    for name, module in ends[len(ends) - kept :]:
        parent = model.get_submodule(name.rpartition(".")[0])
        parent.dense = nn.Sequential(module, Bottleneck(int(module.out_features), 64))
    for name, parameter in model.named_parameters():
        if name.startswith("classifier"):
            parameter.requires_grad_(True)


#: timm's models that studies of devices measure, at the sizes in which they do.
NAMES = Path(__file__).with_name("names.txt").read_text().split()


def main() -> int:
    """Count every model of ``NAMES``, trained whole and head alone, and inferring; and those of a csv's rows."""
    found: dict[str, Any] = {}
    wanted = [
        (name, method, str(size), 0.0)
        for name in NAMES
        for method in ("full", "head", "inference")
        for size in sorted({224, pixels(name, "")})
    ]
    for path in sys.argv[1:]:
        with open(path, newline="") as file:
            wanted += [
                (r["model"], r["method"], r["seq_len_or_image"] or "80", float(r["params_M"] or 0))
                for r in csv.DictReader(file)
            ]
    for name, method, size, params in wanted:
        known = f"{timm_name(name)} {method} {pixels(name, size)}"
        key = f"{name} {method} {size}"
        if known in found or key in found:
            continue
        try:
            rebuilt = image(name, int(size)) if name in NAMES else _rebuilt(name, size, params)
            found[key] = [_written(_count(rebuilt, method, batch)) for batch in _BATCHES]
        except Exception as error:  # whatever foreign code says: the model is left out
            print(f"{name} {method}: {error}", file=sys.stderr)
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in sorted(found.items()))
    KEPT.write_text("{\n" + lines + "\n}\n")
    print(f"{len(found)} counts in {KEPT}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
