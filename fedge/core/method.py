"""The interface of a method: a frozen dataclass of hyperparameters and a few functions of it.

A round is a conversation. The server's side is the generator ``round``: it yields an ``Ask`` and is sent ``Replies``.
The device's side is ``client``: it returns one Payload, or is a generator that yields a Payload for each further one
that it is sent. The default round asks every device of the cohort once and updates.

Three rules that resume and replay rest on:

1. At the start of a round a device's model is a function of the stage's base, of ``down`` and of ``dev.state`` alone;
   ``client`` may leave anything in ``dev.model``, it is reset before the next round.
2. A device's conversation is replayed from the payloads it had received when its process has died, so ``client`` reads
   nothing but its arguments and draws randomness only from ``dev.generator`` or torch's global state, which is set
   from (seed, stage, round, device) before each round.
3. Payload names are the base model's state-dict names; adapters use the names of peft's own files.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from fedge.core.payload import Payload, Tree
from fedge.core.server import ServerOptimizer
from fedge.core.task import Task

if TYPE_CHECKING:
    from fedge.core.fit import Batch

#: A server's or device's state: nested dicts of tensors and JSON scalars, nothing else, so that it can be saved.
State = dict[str, Any]
Talk = Generator[Payload, Payload, Payload]


@dataclass(frozen=True)
class Card:
    """What a reader must know of a method before trusting a figure that it gave."""

    name: str
    summary: str
    paper: str
    stages: tuple[str, ...]
    path: str
    leaves: tuple[str, ...]
    #: The survey's, 1 to 3: effort to build (less is better), little sent, light to compute.
    stars: tuple[int, int, int] | None = None
    deviations: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ("image-classification", "text-classification", "causal-lm", "masked-lm")
    #: Methods that a user is pointed to whose model or task this one can't do.
    alternatives: tuple[str, ...] = ()
    #: Methods of one family can share a round: 'tensors' are averaged by name with coverage.
    family: str = "own"
    #: What ``final`` gives: 'plain' is a model of the base architecture; 'extended' one onto which modules were put
    #: that its file format knows (``models.extras``), with the stage's logits; 'exits' is a MultiExit model; 'own'
    #: anything else, of which nothing more is claimed. A further stage can begin from the first two.
    final: str = "plain"
    #: The roles (``fedge.core.roles.ROLES``) of what devices send; nothing else may leave them.
    roles: tuple[str, ...] = ("delta",)
    #: How a stage's model is tested: 'logits' are what ``predict`` gives; 'neighbours' looks at the features of a model
    #: whose head nobody trained, by the labels of the nearest training rows.
    judged: str = "logits"
    #: What holds beyond the conformance kit's usual properties. 'alone': one device that has all rows ends where plain
    #: training of the same tensors ends.
    claims: tuple[str, ...] = ()
    #: Properties of the kit that can't hold for this method, each with the reason.
    waives: tuple[tuple[str, str], ...] = ()


class Abandon(Exception):
    """Raised in a method's ``round`` where too few have answered: the round ends and the state stays as it was."""


@dataclass(frozen=True)
class Ask:
    """One turn of the server.

    to: what each device gets. want: how many answers are enough (None: all). deadline: seconds of emulated time after
    which answers are late. keep: late answers arrive in a later turn instead of being dropped.
    """

    to: Mapping[str, Payload]
    want: int | None = None
    deadline: float | None = None
    keep: bool = False


class Replies(Mapping[str, Payload]):
    """The answers of one turn in device-id order, and who did not answer in time.

    Many large answers do not all lie in memory: those given as functions are read each time that they are asked for.
    So walk through them once, and keep no more of each than is needed.

    ``asked[device]`` is the round in which the question was put (earlier than the present one for a late answer);
    ``lost[device]`` is the cause for a device whose answer will not come.
    """

    def __init__(
        self,
        answers: Mapping[str, Payload | Callable[[], Payload]],
        asked: Mapping[str, int],
        lost: Mapping[str, str],
    ):
        self._answers = {device: answers[device] for device in sorted(answers)}
        self.asked = dict(asked)
        self.lost = dict(lost)

    def __getitem__(self, device: str) -> Payload:
        answer = self._answers[device]
        return answer if isinstance(answer, Payload) else answer()

    def __iter__(self) -> Iterator[str]:
        return iter(self._answers)

    def __len__(self) -> int:
        return len(self._answers)


