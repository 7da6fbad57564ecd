"""What this machine sustains with PyTorch: measured steps of training, and the rates that explain them.

A single product of matrices misleads (its rate is off by a quarter to a half for whole models), so the rates of
products, traffic and dispatch are fitted to training steps of transformers from tiny to large: the non-negative least
squares of relative errors. Then each other family of arithmetic gets the rate that explains a probe of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedge.core.cost import KINDS
from fedge.core.fit import Batch, Loss, pull
from fedge.core.fit import fit as train
from fedge.emulation.roofline import Rates, compute_seconds
from fedge.meter.work import Counter, Work
from fedge.units import format_byterate, format_flops

Say = Callable[[str], None]
#: Seconds spent on one step at least, and repetitions at least; the quickest counts, since others use the host too.
LEAST_S, LEAST = 0.4, 5
#: Rates that no machine reaches: what the measurements can't tell from free.
_NEVER = Rates(1e18, 1e18)


@dataclass(frozen=True)
class Probe:
    """A step to be measured: ``build`` makes what is run, ``of`` names the model that it belongs to."""

    name: str
    of: str
    build: Callable[[], Callable[[], object]]


@dataclass(frozen=True)
class Timed:
    """A step's work and the seconds that it took."""

    name: str
    of: str
    work: Work
    seconds: float


@dataclass(frozen=True)
class Sustained:
    """What was found: the rates, the steps that they rest on, and by how much they miss those they were fitted to."""

    rates: Rates
    timed: tuple[Timed, ...] = field(default_factory=tuple)

    def error(self, of: str) -> float:
        """The median relative error over the steps of models whose name begins with ``of``."""
        return float(np.median([abs(told(self.rates, one) / one.seconds - 1) for one in self.timed if of in one.of]))


def calibrate(say: Say, threads: int) -> Sustained:
    """Measure this machine with so many threads; takes about half a minute of a free machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        steps = list(measured(transformers(), say))
        families = list(measured(convolutions(), say))
    finally:
        torch.set_num_threads(before)
    return Sustained(with_families(fitted(steps), families), (*steps, *families))


def measured(probes: Iterable[Probe], say: Say) -> Iterable[Timed]:
    """Each probe counted once and then timed: its quickest repetition, in processor time where one thread runs it."""
    for probe in probes:
        run = probe.build()
        run()
        with Counter() as counter:
            run()
        clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
        taken: list[float] = []
        began = time.perf_counter()
        while len(taken) < LEAST or time.perf_counter() - began < LEAST_S:
            start = clock()
            run()
            taken.append(clock() - start)
        say(f"{probe.name}: {min(taken) * 1e3:.3g} ms, {counter.flops / min(taken) / 1e9:.3g} GFLOP/s")
        yield Timed(probe.name, probe.of, counter.work, min(taken))


def told(rates: Rates, timed: Timed) -> float:
    """The virtual clock's seconds of a measured step."""
    work = timed.work
    return compute_seconds(work.flops, work.traffic, work.ops, rates, work.shares)


def fitted(timed: Sequence[Timed]) -> Rates:
    """The rates of products, traffic and dispatch with the least relative errors over these steps."""
    from scipy.optimize import nnls

    rows = np.array([[one.work.flops, one.work.traffic, one.work.ops] for one in timed], dtype=np.float64)
    scale = rows.max(axis=0)
    weighed: NDArray[np.float64] = rows / scale / np.array([[one.seconds] for one in timed])
    per_flop, per_byte, per_op = nnls(weighed, np.ones(len(timed)))[0] / scale
    return Rates(
        float(1 / per_flop) if per_flop > 0 else _NEVER.flops,
        float(1 / per_byte) if per_byte > 0 else _NEVER.memory_bandwidth,
        float(per_op),
    )


def with_families(rates: Rates, timed: Sequence[Timed]) -> Rates:
    """The same with each other family of arithmetic as slow as its own probe shows it."""
    slower: dict[str, float] = {}
    for one in timed:
        kind = max(one.work.shares, key=lambda name: one.work.shares[name])
        known = Rates(rates.flops, rates.memory_bandwidth, rates.per_op, tuple(slower.items()))
        share = one.work.shares[kind]
        rest = {name: value for name, value in one.work.shares.items() if name != kind}
        # what all but this family takes, at a family's rate of nothing
        other = compute_seconds(one.work.flops, one.work.traffic, one.work.ops, known, rest)
        other -= share * one.work.flops / rates.flops
        left = max(one.seconds - other, 0.1 * one.seconds)  # a family is never free
        slower[kind] = left / (share * one.work.flops / rates.flops)
    return Rates(rates.flops, rates.memory_bandwidth, rates.per_op, tuple((k, slower.get(k, 1.0)) for k in KINDS))


#: Transformers from tiny to large: hidden, layers, heads, tokens, batch.
SIZES = {
    "tiny": (64, 4, 4, 16, 16),
    "mini": (96, 6, 3, 16, 8),
    "narrow": (128, 2, 2, 64, 16),
    "small": (192, 6, 3, 64, 8),
    "medium": (256, 4, 4, 128, 8),
    "wide": (512, 3, 8, 64, 8),
    "large": (768, 2, 12, 128, 4),
}
WAYS = ("whole", "adapters", "biases", "classifier")


