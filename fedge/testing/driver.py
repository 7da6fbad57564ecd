"""Rounds of a method in one process: every payload becomes bytes and is read again, nothing else is emulated."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from fedge.core.method import Abandon, Ask, Device, Meter, Method, Replies, Rows, State, Talk
from fedge.core.payload import Payload, pack, unpack
from fedge.core.rng import generator, seed_everything
from fedge.core.server import ServerOptimizer
from fedge.core.task import Task
from fedge.errors import MethodError
from fedge.meter.spans import NullMeter
from fedge.methods.make import describe
from fedge.methods.make import revive as revive_method
from fedge.models.variant import Assembled, assemble, duplicate, seated
from fedge.run.states import flatten, revive

#: Says, for a round, a turn and the devices whose answers are under way, in which order these arrive.
Order = Callable[[int, int, Sequence[str]], Sequence[str]]
#: Devices by (round, turn).
Places = Mapping[tuple[int, int], Sequence[str]]
#: Turns that no round has.
TURNS = 10_000


@dataclass
class Bench:
    """The server of a driven method; fulfils ``fedge.core.method.Server``."""

    method: Method
    stage_base: nn.Module
    task: Task
    variants: Mapping[str, Method]
    optimizer: ServerOptimizer = field(default_factory=ServerOptimizer)
    public: Rows | None = None
    seed: tuple[str | int, ...] = (0, "stage", 0)
    cohort: tuple[str, ...] = ()
    waiting: frozenset[str] = frozenset()
    round: int = 0
    meter: Meter = field(default_factory=NullMeter)
    rehearsed: bool = False

    def base(self) -> nn.Module:
        return self.stage_base

    def copy(self) -> nn.Module:
        return duplicate(self.stage_base)

    def model(self, variant: Method | None = None) -> nn.Module:
        return assemble(variant or self.method, self.stage_base, *self.seed).model

    def generator(self, purpose: str) -> torch.Generator:
        return generator(*self.seed, self.round, "server", purpose)


@dataclass
class Driven:
    """What rounds left: the server and its state, the devices, and the bytes of every payload by round and device.

    sent: every answer, as the server read it. hurried: a turn wanted fewer answers than were under way, so that the
    order of arrival had a say. late: answers that a later turn takes, with the round of their question. turns: those
    after which a round is taken to have no end. rows: each device's, of which its variant may see less.
    """

    server: Bench
    state: State
    devices: dict[str, Device]
    built: dict[str, Assembled]
    down: list[dict[str, int]] = field(default_factory=list)
    up: list[dict[str, int]] = field(default_factory=list)
    sent: list[dict[str, list[Payload]]] = field(default_factory=list)
    hurried: bool = False
    late: dict[str, tuple[int, Payload]] = field(default_factory=dict)
    turns: int = TURNS
    rows: Mapping[str, Rows] = field(default_factory=dict)

    def go(
        self,
        rounds: int = 1,
        *,
        absent: Mapping[int, Sequence[str]] | None = None,
        lost: Places | None = None,
        replaced: Places | None = None,
        order: Order | None = None,
        computed: Order | None = None,
    ) -> Driven:
        """Run further rounds; returns itself.

        absent: devices that a round's cohort lacks. lost: devices that die at (round, turn), before they answer, and
        are gone until the round's end. replaced: devices whose process dies there and is replaced by a new one, to
        which the conversation is told again. order: how answers arrive, which decides who is late when a method asks
        for fewer answers than devices. computed: in which order devices compute, of which nothing may depend.
        """
        as_named: Order = lambda round, turn, names: names  # noqa: E731
        for number in range(len(self.sent), len(self.sent) + rounds):
            self.server.round, self.server.waiting = number, frozenset(self.late)
            away = (absent or {}).get(number, ())
            self.server.cohort = tuple(name for name in sorted(self.devices) if name not in away)
            _Round(self, number, lost or {}, replaced or {}, order or as_named, computed or as_named).run()
        return self

    def again(self) -> Driven:
        """The same federation taken up by other processes: the method by way of JSON, all states by way of bytes."""

        def other(method: Method) -> Method:
            return revive_method(json.loads(json.dumps(describe(method))))

        server = self.server
        variants = {name: other(variant) for name, variant in server.variants.items()}
        fresh = replace(server, method=other(server.method), variants=variants)
        driven = _driven(fresh, self.rows)
        driven.state = saved(self.state)
        for name, device in self.devices.items():
            driven.devices[name].state = saved(device.state)
        driven.late = {n: (asked, Payload.from_bytes(p.to_bytes())) for n, (asked, p) in self.late.items()}
        driven.down, driven.up, driven.sent = list(self.down), list(self.up), list(self.sent)
        driven.turns = self.turns
        return driven

    def final(self) -> nn.Module:
        """The model that the stage leaves."""
        return self.server.method.final(self.server, self.state)

    def personal(self, device: str) -> nn.Module | None:
        """A device's own model after the present state, as the device would test it; None where it has none."""
        server, mine = self.server, self.devices[device]
        self.built[device].reset()
        down = Payload.from_bytes(server.method.down(server, self.state, device).to_bytes())
        mine.round, mine.seed = len(self.sent), (*server.seed, len(self.sent), device)
        seed_everything(*mine.seed)
        return server.variants[device].personal(mine, down)

    def synced(self, device: str) -> nn.Module:
        """A device's model as it is once it has downloaded the present state (for methods that tune tensors)."""
        from fedge.methods.tuning import Tuning, enter

        self.built[device].reset()
        down = Payload.from_bytes(self.server.method.down(self.server, self.state, device).to_bytes())
        variant = self.server.variants[device]
        if isinstance(variant, Tuning):
            variant.enter(self.devices[device], down)
        else:
            enter(self.devices[device], down["weights"])
        return self.devices[device].model


