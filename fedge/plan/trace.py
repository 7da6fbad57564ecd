"""What a round of a variant costs, by running the method's own code on tensors that have shapes and no data.

A whole round is driven inline: ``init``, ``round``, ``down``, ``client``, ``update``, twice, because the first download
of most methods is empty. The device's part runs under a counter of work and of live memory; what the server allocates
is not the device's. Nothing about cost is written by a method's author.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fedge.core.cost import Cost
from fedge.core.method import Device, Method, Replies, Rows
from fedge.core.payload import Payload
from fedge.core.server import ServerOptimizer
from fedge.core.task import Task
from fedge.errors import FedgeError, MethodError
from fedge.meter.spans import NullMeter
from fedge.meter.work import Counter, Work
from fedge.models.anatomy import anatomy
from fedge.models.names import trainable
from fedge.models.share import share, storages
from fedge.models.variant import Assembled, assemble, duplicate

#: The device's name in a trace.
ONLY = "traced"
#: Local steps after which a round's further ones add only work, the same again each.
STEADY = 2
Pair = tuple[Method, Method]


@dataclass(frozen=True)
class Setting:
    """What a stage trains on: the base, the task, and the rows of a typical device and of the public set."""

    base: nn.Module
    task: Task
    rows: Rows
    public: Rows | None = None
    optimizer: ServerOptimizer = field(default_factory=ServerOptimizer)


def trace(method: Method, variant: Method, setting: Setting) -> Cost:
    """The cost of one round of ``variant`` of ``method`` on a device with ``setting.rows``.

    Local steps beyond the second add the same work again and no memory, so methods with ``steps`` are traced at one
    and at two steps and extended in a straight line. Of a method whose phases cost differently the dearest counts. A
    method that can't run on fake tensors is run for real, once, in this process (``Cost.measured``). Raises
    MethodError when it can't be run at all.
    """
    found = [_phase(method, variant, setting, first) for first in method.phases()]
    peak = max(found, key=lambda traced: traced.peak)
    return Cost(
        peak_memory=peak.peak + peak.shared,
        shared=peak.shared,
        parts={"shared": peak.shared, **peak.parts},
        flops=max(traced.work.flops for traced in found),
        traffic=max(traced.work.traffic for traced in found),
        ops=max(traced.work.ops for traced in found),
        bytes_up=max(traced.up for traced in found),
        bytes_down=max(traced.down for traced in found),
        depth=peak.depth,
        trainable=peak.trainable,
        measured=any(traced.measured for traced in found),
    )


def _phase(method: Method, variant: Method, setting: Setting, first: int) -> _Traced:
    """Rounds ``first`` and after: one to fill the server's state, then those that count."""
    steps = local_steps(variant)
    if steps is None or steps <= STEADY:
        return _run([(method, variant)] * 2, setting, first)[-1]
    one, two = ((with_steps(method, n), with_steps(variant, n)) for n in (1, STEADY))
    _, short, long = _run([one, one, two], setting, first)
    return replace(long, work=short.work + (long.work - short.work) * (steps - 1))


def local_steps(method: Method) -> int | None:
    """Optimizer steps a round of a method, or of the methods that it holds; None where there is no such number."""
    own = getattr(method, "steps", None)
    inner = [local_steps(held) for held in _held(method)]
    return max((n for n in (own, *inner) if isinstance(n, int)), default=None)


def with_steps(method: Method, steps: int) -> Method:
    """The same with another number of local steps, also in the methods that it holds."""
    changed: dict[str, Any] = {}
    for f in fields(method):
        value = getattr(method, f.name)
        if f.name == "steps" and isinstance(value, int):
            changed[f.name] = steps
        elif isinstance(value, Method):
            changed[f.name] = with_steps(value, steps)
        elif isinstance(value, tuple) and any(isinstance(item, Method) for item in value):
            changed[f.name] = tuple(with_steps(i, steps) if isinstance(i, Method) else i for i in value)
    return replace(method, **changed)