def transformers(ways: Sequence[str] = ("whole", "classifier")) -> Iterable[Probe]:
    """Steps of Adam on encoders of every size, trained in each way."""
    for name in SIZES:
        for way in ways:
            yield Probe(f"{name} transformer, {way}", name, partial(step, name, way))


def step(size: str, way: str) -> Callable[[], object]:
    """One step of Adam by fedge's own loop; see ``stepping``."""
    model, rows, loss, optimizer = stepping(size, way)
    return lambda: train(model, [rows], loss=loss, optimizer=optimizer, steps=1)


def stepping(size: str, way: str) -> tuple[nn.Module, Batch, Loss, torch.optim.Optimizer]:
    """What a step of a size in ``SIZES`` takes: all is trained, or adapters of rank 8 on query and value, or biases,
    or the head."""
    from transformers import BertConfig, BertForSequenceClassification

    from fedge.models.lora import inject

    hidden, layers, heads, tokens, batch = SIZES[size]
    config = BertConfig(
        vocab_size=1000,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
        max_position_embeddings=tokens,
    )
    torch.manual_seed(0)
    model: nn.Module = BertForSequenceClassification(config)
    if way == "adapters":
        inject(model, rank=8, alpha=16, targets=("query", "value"))
    else:
        wanted = {"whole": "", "biases": "bias", "classifier": "classifier"}[way]
        for parameter_name, parameter in model.named_parameters():
            parameter.requires_grad_(wanted in parameter_name)
    rows = {"input_ids": torch.randint(0, 1000, (batch, tokens)), "labels": torch.zeros(batch, dtype=torch.long)}
    optimizer = torch.optim.Adam([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1e-4)

    def loss(model: nn.Module, rows: Batch) -> Tensor:
        found: Tensor = model(**rows).loss
        return found

    return model, rows, loss, optimizer


def convolutions() -> Iterable[Probe]:
    """A probe for each family of ``KINDS``, those first that the later ones need."""
    yield Probe("convolutions, forwards", "conv", lambda: _layer(nn.Conv2d(64, 64, 3, padding=1), False))
    yield Probe("pointwise convolutions, forwards", "pointwise", lambda: _layer(nn.Conv2d(128, 128, 1), False))
    yield Probe("convolutions, backwards", "conv_backward", lambda: _layer(nn.Conv2d(64, 64, 3, padding=1), True))
    grouped = nn.Conv2d(128, 128, 3, padding=1, groups=128)
    yield Probe("depthwise convolutions", "depthwise", lambda: _layer(grouped, True))
    yield Probe("recurrent layers", "recurrent", lambda: _step(nn.LSTM(128, 128), torch.randn(16, 8, 128), True))


def profile(found: Sustained, name: str, threads: int) -> str:
    """The profile of this machine as a file, what is not measured marked as the estimate that it is."""
    import platform

    import psutil

    memory = int(psutil.virtual_memory().total)
    rates = found.rates
    peak = max(one.work.flops / one.seconds for one in found.timed if one.of in SIZES)
    slower = ", ".join(f"{kind}: {times:.3g}" for kind, times in rates.slower)
    own = (
        f"{{matmul: {format_flops(rates.flops)}, traffic: {format_byterate(rates.memory_bandwidth)}, "
        f"dispatch: {rates.per_op * 1e6:.3g}us, slower: {{{slower}}}}}"
    )
    cores = "a core" if threads == 1 else f"{threads} cores"
    missed = 100 * found.error("")
    return f"""\
# Written by `fedge devices calibrate`. Power, network and the memory granted are estimates: put in your own.
name: {name}
about: {cores} of {platform.machine()}, PyTorch {torch.__version__}
kind: laptop
memory: {memory // 2 >> 20}MiB
memory_total: {memory >> 20}MiB
compute: {format_flops(peak)}
memory_bandwidth: {format_byterate(rates.memory_bandwidth)}
network: ethernet1000
power: {{idle: 5W, active: 30W}}
rates:
  pytorch: {own}
basis:
  memory: D half of the memory fitted
  memory_total: M
  compute: M the best of {len(SIZES)} transformers in training, {cores}
  memory_bandwidth: M fitted to {len(found.timed)} steps of training, which it explains to {missed:.1f} % in the median
  power: E
"""


def _layer(layer: nn.Conv2d, backwards: bool) -> Callable[[], object]:
    return _step(layer, torch.randn(8, layer.in_channels, 28, 28), backwards)


def _step(layer: nn.Module, x: Tensor, backwards: bool) -> Callable[[], object]:
    x.requires_grad_(backwards)

    def run() -> object:
        if not backwards:
            with torch.no_grad():
                return layer(x)
        out = layer(x)
        out = out[0] if isinstance(out, tuple) else out
        pull([out], [torch.ones_like(out)])
        x.grad = None
        layer.zero_grad()
        return out

    return run