def start(
    method: Method,
    base: nn.Module,
    rows: Mapping[str, Rows],
    task: Task,
    *,
    variants: Mapping[str, Method] | None = None,
    optimizer: ServerOptimizer | None = None,
    public: Rows | None = None,
    seed: int = 0,
) -> Driven:
    """A federation of devices that hold ``rows``, before its first round."""
    chosen = {device: (variants or {}).get(device, method) for device in rows}
    server = Bench(method, base, task, chosen, optimizer or ServerOptimizer(), public, (seed, "stage", 0))
    driven = _driven(server, rows)
    driven.state = method.init(server)
    return driven


def drive(
    method: Method,
    base: nn.Module,
    rows: Mapping[str, Rows],
    task: Task,
    rounds: int = 1,
    *,
    variants: Mapping[str, Method] | None = None,
    optimizer: ServerOptimizer | None = None,
    public: Rows | None = None,
    absent: Mapping[int, Sequence[str]] | None = None,
    lost: Places | None = None,
    order: Order | None = None,
    seed: int = 0,
) -> Driven:
    """``start`` and ``go`` in one."""
    begun = start(method, base, rows, task, variants=variants, optimizer=optimizer, public=public, seed=seed)
    return begun.go(rounds, absent=absent, lost=lost, order=order)


def saved(state: State) -> State:
    """A state as it is read back from the bytes of its file. MethodError for what can't be saved."""
    tensors, text = flatten(state)
    return revive(unpack(pack(tensors))[0], text)


def _driven(server: Bench, rows: Mapping[str, Rows]) -> Driven:
    built = {device: seated(variant, server.base(), *server.seed) for device, variant in server.variants.items()}
    read = {name: server.variants[name].reads(own) for name, own in rows.items()}
    devices = {name: _device(server, name, built[name], read[name]) for name in rows}
    return Driven(server, {}, devices, built, rows=dict(rows))


def _device(server: Bench, name: str, built: Assembled, rows: Rows) -> Device:
    task = server.variants[name].learns(server.task, rows)
    return Device(name, built.model, built.initial, rows, task, NullMeter(), public=server.public)


