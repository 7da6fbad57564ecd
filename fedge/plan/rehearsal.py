"""Rounds of one device inline, server and all, counted while they run on fake or real tensors.

The device's part runs under a counter of work and of live memory; what the server allocates is not the device's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from fedge.codecs.chain import Chain
from fedge.core.method import Ask, Device, Meter, Method, Replies, Rows, Talk
from fedge.core.payload import Cell, Payload
from fedge.core.personal import rows_at_once
from fedge.core.server import ServerOptimizer
from fedge.core.task import Task
from fedge.meter.spans import NullMeter
from fedge.meter.work import Counter, Work
from fedge.models.halved import halves
from fedge.models.names import trainable
from fedge.models.share import storage
from fedge.models.variant import Assembled, assemble, duplicate, seated
from fedge.plan.encoding import encoding
from fedge.plan.shapes import ShapedRows

#: The device whose rounds are counted.
ONLY = "traced"
Counts = Mapping[str, int]


@dataclass(frozen=True)
class Setting:
    """What a stage trains on: the base, the task, and the rows of a typical device and of the public set.

    cohort: how many devices a round asks, for methods whose messages depend on it. chain: the codecs that answers go
    through.
    """

    base: nn.Module
    task: Task
    rows: Rows
    public: Rows | None = None
    optimizer: ServerOptimizer = field(default_factory=ServerOptimizer)
    cohort: int = 1
    chain: Chain = field(default_factory=Chain)


@dataclass(frozen=True)
class Figures:
    """One round of the device: its work, bytes up and down, and how many times it was asked."""

    work: Work = field(default_factory=Work)
    up: int = 0
    down: int = 0
    turns: int = 0

    def __add__(self, other: Figures) -> Figures:
        return Figures(self.work + other.work, self.up + other.up, self.down + other.down, self.turns + other.turns)

    def __sub__(self, other: Figures) -> Figures:
        return self + other * -1

    def __mul__(self, times: int) -> Figures:
        return Figures(self.work * times, self.up * times, self.down * times, self.turns * times)


def repeated(method: Method, counts: Counts) -> Method:
    """The same with other numbers of repetitions (local steps, say), also in the methods that it holds."""
    changed: dict[str, Any] = {}
    for f in fields(method):
        value = getattr(method, f.name)
        if f.name in counts and isinstance(value, int):
            changed[f.name] = counts[f.name]
        elif isinstance(value, Method):
            changed[f.name] = repeated(value, counts)
        elif isinstance(value, tuple) and any(isinstance(item, Method) for item in value):
            changed[f.name] = tuple(repeated(i, counts) if isinstance(i, Method) else i for i in value)
    return replace(method, **changed)


class Marks(NullMeter):
    """Notes how much work was done whenever a pass backwards or an optimizer step has ended."""

    def __init__(self, counter: Counter):
        self.counter = counter
        self.passed: list[tuple[str, Work]] = []
        self._before: int | None = None
        self.kept = 0  # bytes that an optimizer's steps have left behind: its state

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        if name == "forward" and self._before is None:
            self._before = self.counter.live
        yield
        if name == "optimizer":
            self.kept = max(self.kept, self.counter.live - (self._before or 0))
            self._before = None
        if name in ("backward", "optimizer"):
            self.passed.append((name, self.counter.work))


@dataclass
class Begun:
    """A server whose state is that of a stage under way, for the variants whose server would be the same."""

    server: _Server
    state: Any


class Rehearsal:
    """A server, the device that is counted, and devices that train what it leaves out.

    peak: bytes beyond the shared weights that the device has held at once so far. shared: bytes of the base that it
    reads and never writes. own: bytes of the model that are its own. message: the largest message so far.
    sent: bytes of the largest answer so far, by role and before codecs. answers: what each answer of the counted
    device was made of.
    """

    def __init__(
        self,
        method: Method,
        variant: Method,
        setting: Setting,
        base: nn.Module,
        *,
        fake: bool,
        begun: Begun | None = None,
    ):
        """``begun``: the server of an earlier rehearsal of the same method, whose other devices have trained."""
        self.method, self.variant = method, variant
        self.server = begun.server if begun else _Server(method, base, setting, fake)
        rows: Rows = ShapedRows(setting.rows) if fake else setting.rows
        self.rows = rows
        self.built: dict[str, Assembled] = {}
        self.devices: dict[str, Device] = {}
        self._add(ONLY, variant, rows)
        # the rest of the cohort answer alike, as one device would that trains the method as it was written
        self.peers = tuple(f"peer-{n}" for n in range(1, setting.cohort)) if method.gathers else ()
        if self.peers:
            self._add(self.peers[0], method, rows)
        mine = {name for built in self.built.values() for name in trainable(built.model)}
        for number, other in enumerate(() if begun else method.everyone()):
            if not set(trainable(self.server.model(other))) <= mine:
                self._add(f"other-{number}", other, rows)
        self.device = self.devices[ONLY]
        self.shapes = [r for r in (rows, self.device.data) if isinstance(r, ShapedRows)]
        kept = [] if variant.keeps() == "fp32" else list(halves(base).values())
        self.shared = _shared(self.device.model, [*base.parameters(), *base.buffers(), *kept])
        self.counter = Counter(memory=True, known=[*base.parameters(), *base.buffers(), *kept])
        self.marks = Marks(self.counter)
        self.device.meter = self.marks
        for tensor in (*self.device.model.parameters(), *self.device.model.buffers(), *self.device.initial.values()):
            self.counter.hold(tensor)
        self.own = self.counter.live
        self.message = 0
        self.sent: dict[str, int] = {}
        self.answers: list[frozenset[Cell]] = []
        self.chain = setting.chain
        self._kept: Tensor | None = None
        self._variants: Mapping[str, Method] = {}
        self._state: Any = begun.state if begun else None
        self._talks: dict[str, Talk] = {}

    @property
    def peak(self) -> int:
        return self.counter.peak

    @property
    def begun(self) -> Begun | None:
        """What another variant's rehearsal may go on from; None where the server's state depends on the variants."""
        alike = not self.server.looked and not self.method.gathers and tuple(self.method.phases()) == (0,)
        return Begun(self.server, self._state) if alike else None

    def _add(self, name: str, variant: Method, rows: Rows) -> None:
        server = self.server
        built = self.built[name] = seated(variant, server.base(), "trace")
        read = variant.reads(rows)
        self.devices[name] = Device(
            name,
            built.model,
            built.initial,
            read,
            variant.learns(server.task, read),
            NullMeter(),
            public=server.public,
            seed=("trace",),
            rehearsed=True,
        )

    def fill(self, number: int, counts: Counts) -> Figures:
        """A round of all devices, after which the server's state is as it will be for most of the stage.

        The figures are those of the one device's first round, with one micro-batch.
        """
        return self._round(number, counts, tuple(dict.fromkeys((*self.devices, *self.peers))), 1)

    def round(self, number: int, counts: Counts, pieces: int | None = None) -> Figures:
        """A round of the one device; ``counts`` are its numbers of repetitions, ``pieces`` its micro-batches a step."""
        return self._round(number, counts, (ONLY, *self.peers), pieces)

    def _round(self, number: int, counts: Counts, cohort: tuple[str, ...], pieces: int | None) -> Figures:
        server = self.server
        method = server.method = repeated(self.method, counts)
        others = dict(zip((n for n in self.devices if n != ONLY and n not in self.peers), self._others(), strict=True))
        others |= dict.fromkeys(self.peers, self.method)
        self._variants = {n: repeated(others.get(n, self.variant), counts) for n in (*self.devices, *self.peers)}
        server.put(self._variants)
        server.cohort, server.round = cohort, number
        self.marks.passed = []
        for shapes in self.shapes:
            shapes.pieces = pieces
            shapes.micro_batch = getattr(self.variant.working(number), "micro_batch", None)
        if self._state is None:
            self._state = method.init(server)
        before, figures = self.counter.work, Figures()
        turns = method.round(server, self._state)
        try:
            ask = next(turns)
            while True:
                replies, turn = self._turn(ask)
                figures += turn
                ask = turns.send(replies)
        except StopIteration as stop:
            self._state = stop.value
        return figures + Figures(self.counter.work - before)

    def test(self) -> tuple[Work, Work, int]:
        """After the rounds: the work of taking the device's own model, that of testing it on some rows, and how many.

        Nothing where the method has none.
        """
        if not self.variant.personalises:
            return Work(), Work(), 1
        server, device = self.server, self.devices[ONLY]
        sent = self._held(server.method.down(server, self._state, ONLY))
        self.built[ONLY].reset()
        before = self.counter.work
        with self.counter:
            model = self.variant.personal(device, sent)
        taken = self.counter.work - before
        if model is None:
            return Work(), Work(), 1
        rows = min(rows_at_once(self.variant), len(self.rows))  # a test reads its rows whole
        before = self.counter.work
        with self.counter, torch.no_grad():
            self.variant.predict(model.eval(), server.task.inputs(next(iter(self.rows.chunks(rows)))))
        return taken, self.counter.work - before, rows

    def _others(self) -> Sequence[Method]:
        return [m for n, m in enumerate(self.method.everyone()) if f"other-{n}" in self.devices]

    def _turn(self, ask: Ask) -> tuple[Replies, Figures]:
        answers: dict[str, Payload] = {}
        figures = Figures()
        echo: Payload | None = None
        for name, sent in ask.to.items():
            if name in self.peers:
                echo = answers[name] = echo or self._answer(self.peers[0], sent)
                continue
            if name != ONLY:
                answers[name] = self._answer(name, sent)
                continue
            answers[name] = self._counted(sent)
            self.answers.append(answers[name].cells)
            coded = self.chain.outline(answers[name])
            down, up = (payload.nbytes + payload.header_bytes for payload in (sent, coded))
            self.message = max(self.message, down, up)
            figures = Figures(self._encode(answers[name], coded), up, down, 1)
        return Replies(answers, dict.fromkeys(answers, self.server.round), {}), figures

    def _counted(self, sent: Payload) -> Payload:
        """One turn of the device, with the message that it was sent held in its memory meanwhile."""
        sent = self._held(sent)
        with self.counter:
            return self._answer(ONLY, sent)

    def _held(self, sent: Payload) -> Payload:
        """A message in the device's memory: a copy, since what the server keeps of it is not the device's."""
        parts = {role: {name: tensor.clone() for name, tensor in tree.items()} for role, tree in sent.parts.items()}
        for tree in parts.values():
            for tensor in tree.values():
                self.counter.hold(tensor)
        return Payload(parts, sent.weight, sent.meta)

    def _encode(self, answer: Payload, coded: Payload) -> Work:
        """The work of the chain on an answer; notes the memory that it takes, and the packed answer after it."""
        for role, tree in answer.parts.items():
            size = sum(tensor.numel() * tensor.element_size() for tensor in tree.values())
            self.sent[role] = max(self.sent.get(role, 0), size)
        cost = encoding(self.chain, answer)
        if self._kept is None or len(self._kept) < cost.kept:
            self._kept = torch.empty(cost.kept, dtype=torch.uint8)
            self.counter.hold(self._kept)
        self.counter.bump(cost.peak)
        self.counter.bump(coded.nbytes)  # the packed answer lies beside the tensors that it is made of
        return cost.work

    def _answer(self, name: str, sent: Payload) -> Payload:
        try:
            if name in self._talks:
                return self._talks[name].send(sent)
            self.built[name].reset()
            self.devices[name].round = self.server.round
            started = self._variants[name].client(self.devices[name], sent)
            if isinstance(started, Payload):
                return started
            self._talks[name] = started
            return next(started)
        except StopIteration as stop:
            self._talks.pop(name, None)
            answer: Payload = stop.value
            return answer


class _Server:
    """The server of a rehearsal."""

    def __init__(self, method: Method, base: nn.Module, setting: Setting, fake: bool):
        self.method = method
        self.cohort: tuple[str, ...] = (ONLY,)
        self.looked = False
        self._variants: Mapping[str, Method] = {}
        self.waiting: frozenset[str] = frozenset()
        self.round = 0
        self.task = setting.task
        self.optimizer = setting.optimizer
        self.public: Rows | None = setting.public
        if setting.public is not None and fake:
            self.public = ShapedRows(setting.public)
        self.meter: Meter = NullMeter()
        self.rehearsed = True
        self._base = base

    @property
    def variants(self) -> Mapping[str, Method]:
        """Who trains what; ``looked`` says afterwards whether the method has asked."""
        self.looked = True
        return self._variants

    def put(self, variants: Mapping[str, Method]) -> None:
        """Say who trains what."""
        self._variants = variants

    def base(self) -> nn.Module:
        return self._base

    def copy(self) -> nn.Module:
        return duplicate(self._base)

    def model(self, variant: Method | None = None) -> nn.Module:
        return assemble(variant or self.method, self._base, "trace").model

    def generator(self, purpose: str) -> torch.Generator:
        return torch.Generator().manual_seed(0)


def _shared(model: nn.Module, common: Sequence[Tensor]) -> int:
    held = {storage(tensor) for tensor in common}
    found = {tensor.untyped_storage()._cdata: tensor for tensor in (*model.parameters(), *model.buffers())}
    return sum(tensor.untyped_storage().nbytes() for address, tensor in found.items() if address in held)
