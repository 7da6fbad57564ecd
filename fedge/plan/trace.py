"""What a round of a variant costs, by running the method's own code on tensors that have shapes and no data.

A whole round is driven inline: ``init``, ``round``, ``down``, ``client``, ``update``; first once to fill the server's
state, because the first download of most methods is empty. Nothing about cost is written by a method's author.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil

from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fedge.core.cost import Cost
from fedge.core.method import Method, Rows
from fedge.errors import FedgeError, MethodError
from fedge.models.anatomy import anatomy
from fedge.models.names import trainable
from fedge.plan.rehearsal import Figures, Rehearsal, Setting, faked, skeleton

__all__ = ["Setting", "measure", "trace"]

#: Fields that count repetitions. Those beyond the second add the same work again and no memory.
REPEATS = ("steps", "digest")
#: Micro-batches of a step beyond which further ones add only work: the first makes the gradients, the second adds.
PIECES = 2


def trace(method: Method, variant: Method, setting: Setting) -> Cost:
    """The cost of one round of ``variant`` of ``method`` on a device with ``setting.rows``.

    Repetitions and micro-batches beyond the second are not run but added in a straight line. The server's state is
    that of a federation in which others have trained all that the method trains. Of a method whose phases cost
    differently each figure is the dearest phase's. A method that can't run on fake tensors is run for real, once, in
    this process (``Cost.measured``). Raises MethodError when it can't be run at all.
    """
    try:
        apart = skeleton(setting.base)
        with _silent(), FakeTensorMode():
            rehearsal = Rehearsal(method, variant, setting, faked(apart), fake=True)
            return _cost([_extended(rehearsal, setting.rows, first) for first in method.phases()])
    except FedgeError:
        raise
    except Exception:
        return measure(method, variant, setting)


@contextmanager
def _silent() -> Iterator[None]:
    """Without the traceback that torch logs for what fake tensors can't do: that is measured instead, or told."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(before)


def measure(method: Method, variant: Method, setting: Setting) -> Cost:
    """The same from rounds that are really run, in this process. Raises MethodError when they can't be."""
    try:
        rehearsal = Rehearsal(method, variant, setting, setting.base, fake=False)
        return _cost([_whole(rehearsal, first) for first in method.phases()], measured=True)
    except FedgeError:
        raise
    except Exception as error:
        raise MethodError(f"a round of {type(method).__name__} can't be run: {error}") from error


@dataclass
class _Phase:
    figures: Figures
    once: Figures
    peak: int
    shared: int
    own: int
    gradients: int
    message: int
    sent: dict[str, int]
    depth: int
    trainable: int


def _extended(rehearsal: Rehearsal, rows: Rows, first: int) -> _Phase:
    """A phase from as few repetitions as tell its cost."""
    working = rehearsal.variant.working(first)
    counts = {name: value for name in REPEATS if isinstance(value := getattr(working, name, None), int)}
    pieces = _pieces(working, rows)
    few = PIECES if pieces else None
    now = dict.fromkeys(counts, 1)
    begun = rehearsal.fill(first, now)
    once = begun - rehearsal.round(first, now, 1)
    total = last = rehearsal.round(first, now, few)
    if pieces:
        piece = rehearsal.round(first, now, PIECES + 1) - last
        total += piece * ((pieces - PIECES) * counts.get("steps", 1))
    for name, count in counts.items():
        if count > 1:
            now[name] = 2
            more = rehearsal.round(first, now, few)
            total += (more - last) * (count - 1)
            last = more
    return _phase(rehearsal, total, once)


def _whole(rehearsal: Rehearsal, first: int) -> _Phase:
    """A phase with every repetition run."""
    ones = dict.fromkeys(REPEATS, 1)
    once = rehearsal.fill(first, ones) - rehearsal.round(first, ones)
    return _phase(rehearsal, rehearsal.round(first, {}), once)


def _pieces(working: Method, rows: Rows) -> int | None:
    """How many micro-batches a step has, where they are many and of one size."""
    batch, micro_batch = (getattr(working, name, None) for name in ("batch", "micro_batch"))
    if not isinstance(batch, int) or not isinstance(micro_batch, int):
        return None
    batch = min(batch, len(rows))
    pieces = ceil(batch / micro_batch)
    return pieces if pieces > PIECES + 1 and batch % micro_batch == 0 else None


def _phase(rehearsal: Rehearsal, figures: Figures, once: Figures) -> _Phase:
    trained = trainable(rehearsal.device.model).values()
    return _Phase(
        figures,
        once,
        peak=rehearsal.peak,
        shared=rehearsal.shared,
        own=rehearsal.own,
        gradients=sum(parameter.numel() * parameter.element_size() for parameter in trained),
        message=rehearsal.message,
        sent=dict(rehearsal.sent),
        depth=_depth(rehearsal.device.model),
        trainable=sum(parameter.numel() for parameter in trained),
    )


def _cost(phases: list[_Phase], *, measured: bool = False) -> Cost:
    last = phases[-1]  # the peak is that of all phases so far
    # a device that is asked once in a stage sends something in its first round alone
    rounds = [figures for phase in phases for figures in (phase.figures, phase.figures + phase.once)]
    return Cost(
        peak_memory=last.peak + last.shared,
        shared=last.shared,
        parts={
            "shared": last.shared,
            "weights": last.own,
            "gradients": max(phase.gradients for phase in phases),
            "messages": last.message,
        },
        flops=max(phase.figures.work.flops for phase in phases),
        traffic=max(phase.figures.work.traffic for phase in phases),
        ops=max(phase.figures.work.ops for phase in phases),
        bytes_up=max(figures.up for figures in rounds),
        bytes_down=max(figures.down for figures in rounds),
        sent=last.sent,
        turns=max(figures.turns for figures in rounds),
        # the server's state is empty before the first round, so that round may also cost less than those after it
        once_flops=max(0.0, phases[0].once.work.flops),
        once_traffic=max(0.0, phases[0].once.work.traffic) if phases[0].once.work.flops > 0 else 0.0,
        depth=max(phase.depth for phase in phases),
        trainable=max(phase.trainable for phase in phases),
        measured=measured,
    )


def _depth(model: nn.Module) -> int:
    """How many blocks, counted from the output, a gradient reaches."""
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    try:
        prefixes = anatomy(model).layer_prefixes
    except FedgeError:
        return len(names)
    lowest = next((i for i, prefix in enumerate(prefixes) if any(n.startswith(prefix) for n in names)), len(prefixes))
    return len(prefixes) - lowest