class Rows(Protocol):
    """Examples in the form in which a model takes them (``fedge.data`` has the real one)."""

    def __len__(self) -> int: ...

    def batches(self, size: int, generator: torch.Generator) -> Iterator[Batch]:
        """Endless batches of ``min(size, len(self))`` rows, reshuffled each time that the rows are through."""
        ...

    def chunks(self, size: int) -> Iterator[Batch]:
        """All rows once, in order."""
        ...

    def take(self, indices: Tensor) -> Rows:
        """A view of some of the rows."""
        ...

    def cut(self, share: float) -> Rows:
        """A view of the beginning of each row: that share of its tokens, rounded up. Images stay whole."""
        ...

    def spec(self, size: int) -> Mapping[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and type of each tensor in a batch of ``min(size, len(self))`` rows."""
        ...


class Meter(Protocol):
    """Where a method reports what it does; costs nothing that a method must think of."""

    def span(self, name: str) -> AbstractContextManager[None]: ...

    def count(self, name: str, value: float | Tensor, unit: str = "") -> None: ...


@dataclass
class Device:
    """All that ``client`` may touch.

    model: the variant's model, reset to what ``build`` made of the stage's base. initial: the tensors that the reset
    restores, by payload name (read only; the trainable ones and nothing else). data: this device's rows. public: the
    rows that all share, or None. state: survives rounds, starts empty in every stage. round counts from 0. secrets:
    gives the device's secret, 32 bytes from the operating system that outlive its process and never leave it.
    rehearsed: the round is run to count what it costs, and nothing of value has to come of it.
    """

    name: str
    model: nn.Module
    initial: Tree
    data: Rows
    task: Task
    meter: Meter
    round: int = 0
    public: Rows | None = None
    state: State = field(default_factory=dict)
    seed: tuple[str | int, ...] = ()
    secrets: Callable[[], bytes] = field(default_factory=lambda: partial(bytes, os.urandom(32)))
    rehearsed: bool = False

    def generator(self, purpose: str) -> torch.Generator:
        """A generator for one purpose in this round on this device."""
        from fedge.core.rng import generator

        return generator(*self.seed, purpose)


class Server(Protocol):
    """All that ``init``, ``down``, ``round``, ``update``, ``predict`` and ``final`` may touch."""

    cohort: tuple[str, ...]
    waiting: frozenset[str]
    round: int
    task: Task
    optimizer: ServerOptimizer
    public: Rows | None
    meter: Meter
    rehearsed: bool

    @property
    def variants(self) -> Mapping[str, Method]:
        """What each device has picked."""
        ...

    def base(self) -> nn.Module:
        """The stage's base model, shared and never to be written."""
        ...

    def copy(self) -> nn.Module:
        """The base with memory of its own, nothing trainable; the caller's to change and keep."""
        ...

    def model(self, variant: Method | None = None) -> nn.Module:
        """A fresh model as a variant builds it (None: the method as it was written), the caller's to keep.

        It starts from the same numbers on the server and on every device.
        """
        ...

    def generator(self, purpose: str) -> torch.Generator: ...


@dataclass(frozen=True, kw_only=True)
class Method:
    """A federated method; see the module's text for the rules and CONTRIBUTING.md, 'A new method', for the parts."""

    card: ClassVar[Card]
    linear: ClassVar[bool] = False
    #: What a device downloads grows with the number of those who answered (the planner asks for it).
    gathers: ClassVar[bool] = False
    #: A round runs though nobody can be asked (where that nobody was is nobody's business).
    unasked: ClassVar[bool] = False

    def variants(self) -> Sequence[Method]:
        """This method for devices of less and less, richest first; all of them aggregate together."""
        return [self]

    def phases(self) -> Sequence[int]:
        """The rounds from which on a round costs something else than before (the planner traces each)."""
        return (0,)

    def working(self, round: int) -> Method:
        """The method whose ``client`` runs in a round: of a method that holds others, the one whose turn it is."""
        return self

    def reads(self, rows: Rows) -> Rows:
        """A device's rows as this variant sees them: whole, or of each no more than its beginning."""
        inner = self.working(0)
        return rows if inner is self else inner.reads(rows)

    def learns(self, task: Task, rows: Rows) -> Task:
        """The task as a device with these rows learns it in this variant; it is tested on the task itself."""
        inner = self.working(0)
        return task if inner is self else inner.learns(task, rows)

    def keeps(self) -> str:
        """What a device keeps the matrices in that this variant does not train: 'fp32' or 'bf16'."""
        inner = self.working(0)
        return "fp32" if inner is self else inner.keeps()

    def everyone(self) -> Sequence[Method]:
        """Variants that train, between them, all that any variant trains (the planner lets each train once)."""
        return [self]

    def build(self, base: nn.Module) -> nn.Module:
        """Make this variant's model out of a copy of the base: freeze, inject, cut or wrap.

        The copy shares its tensors with the base; those that end up trainable are given memory of their own after.
        """
        raise NotImplementedError

    def init(self, srv: Server) -> State:
        """The server's state before the first round."""
        raise NotImplementedError

    def down(self, srv: Server, state: State, device: str) -> Payload:
        """Where the global model is, as ``device`` must know it, whatever rounds it has missed."""
        raise NotImplementedError

    def client(self, dev: Device, down: Payload) -> Payload | Talk:
        """One round on a device."""
        raise NotImplementedError

    def update(self, srv: Server, state: State, replies: Replies) -> State:
        """The state after the replies that came."""
        raise NotImplementedError

    def round(self, srv: Server, state: State) -> Generator[Ask, Replies, State]:
        """One round of the server; the default asks every device of the cohort once."""
        replies = yield Ask({device: self.down(srv, state, device) for device in srv.cohort})
        return self.update(srv, state, replies) if replies else state

    def predict(self, model: nn.Module, inputs: Batch) -> Tensor:
        """The logits by which the stage is evaluated, from a model that ``final`` gave."""
        output = model(**inputs)
        logits: Tensor = output if isinstance(output, Tensor) else output.logits
        return logits

    @property
    def personalises(self) -> bool:
        """Whether devices have models of their own."""
        return type(self).personal is not Method.personal

    def personal(self, dev: Device, down: Payload) -> nn.Module | None:
        """A device's own model, where the method has one, structured as ``final``'s, for the device to test and keep.

        ``dev.model`` is as at a round's start and may be used up; ``down`` is what the device is sent after the last
        round. ``dev.state`` is read and not changed.
        """
        return None

    def final(self, srv: Server, state: State) -> nn.Module:
        """The model that the stage leaves: evaluated, saved, exported, handed to the next stage."""
        raise NotImplementedError

    def adapter(self, srv: Server, state: State) -> nn.Module | None:
        """The final model with its adapters apart, to be saved as a peft folder; None where there are none."""
        return None
