"""What a round of a variant costs, by running the method's own code on tensors that have shapes and no data.

A whole round is driven inline: ``init``, ``round``, ``down``, ``client``, ``update``; first once to fill the server's
state, because the first download of most methods is empty. Nothing about cost is written by a method's author.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from math import ceil

import torch
from torch import nn

from fedge.core.cost import Cost
from fedge.core.method import Method, Rows
from fedge.errors import FedgeError, MethodError
from fedge.meter.work import Counter, Work
from fedge.models.anatomy import anatomy
from fedge.models.names import trainable
from fedge.plan.fake import RememberingMode
from fedge.plan.rehearsal import Begun, Figures, Rehearsal, Setting, repeated
from fedge.plan.scratch import in_scratch
from fedge.plan.shapes import ShapedRows, faked, skeleton

__all__ = ["Setting", "Tracer", "measure", "trace"]

#: Fields that count repetitions, those whose names end in "steps" of an optimizer's. The ones beyond the second add the
#: same work again and no memory.
REPEATS = ("steps", "head_steps", "own_steps", "digest", "samples", "invert")
#: Micro-batches of a step beyond which further ones add only work: the first makes the gradients, the second adds.
PIECES = 2
#: What a process of fedge's holds beside tensors, at most (bytes) and as a share of them: pages of its ancestors' that
#: it writes to, since Python counts references in them, and what libraries keep for products of matrices. Measured were
#: 0.3 to 0.6 MiB beside 2 to 9 MiB of tensors (the quickstart), 0.2 to 8 beside 45 to 250 (``tools.planning`` and
#: ``tools.fidelity memory``, whose cases these two figures are fitted to).
PROCESS, PROCESS_SHARE = 4 << 20, 0.04


def beside(tensors: int) -> int:
    """Bytes that a process holds beside so many bytes of tensors."""
    return min(PROCESS, int(tensors * PROCESS_SHARE))


def trace(method: Method, variant: Method, setting: Setting) -> Cost:
    """The cost of one round of ``variant`` of ``method`` on a device with ``setting.rows``; see ``Tracer``."""
    return Tracer(method, setting).trace(variant)


class Tracer:
    """Traces variants of one method, whose server and its other devices are set up once where they are the same.

    Repetitions and micro-batches beyond the second are not run but added in a straight line. The server's state is
    that of a federation in which others have trained all that the method trains. Of a method whose phases cost
    differently each figure is the dearest phase's.
    """

    def __init__(self, method: Method, setting: Setting):
        self.method = method
        self.setting = setting
        self._mode: RememberingMode | None = None
        self._base: nn.Module | None = None
        self._begun: Begun | None = None
        self._known: dict[str, tuple[int, Cost, Work, Work]] = {}  # of variants but for their steps

    def trace(self, variant: Method) -> Cost:
        """The cost of a round. A method that can't run on fake tensors is run for real, once, in a process
        of its own (``Cost.measured``). Raises MethodError when it can't be run at all.
        """
        try:
            return self._told(variant) or self._traced(variant)
        except FedgeError:
            raise
        except Exception as error:
            if any(parameter.is_meta for parameter in self.setting.base.parameters()):
                name = type(variant).__name__
                message = f"{name} can't be traced: {error}; and there are no weights to run it with"
                raise MethodError(message) from error
            return in_scratch(partial(measure, self.method, variant, self.setting))

    def _traced(self, variant: Method) -> Cost:
        apart = skeleton(self.setting.base) if self._base is None else None
        self._mode = self._mode or RememberingMode()
        with silent(), self._mode:
            if apart is not None:
                self._base = faked(apart)
            assert self._base is not None
            rehearsal = Rehearsal(self.method, variant, self.setting, self._base, fake=True, begun=self._begun)
            phases = [_extended(rehearsal, self.setting.rows, first) for first in self.method.phases()]
            self._begun = rehearsal.begun
            cost = _cost(phases, rehearsal)
        steps = getattr(variant.working(0), "steps", 0)
        if len(phases) == 1 and phases[0].further is not None and steps >= 2:
            work = phases[0].figures.work
            self._known[but_steps(variant)] = (steps, cost, work, phases[0].further.work)
        return cost

    def _told(self, variant: Method) -> Cost | None:
        """The cost by that of the same with other steps: work grows in a straight line, nothing else does."""
        steps = getattr(variant.working(0), "steps", 0)
        if steps < 2 or (known := self._known.get(but_steps(variant))) is None:
            return None
        before, cost, work, further = known
        work += further * (steps - before)
        return replace(cost, flops=work.flops, traffic=work.traffic, ops=work.ops, kinds=work.shares)


def but_steps(variant: Method) -> str:
    """The same for variants whose costs are told from one trace."""
    return repr(repeated(variant, {"steps": 2}))


def inference(setting: Setting) -> Cost:
    """The cost of answering a row at a time, by one forward pass of the base without gradients.

    Raises MethodError where the model can't be traced.
    """
    apart = skeleton(setting.base)
    try:
        with silent(), RememberingMode(), torch.no_grad():
            base = faked(apart).eval()
            held = [*base.parameters(), *base.buffers()]
            counter = Counter(memory=True, known=held)
            row = next(iter(ShapedRows(setting.rows).chunks(1)))
            with counter:
                base(**setting.task.inputs(row))
            shared = sum(tensor.untyped_storage().nbytes() for tensor in {id(t): t for t in held}.values())
    except Exception as error:
        raise MethodError(f"a forward pass can't be traced: {error}") from error
    work = counter.work
    parts = {"shared": shared, "process": beside(counter.peak + shared)}
    return Cost(
        counter.peak + sum(parts.values()), shared, parts, work.flops, work.traffic, work.ops, kinds=work.shares
    )


@contextmanager
def silent() -> Iterator[None]:
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
        return _cost([_whole(rehearsal, first) for first in method.phases()], rehearsal, measured=True)
    except FedgeError:
        raise
    except Exception as error:
        raise MethodError(f"a round of {type(method).__name__} can't be run: {error}") from error


@dataclass
class _Phase:
    figures: Figures
    once: Figures
    further: Figures | None  # a further step
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
    begun = rehearsal.fill(first, dict.fromkeys(counts, 1))
    if set(counts) == {"steps"}:
        found = _by_marks(rehearsal, first, counts["steps"], pieces, begun)
        if found is not None:
            return _phase(rehearsal, *found)
    return _by_rounds(rehearsal, first, counts, pieces, begun)


def _by_marks(
    rehearsal: Rehearsal, first: int, steps: int, pieces: int | None, begun: Figures
) -> tuple[Figures, Figures, Figures] | None:
    """A whole round, what its first one costs beyond, and a further step, from one run of two steps and its marks.

    None where the marks don't tell: the method has a loop of its own, or its steps don't follow ``steps``.
    """
    loops = sum(name == "optimizer" for name, _ in rehearsal.marks.passed)
    run = min(2, steps)
    figures = rehearsal.round(first, {"steps": run}, PIECES if pieces else None)
    passes: list[list[Work]] = [[]]
    ends: list[Work] = []
    for name, work in rehearsal.marks.passed:
        if name == "backward":
            passes[-1].append(work)
        else:
            ends.append(work)
            passes.append([])
    if not loops or len(ends) != run * loops or passes.pop() or not all(passes):
        return None
    firsts = range(0, len(ends), run)
    step, later = Work(), Work()  # a further step, and its passes backwards after the first
    ahead = Work()  # the same passes of the first step
    for at in firsts:
        ahead += passes[at][-1] - passes[at][0]
        if run == 2:
            step += ends[at + 1] - ends[at]
            later += passes[at + 1][-1] - passes[at + 1][0]
    once = begun - (figures - Figures(step) - Figures(ahead))
    total = figures + Figures(step * max(0, steps - 2))
    further = step
    if pieces and not all(len(found) == pieces for found in passes):  # else all of them were run
        if not all(len(found) == PIECES for found in passes):
            return None
        total += Figures((ahead + later * (steps - 1)) * (pieces - PIECES))
        further += later * (pieces - PIECES)
    return total, once, Figures(further)


def _by_rounds(rehearsal: Rehearsal, first: int, counts: dict[str, int], pieces: int | None, begun: Figures) -> _Phase:
    """A phase from the differences between rounds of other numbers of repetitions.

    A further repetition costs something of its own, and something for each of its micro-batches; where several fields
    count steps, each has its own share of what one more micro-batch costs a round.
    """
    few = PIECES if pieces else None
    beyond = pieces - PIECES if pieces else 0
    now = dict.fromkeys(counts, 1)
    once = begun - rehearsal.round(first, now, 1)
    total = last = rehearsal.round(first, now, few)
    stepping = [name for name in counts if name.endswith("steps")] if pieces else []
    piece = rehearsal.round(first, now, PIECES + 1) - last if pieces else Figures()
    total += piece * beyond
    left = piece  # what the steps that were not yet looked at have of it
    for name, count in counts.items():
        if count == 1 and name not in stepping[:-1]:
            continue
        now[name] = 2
        more = rehearsal.round(first, now, few)
        total += (more - last) * (count - 1)
        if name in stepping:
            own = left
            if name != stepping[-1]:
                own = rehearsal.round(first, now, PIECES + 1) - more - piece
                piece, left = piece + own, left - own
            total += own * (beyond * (count - 1))
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


def _phase(rehearsal: Rehearsal, figures: Figures, once: Figures, further: Figures | None = None) -> _Phase:
    trained = trainable(rehearsal.device.model).values()
    return _Phase(
        figures,
        once,
        further,
        shared=rehearsal.shared,
        own=rehearsal.own,
        gradients=sum(parameter.numel() * parameter.element_size() for parameter in trained),
        message=rehearsal.message,
        sent=dict(rehearsal.sent),
        depth=_depth(rehearsal.device.model),
        trainable=sum(parameter.numel() for parameter in trained),
    )


def _cost(phases: list[_Phase], rehearsal: Rehearsal, *, measured: bool = False) -> Cost:
    last = phases[-1]
    taken, tested, rows = rehearsal.test()
    parts = {
        "shared": last.shared,
        "weights": last.own,
        "gradients": max(phase.gradients for phase in phases),
        "optimizer": rehearsal.marks.kept,
        "messages": last.message,
        "process": beside(rehearsal.peak + last.shared),
    }
    peak = rehearsal.peak + last.shared + parts["process"]
    # what is left of the peak; messages need not be there when it is reached, so this is the least of activations
    parts["activations"] = max(0, peak - sum(parts.values()))
    # a device that is asked once in a stage sends something in its first round alone
    rounds = [figures for phase in phases for figures in (phase.figures, phase.figures + phase.once)]
    return Cost(
        peak_memory=peak,  # that of all phases and of the test
        shared=last.shared,
        parts=parts,
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
        own_flops=taken.flops,
        own_traffic=taken.traffic,
        own_ops=taken.ops,
        row_flops=tested.flops / rows,
        row_traffic=tested.traffic / rows,
        row_ops=tested.ops / rows,
        measured=measured,
        kinds=max((phase.figures.work for phase in phases), key=lambda work: work.flops).shares,
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