class _Round:
    def __init__(self, driven: Driven, number: int, lost: Places, replaced: Places, order: Order, computed: Order):
        self.driven, self.number, self.lost, self.replaced = driven, number, lost, replaced
        self.order, self.computed = order, computed
        self.talks: dict[str, Talk] = {}
        self.random: dict[str, Any] = {}
        self.received: dict[str, list[bytearray]] = {}
        self.before: dict[str, State] = {}
        self.gone: dict[str, str] = {}
        for record in (driven.down, driven.up, driven.sent):
            record.append({})

    def run(self) -> None:
        turns = self.driven.server.method.round(self.driven.server, self.driven.state)
        replies: Replies | None = None
        try:
            for turn in range(self.driven.turns):
                replies = self._turn(next(turns) if replies is None else turns.send(replies), turn)
        except StopIteration as stop:
            self.driven.state = stop.value
            return
        except Abandon:
            return
        raise MethodError(f"round {self.number} did not end within {self.driven.turns} turns")

    def _turn(self, ask: Ask, turn: int) -> Replies:
        self.gone |= {name: "died" for name in ask.to if name in self.lost.get((self.number, turn), ())}
        gone = {name: why for name, why in self.gone.items() if name in ask.to}
        alive = self.computed(self.number, turn, sorted(set(ask.to) - set(gone)))
        fresh = {name: (self.number, self._answer(name, ask.to[name], turn)) for name in alive}
        under_way = {**self.driven.late, **fresh} if ask.keep else fresh
        arriving = list(self.order(self.number, turn, sorted(under_way)))
        came = arriving[: len(arriving) if ask.want is None else ask.want]
        self.driven.hurried |= len(came) < len(arriving)
        if ask.keep:
            self.driven.late = {name: under_way[name] for name in arriving if name not in came}
        answers = {name: under_way[name][1] for name in came}
        return Replies(answers, {name: under_way[name][0] for name in came}, gone)

    def _answer(self, name: str, sent: Payload, turn: int) -> Payload:
        driven, data = self.driven, sent.to_bytes()
        if name not in self.talks:
            self.received[name], self.before[name] = [], saved(driven.devices[name].state)
        self.received[name].append(data)
        if name in self.replaced.get((self.number, turn), ()):
            answer = self._told_again(name)
        else:
            answer = self._spoken(name, data)
        packed = answer.to_bytes()
        down, up, kept = driven.down[-1], driven.up[-1], driven.sent[-1]
        down[name] = down.get(name, 0) + len(data)
        up[name] = up.get(name, 0) + len(packed)
        read = Payload.from_bytes(packed)
        kept.setdefault(name, []).append(read)
        return read

    def _told_again(self, name: str) -> Payload:
        """The answer of a new process, which is told all that the one before it had been told in this round."""
        driven = self.driven
        self.talks.pop(name, None)
        built = driven.built[name] = seated(driven.server.variants[name], driven.server.base(), *driven.server.seed)
        before = driven.devices[name]
        driven.devices[name] = _device(driven.server, name, built, before.data)
        driven.devices[name].secrets = before.secrets
        driven.devices[name].state = self.before[name]
        return [self._spoken(name, data) for data in self.received[name]][-1]

    def _spoken(self, name: str, data: bytearray) -> Payload:
        driven = self.driven
        device = driven.devices[name]
        if name not in self.talks:  # a conversation begins
            driven.built[name].reset()
            device.round, device.seed = self.number, (*driven.server.seed, self.number, name)
            seed_everything(*device.seed)
        else:
            mine, pythons = self.random[name]
            torch.set_rng_state(mine)
            random.setstate(pythons)
        answer = self._next(name, device, Payload.from_bytes(bytearray(data)))
        self.random[name] = (torch.get_rng_state(), random.getstate())
        if not isinstance(answer, Payload):
            raise MethodError(f"{name} answered by a {type(answer).__name__}, not by a Payload")
        return answer

    def _next(self, name: str, device: Device, payload: Payload) -> Payload:
        talk = self.talks.get(name)
        try:
            if talk is not None:
                return talk.send(payload)
            started = self.driven.server.variants[name].client(device, payload)
            if not isinstance(started, Generator):
                return started
            self.talks[name] = started
            return next(started)
        except StopIteration as stop:
            self.talks.pop(name, None)
            answer: Payload = stop.value
            return answer
