"""A coordinator with everything around it made of a few lines: methods, devices, and a play of their events."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn

from fedge.core.cost import Budget, Cost
from fedge.core.method import Ask, Card, Method
from fedge.core.payload import Payload
from fedge.core.task import Task
from fedge.plan.choose import Choice, Offer, choose
from fedge.run.brief import Brief
from fedge.run.coordinator import Coordinator
from fedge.run.events import Answered, Died, End, Hurry, Lost, Picked, Seek, Send
from fedge.run.ledger import Account
from fedge.run.server import StageServer

MiB = 2**20
CARD = Card(name="Fake", summary="", paper="", stages=("customize",), path="", leaves=())


def number(value: float) -> Payload:
    return Payload({"scalars": {"x": torch.tensor(float(value), dtype=torch.float64)}})


def read(payload: Payload) -> float:
    return float(payload["scalars"]["x"])


@dataclass(frozen=True, kw_only=True)
class Sum(Method):
    """The state is a number; devices answer with what they make of all that they were told; the log says who came."""

    card = CARD
    turns: int = 1
    want: int | None = None
    keep: bool = False
    deadline: float | None = None
    everyone_always: bool = False

    def init(self, srv):
        return {"x": torch.tensor(1.0, dtype=torch.float64), "log": []}

    def build(self, base):
        return base

    def round(self, srv, state):
        x, log = state["x"], list(state["log"])
        asked = srv.cohort
        for turn in range(self.turns):
            to = {device: number(float(x) + turn) for device in asked}
            replies = yield Ask(to, want=self.want, keep=self.keep, deadline=self.deadline)
            for device, reply in replies.items():
                x = x * 0.9 + read(reply)
                log.append([srv.round, turn, device, replies.asked[device]])
            for device, cause in sorted(replies.lost.items()):
                log.append([srv.round, turn, device, cause])
            asked = srv.cohort if self.everyone_always else tuple(replies)
        return {"x": x, "log": log}

    def final(self, srv, state):
        return srv.copy()


def budget(memory=100 * MiB, flops=1e9, **changes) -> Budget:
    rates = {"memory_bandwidth": 1e9, "down": 1e6, "up": 1e6, "latency": 0.01, "jitter": 0.005}
    return Budget(memory=memory, flops=flops, **{**rates, **changes})


def brief(method: Method | None = None, needs=(50, 20, 5), menu=None, **changes) -> Brief:
    """A stage with an offer for each of ``needs`` (MiB), richest first, or with the ``menu`` given."""
    method = method or Sum()
    menu = menu or tuple(
        Offer(i, "sum", {"need": need}, Cost(peak_memory=need * MiB, flops=1e9, traffic=1e6, depth=100 - i, turns=1))
        for i, need in enumerate(needs)
    )
    usual = {"seed": 1, "index": 0, "stage": "customize", "key": "sum", "rounds": 3}
    return Brief(**{**usual, **changes}, method=method, variants=(method,) * len(menu), menu=menu)


def coordinator(
    told: Brief, devices=4, *, slots=2, restart=1, budgets=None, availability=1.0, stash=None, elsewhere=(), faults=None
) -> Coordinator:
    names = [f"d{i}" for i in range(devices)] if isinstance(devices, int) else list(devices)
    server = StageServer(told, nn.Linear(1, 1), Task("image-classification", 2), None)
    accounts = [
        Account(name, (budgets or {}).get(name) or budget(flops=1e9 / (i + 1)), 10, availability)
        for i, name in enumerate(names)
    ]
    beside = {"stash": stash, "elsewhere": elsewhere, "faults": faults}
    return Coordinator(told, server, accounts, slots=slots, restart=restart, **beside)


@dataclass
class Play:
    """Carries out a coordinator's instructions; ``pick`` chooses which of the waiting events comes next.

    faults[(device, round, turn)] is what happens instead of an answer, once: an event, bytes, or a payload. After an
    answer to a place in ``after`` the device's process dies. computing: the most devices that computed at once.
    """

    of: Coordinator
    pick: Callable[[int], int] = lambda n: 0
    faults: dict = field(default_factory=dict)
    after: set = field(default_factory=set)
    waiting: list = field(default_factory=list)
    told: dict = field(default_factory=dict)
    sends: list = field(default_factory=list)
    ends: list = field(default_factory=list)
    hurried: list = field(default_factory=list)
    seeks: list = field(default_factory=list)
    notes: list = field(default_factory=list)
    computing: int = 0
    now_computing: set = field(default_factory=set)

    def stage(self, rounds: int | None = None) -> Play:
        of = self.of
        self.run(of.seek_all(), lambda: of.settled)
        of.open_stage()
        return self.rounds(of.brief.rounds if rounds is None else rounds)

    def rounds(self, count: int) -> Play:
        of = self.of
        for _ in range(count):
            self.run(of.open_round(), lambda: not of.round_open and of.settled)
            of.close_round()
        return self

    def run(self, instructions, until) -> None:
        self.do(instructions)
        while not until():
            assert self.waiting, "nobody has anything to do"
            event = self.waiting.pop(self.pick(len(self.waiting)))
            if not isinstance(event, Picked):
                self.now_computing.discard(event.device)
            self.do(self.of.handle(event))
        self.notes += self.of.notes
        self.of.notes = []

    def do(self, instructions) -> None:
        for instruction in instructions:
            if isinstance(instruction, Seek):
                self._seek(instruction)
            elif isinstance(instruction, End):
                self.ends.append(instruction.device)
                self.told.pop(instruction.device, None)
            elif isinstance(instruction, Hurry):
                self.hurried.append(instruction.device)
            else:
                self._send(instruction)

    def _seek(self, seek: Seek) -> None:
        self.seeks.append(seek)
        self.told.pop(seek.device, None)
        account = self.of.accounts[seek.device]
        if seek.pinned is not None:
            choice = Choice(seek.pinned, "again")
        else:
            menu = self.of.brief.menu
            choice = choose(menu, account.budget, banned=seek.banned, freely=self.of.brief.freely)
        self.waiting.append(Picked(seek.device, choice))

    def _send(self, send: Send) -> None:
        place = (send.device, send.round, send.turn)
        self.sends.append(place)
        self.now_computing.add(send.device)
        self.computing = max(self.computing, len(self.now_computing))
        fault = self.faults.pop(place, None)
        if isinstance(fault, (Lost, Died)):
            self.waiting.append(fault)
            return
        heard = self.told.setdefault(send.device, [])
        if send.turn == 0:
            heard.clear()
        assert send.turn == len(heard), "a turn without those before it"
        heard.append(read(Payload.from_bytes(send.blob.view)))
        answer = sum(value * (i + 1) for i, value in enumerate(heard)) + int(send.device[1:])
        data = fault if isinstance(fault, bytearray) else (fault or number(answer)).to_bytes()
        method = self.of.brief.method
        done = send.turn == getattr(method, "turns", 1) - 1
        self.waiting.append(Answered(send.device, send.round, send.turn, data, done, None, peak=7))
        if place in self.after:
            self.after.discard(place)
            self.waiting.append(Died(send.device, "killed by signal 9"))

    @property
    def x(self) -> float:
        return float(self.of.state["x"])

    @property
    def log(self) -> list:
        return self.of.state["log"]

    def came(self, round: int, turn: int = 0) -> list[str]:
        return [entry[2] for entry in self.log if entry[:2] == [round, turn] and not isinstance(entry[3], str)]

    def causes(self) -> dict[str, str]:
        return {entry[2]: entry[3] for entry in self.log if isinstance(entry[3], str)}

    def noted(self, event: str) -> list[dict]:
        return [note for note in self.notes if note["event"] == event]


def play(told=None, pick=lambda n: 0, faults=None, after=(), rounds=None, **about) -> Play:
    """A stage played to its end. told: its brief; about: for ``coordinator``; the rest: for ``Play``."""
    return Play(coordinator(told or brief(), **about), pick, dict(faults or {}), set(after)).stage(rounds)


def ending(play: Play):
    """All that a stage left, for comparison: the state, the clock, and each account."""
    of = play.of
    return (
        play.x,
        play.log,
        of.now,
        {name: account.to_json() for name, account in of.accounts.items()},
        sorted(of.kept),
    )
