"""A device's side of a stage: picks a variant, holds its model, and carries one conversation at a time."""

from __future__ import annotations

import random
from collections.abc import Collection, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fedge.core.cost import Budget
from fedge.core.method import Device, Method, Rows, State, Talk
from fedge.core.payload import Payload
from fedge.core.rng import generator, seed_everything
from fedge.core.task import Task
from fedge.emulation.wall import is_allocation_failure
from fedge.errors import FedgeError, MethodError
from fedge.meter.spans import SpanMeter
from fedge.models.variant import Assembled, seated
from fedge.plan.choose import Choice, choose
from fedge.run.brief import Brief
from fedge.run.personal import judge_own, own_file
from fedge.run.states import load_state, save_state, secret_of, state_file


@dataclass(frozen=True)
class Ground:
    """What all devices of a process share: the frozen base, the task, and the rows of everyone."""

    base: nn.Module
    task: Task
    public: Rows | None


@dataclass
class Answer:
    """One turn's answer: the payload's bytes, the number of the device's saved state, and what the meter noted."""

    data: bytearray
    done: bool
    stateful: int | None
    noted: dict[str, dict[str, float]]


class Seat:
    """One device in one stage. Its state is saved before the last answer of a conversation leaves it."""

    def __init__(
        self,
        brief: Brief,
        ground: Ground,
        name: str,
        budget: Budget,
        rows: Rows,
        states: Path,
        meter: SpanMeter,
        tests: Rows | None = None,
    ):
        """``tests``: the rows on which the device tests a model of its own."""
        self.brief = brief
        self.ground = ground
        self.name = name
        self.budget = budget
        self.rows = rows
        self.tests = tests
        self.states = states
        self.meter = meter
        self.variant: Method | None = None
        self.state: State = {}
        self.left: State = {}  # what codecs keep for later
        self._saved: int | None = None
        self._built: Assembled | None = None
        self._task: Task | None = None
        self._device: Device | None = None
        self._talk: Talk | None = None
        self._random: tuple[torch.Tensor, Any] | None = None

    def pick(self, banned: Collection[int] = (), pinned: int | None = None) -> Choice:
        """Choose from the menu, or take the offer that was chosen before (``pinned``, after a host's death)."""
        if pinned is not None:
            choice = Choice(pinned, "as chosen before this process was started again")
        else:
            choice = choose(
                self.brief.menu, self.budget, prefer=self.brief.prefer, banned=banned, freely=self.brief.freely
            )
        self.variant = None if choice.index is None else self.brief.variants[choice.index]
        self._built = self._task = None
        return choice

    def restore(self, saved: int | None) -> None:
        """Take up the state that was saved under a number; None: start with none."""
        self._saved = saved
        both = {} if saved is None else load_state(self._file(saved))
        self.state, self.left = both.get("method", {}), both.get("codec", {})

    def answer(self, round: int, turn: int, data: bytearray | memoryview) -> Answer:
        """Take one turn of the conversation of ``round``; one that lies behind the last is the test of the own model.

        Raises MethodError, naming the device, for what the method's code raised; an allocation that was refused
        comes through as it is.
        """
        with self.meter.span("download"):
            payload = Payload.from_bytes(data)
        if round >= self.brief.rounds and self.variant is not None and self.variant.personalises:
            with self._blame("personal"), self.meter.span("test"):
                return Answer(self._test(round, payload).to_bytes(), True, self._saved, self.meter.take())
        with self._blame("client"):
            reply, done = self._turn(round, turn, payload)
            if not isinstance(reply, Payload):
                raise MethodError(f"it answered by a {type(reply).__name__}, not by a Payload")
            with self.meter.span("pack"):
                drawn = generator(*self.brief.seeds, round, self.name, "codec", turn)
                packed = self.brief.chain.encode(reply, drawn, self.left).to_bytes()
            if done and (self.state or self.left or self._saved is not None):
                # an earlier number stays: a replay or a resume begins from it
                following = 0 if self._saved is None else self._saved + 1
                save_state({"method": self.state, "codec": self.left}, self._file(following))
                self._saved = following
        return Answer(packed, done, self._saved, self.meter.take())

    def end(self) -> None:
        """Leave the conversation where it is; the next turn 0 starts a new one from the state before it."""
        unfinished = self._talk is not None
        if self._talk is not None:
            self._talk.close()
        self._talk = self._device = None
        if unfinished:
            self.restore(self._saved)

    def _test(self, round: int, payload: Payload) -> Payload:
        """Test the device's own model; its state stays as it is."""
        self.end()
        variant, device = self._open(round)
        assert self.tests is not None
        place = own_file(self.states, self.name, self.brief.index)
        answer = judge_own(variant, device, payload, self.tests, self.ground.base, place)
        self._device = None
        return answer

    def _turn(self, round: int, turn: int, payload: Payload) -> tuple[Payload, bool]:
        if turn == 0:
            self.end()
            variant, device = self._open(round)
            started = variant.client(device, payload)
            if not isinstance(started, Generator):
                return self._close(started)
            self._talk = started
            try:
                reply = next(self._talk)
            except StopIteration as stop:
                return self._close(stop.value)
        else:
            if self._talk is None:
                raise MethodError(f"turn {turn} of a conversation that is over")
            self._set_random()
            try:
                reply = self._talk.send(payload)
            except StopIteration as stop:
                return self._close(stop.value)
        self._random = (torch.get_rng_state(), random.getstate())
        return reply, False

    def _open(self, round: int) -> tuple[Method, Device]:
        if self.variant is None:
            raise MethodError("asked without having picked anything")
        if self._built is None:
            with self.meter.span("build"):
                self._built = seated(self.variant, self.ground.base, *self.brief.seeds)
        else:
            self._built.reset()
        rows = self.variant.reads(self.rows)
        if self._task is None:
            self._task = self.variant.learns(self.ground.task, rows)
        seeds = (*self.brief.seeds, round, self.name)
        self._device = Device(
            self.name,
            self._built.model,
            self._built.initial,
            rows,
            self._task,
            self.meter,
            round=round,
            public=self.ground.public,
            state=self.state,
            seed=seeds,
            secrets=partial(secret_of, self.states, self.name),
        )
        seed_everything(*seeds)
        return self.variant, self._device

    def _close(self, reply: Payload) -> tuple[Payload, bool]:
        assert self._device is not None
        self.state = self._device.state
        self._talk = None
        return reply, True

    def _set_random(self) -> None:
        # turns of other devices lie between this device's turns when they share a process
        assert self._random is not None
        torch.set_rng_state(self._random[0])
        random.setstate(self._random[1])

    @contextmanager
    def _blame(self, part: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if is_allocation_failure(error) or (isinstance(error, FedgeError) and not isinstance(error, MethodError)):
                raise
            said = error.message if isinstance(error, MethodError) else f"{type(error).__name__}: {error}"
            raise MethodError(f"{self.name}: method '{self._key}', {part}: {said}") from error

    @property
    def _key(self) -> str:
        """The picked method as the file names it."""
        indices = [offer.index for offer in self.brief.menu if self.brief.variants[offer.index] == self.variant]
        return self.brief.menu[indices[0]].method if indices else self.brief.key

    def _file(self, saved: int) -> Path:
        return state_file(self.states, self.name, self.brief.index, saved)
