"""Rounds of a method in one process: every payload becomes bytes and is read again, nothing else is emulated."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from fedge.core.method import Ask, Device, Meter, Method, Replies, Rows, State, Talk
from fedge.core.payload import Payload
from fedge.core.rng import generator, seed_everything
from fedge.core.server import ServerOptimizer
from fedge.core.task import Task
from fedge.meter.spans import NullMeter
from fedge.models.variant import Assembled, assemble, duplicate

#: Says, for a round, a turn and the devices whose answers are under way, in which order these arrive.
Order = Callable[[int, int, Sequence[str]], Sequence[str]]


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
    """What rounds left: the server and its state, the devices, and the bytes of every payload by round and device."""

    server: Bench
    state: State
    devices: dict[str, Device]
    built: dict[str, Assembled]
    down: list[dict[str, int]] = field(default_factory=list)
    up: list[dict[str, int]] = field(default_factory=list)
    sent: list[dict[str, list[Payload]]] = field(default_factory=list)

    def final(self) -> nn.Module:
        """The model that the stage leaves."""
        return self.server.method.final(self.server, self.state)

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
    lost: Mapping[tuple[int, int], Sequence[str]] | None = None,
    order: Order | None = None,
    seed: int = 0,
) -> Driven:
    """Run ``rounds`` rounds of ``method`` on devices that hold ``rows``.

    absent: devices that a round's cohort lacks. lost: devices that die at (round, turn), before they answer. order:
    how answers arrive, which decides who is late when a method asks for fewer answers than devices.
    """
    chosen = {device: (variants or {}).get(device, method) for device in rows}
    server = Bench(method, base, task, chosen, optimizer or ServerOptimizer(), public, (seed, "stage", 0))
    built = {device: assemble(variant, base, *server.seed) for device, variant in chosen.items()}
    devices = {
        name: Device(name, built[name].model, built[name].initial, rows[name], task, NullMeter(), public=public)
        for name in rows
    }
    driven = Driven(server, method.init(server), devices, built)
    late: dict[str, tuple[int, Payload]] = {}
    for number in range(rounds):
        server.round, server.waiting = number, frozenset(late)
        server.cohort = tuple(name for name in sorted(rows) if name not in (absent or {}).get(number, ()))
        _Round(driven, number, lost or {}, order or (lambda round, turn, names: names), late).run()
    return driven


class _Round:
    def __init__(self, driven: Driven, number: int, lost: Any, order: Order, late: dict[str, tuple[int, Payload]]):
        self.driven, self.number, self.lost, self.order, self.late = driven, number, lost, order, late
        self.talks: dict[str, Talk] = {}
        self.random: dict[str, torch.Tensor] = {}
        for record in (driven.down, driven.up, driven.sent):
            record.append({})

    def run(self) -> None:
        turns = self.driven.server.method.round(self.driven.server, self.driven.state)
        replies: Replies | None = None
        turn = 0
        try:
            while True:
                replies = self._turn(next(turns) if replies is None else turns.send(replies), turn)
                turn += 1
        except StopIteration as stop:
            self.driven.state = stop.value

    def _turn(self, ask: Ask, turn: int) -> Replies:
        gone = {name: "died" for name in ask.to if name in self.lost.get((self.number, turn), ())}
        fresh = {n: (self.number, self._answer(n, sent, turn)) for n, sent in ask.to.items() if n not in gone}
        under_way = {**self.late, **fresh} if ask.keep else fresh
        arriving = list(self.order(self.number, turn, sorted(under_way)))
        came = arriving[: len(arriving) if ask.want is None else ask.want]
        if ask.keep:
            self.late.clear()
            self.late.update({name: under_way[name] for name in arriving if name not in came})
        answers = {name: under_way[name][1] for name in came}
        return Replies(answers, {name: under_way[name][0] for name in came}, gone)

    def _answer(self, name: str, sent: Payload, turn: int) -> Payload:
        driven, data = self.driven, sent.to_bytes()
        device = driven.devices[name]
        payload = Payload.from_bytes(data)
        if turn == 0:
            driven.built[name].reset()
            device.round, device.seed = self.number, (*driven.server.seed, self.number, name)
            seed_everything(*device.seed)
        elif name in self.random:
            torch.set_rng_state(self.random[name])
        answer = self._next(name, device, payload)
        self.random[name] = torch.get_rng_state()
        packed = answer.to_bytes()
        down, up, kept = driven.down[-1], driven.up[-1], driven.sent[-1]
        down[name] = down.get(name, 0) + len(data)
        up[name] = up.get(name, 0) + len(packed)
        read = Payload.from_bytes(packed)
        kept.setdefault(name, []).append(read)
        return read

    def _next(self, name: str, device: Device, payload: Payload) -> Payload:
        talk = self.talks.get(name)
        try:
            if talk is not None:
                return talk.send(payload)
            started = self.driven.server.variants[name].client(device, payload)
            if isinstance(started, Payload):
                return started
            self.talks[name] = started
            return next(started)
        except StopIteration as stop:
            self.talks.pop(name, None)
            return stop.value