def _held(method: Method) -> list[Method]:
    values = [getattr(method, f.name) for f in fields(method)]
    nested = [item for value in values for item in (value if isinstance(value, tuple) else (value,))]
    return [item for item in nested if isinstance(item, Method)]


@dataclass
class _Traced:
    work: Work
    peak: int
    shared: int
    up: int
    down: int
    depth: int
    trainable: int
    parts: dict[str, int]
    measured: bool


def _run(rounds: Sequence[Pair], setting: Setting, first: int) -> list[_Traced]:
    try:
        skeleton = share(setting.base)  # real tensors can't be copied once the mode is on
        with FakeTensorMode():
            return _Rounds(rounds, setting, _faked(skeleton), fake=True).traced(first)
    except FedgeError:
        raise
    except Exception:
        try:
            return _Rounds(rounds, setting, setting.base, fake=False).traced(first)
        except Exception as error:
            raise MethodError(f"a round of {type(rounds[0][1]).__name__} can't be run: {error}") from error


class _Rounds:
    """Some rounds of one device, inline; ``rounds`` holds the method and the device's variant of each."""

    def __init__(self, rounds: Sequence[Pair], setting: Setting, base: nn.Module, *, fake: bool):
        self.rounds = rounds
        self.fake = fake
        self.setting = setting
        self.server = _Server(*rounds[0], base, setting, fake)
        self.device, self.shared = self._device(base)

    def _device(self, base: nn.Module) -> tuple[Device, int]:
        built = self.server.built(self.rounds[0][1])
        held = storages(base)
        shared = {
            tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes()
            for tensor in (*built.model.parameters(), *built.model.buffers())
            if tensor.untyped_storage()._cdata in held
        }
        device = Device(
            ONLY,
            built.model,
            built.initial,
            _Shaped(self.setting.rows) if self.fake else self.setting.rows,
            self.setting.task,
            NullMeter(),
            public=self.server.public,
            seed=("trace",),
        )
        return device, sum(shared.values())

    def traced(self, first: int) -> list[_Traced]:
        """Each round's figures; the peak is that of all rounds up to it."""
        device, server = self.device, self.server
        counter = Counter(memory=True, known=[*server.base().parameters(), *server.base().buffers()])
        for tensor in (*device.model.parameters(), *device.model.buffers(), *device.initial.values()):
            counter.hold(tensor)
        resident = counter.live
        trained = trainable(device.model)
        state = server.method.init(server)
        found = []
        for number, (method, variant) in enumerate(self.rounds, start=first):
            server.method, server.variants = method, {ONLY: variant}
            server.round = device.round = number
            before = counter.work
            state, down, up = self._one(counter, method, variant, state)
            found.append(
                _Traced(
                    work=counter.work - before,
                    peak=counter.peak,
                    shared=self.shared,
                    up=up,
                    down=down,
                    depth=_depth(device.model),
                    trainable=sum(p.numel() for p in trained.values()),
                    parts={
                        "weights": resident,
                        "gradients": sum(p.numel() * p.element_size() for p in trained.values()),
                        "messages": max(up, down),
                    },
                    measured=not self.fake,
                )
            )
        return found

    def _one(self, counter: Counter, method: Method, variant: Method, state: Any) -> tuple[Any, int, int]:
        """One round: the state after it, bytes down and bytes up."""
        down = up = 0
        talk = None
        turns = method.round(self.server, state)
        replies: Replies | None = None
        while True:
            try:
                ask = next(turns) if replies is None else turns.send(replies)
            except StopIteration as stop:
                return stop.value, down, up
            answers: dict[str, Payload] = {}
            if ONLY in ask.to:
                sent = ask.to[ONLY]
                down += sent.nbytes + sent.header_bytes
                answer, talk = self._answer(counter, variant, talk, sent)
                up += answer.nbytes + answer.header_bytes
                answers[ONLY] = answer
            replies = Replies(answers, {ONLY: self.server.round}, {})

    def _answer(self, counter: Counter, variant: Method, talk: Any, sent: Payload) -> tuple[Payload, Any]:
        """One turn of the device, with the message that it was sent held in its memory meanwhile."""
        message = [tensor for tree in sent.parts.values() for tensor in tree.values()]
        for tensor in message:
            counter.hold(tensor)
        with counter:
            if talk is not None:
                try:
                    return self._packed(counter, talk.send(sent)), talk
                except StopIteration as stop:
                    return self._packed(counter, stop.value), None
            started = variant.client(self.device, sent)
            if isinstance(started, Payload):
                return self._packed(counter, started), None
            return self._packed(counter, next(started)), started

    def _packed(self, counter: Counter, answer: Payload) -> Payload:
        counter.bump(answer.nbytes)
        return answer


class _Server:
    """The server of a trace: one device, no data."""

    def __init__(self, method: Method, variant: Method, base: nn.Module, setting: Setting, fake: bool):
        self.method = method
        self.cohort: tuple[str, ...] = (ONLY,)
        self.variants: Mapping[str, Method] = {ONLY: variant}
        self.waiting: frozenset[str] = frozenset()
        self.round = 0
        self.task = setting.task
        self.optimizer = setting.optimizer
        self.public: Rows | None = None
        if setting.public is not None:
            self.public = _Shaped(setting.public) if fake else setting.public
        self.meter = NullMeter()
        self._base = base

    def base(self) -> nn.Module:
        return self._base

    def copy(self) -> nn.Module:
        return duplicate(self._base)

    def model(self, variant: Method | None = None) -> nn.Module:
        return self.built(variant or self.method).model

    def built(self, variant: Method) -> Assembled:
        return assemble(variant, self._base, "trace")

    def generator(self, purpose: str) -> torch.Generator:
        return torch.Generator().manual_seed(0)


class _Shaped:
    """Rows of which only the shapes are real."""

    def __init__(self, rows: Rows):
        self._rows = rows
        self._spec = rows.spec

    def __len__(self) -> int:
        return len(self._rows)

    def batches(self, size: int, generator: torch.Generator) -> Iterator[Mapping[str, Tensor]]:
        while True:
            yield self._batch(size)

    def chunks(self, size: int) -> Iterator[Mapping[str, Tensor]]:
        for start in range(0, len(self), size):
            yield self._batch(min(size, len(self) - start))

    def take(self, indices: Tensor) -> _Shaped:
        return _Some(self._rows, len(indices))

    def _batch(self, size: int) -> Mapping[str, Tensor]:
        return {name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in self._spec(size).items()}


class _Some(_Shaped):
    """A part of such rows."""

    def __init__(self, rows: Rows, size: int):
        super().__init__(rows)
        self._size = size

    def __len__(self) -> int:
        return self._size


def _faked(model: nn.Module) -> nn.Module:
    """The same modules over fake tensors of the same shapes, in place; what was tied stays tied."""
    fakes: dict[int, Tensor] = {}

    def fake(tensor: Tensor) -> Tensor:
        if id(tensor) not in fakes:
            empty = torch.empty(tensor.shape, dtype=tensor.dtype)
            fakes[id(tensor)] = nn.Parameter(empty, False) if isinstance(tensor, nn.Parameter) else empty
        return fakes[id(tensor)]

    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    tensors[name] = fake(tensor)  # type: ignore[assignment]
    return model


def _depth(model: nn.Module) -> int:
    """How many blocks, counted from the output, a gradient reaches."""
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    inner = getattr(model, "base", model)
    try:
        parts = anatomy(inner if isinstance(inner, nn.Module) else model)
    except FedgeError:
        return len(names)
    outer = "base." if inner is not model else ""
    prefixes = [outer + prefix for prefix in parts.layer_prefixes]
    lowest = next((i for i, p in enumerate(prefixes) if any(n.startswith(p) for n in names)), len(prefixes))
    embedding = any(
        not n.startswith((*prefixes, *(outer + h for h in parts.head_prefixes), "exits.")) for n in names
    )
    return len(prefixes) + 1 if embedding and lowest == 0 else len(prefixes) - lowest
