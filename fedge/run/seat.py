"""A device's side of a stage: picks a variant, holds its model, and carries one conversation at a time."""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fedge.core.cost import Budget
from fedge.core.method import Device, Method, Rows, State, Talk
from fedge.core.payload import Payload
from fedge.core.rng import seed_everything
from fedge.core.task import Task
from fedge.errors import FedgeError, MethodError
from fedge.meter.spans import SpanMeter
from fedge.models.variant import Assembled, assemble
from fedge.plan.choose import Choice, choose
from fedge.run.brief import Brief
from fedge.run.states import load_state, save_state


@dataclass(frozen=True)
class Ground:
    """What all devices of a process share: the frozen base, the task, and the rows of everyone."""

    base: nn.Module
    task: Task
    public: Rows | None


@dataclass
class Answer:
    """One turn's answer: the payload's bytes, whether the device keeps a state, and what the meter noted."""

    data: bytearray
    done: bool
    stateful: bool
    noted: dict[str, dict[str, float]]


class Seat:
    """One device in one stage. Its state is saved before its last answer of a round leaves it."""

    def __init__(
        self, brief: Brief, ground: Ground, name: str, budget: Budget, rows: Rows, states: Path | None, meter: SpanMeter
    ):
        self.brief = brief
        self.ground = ground
        self.name = name
        self.budget = budget
        self.rows = rows
        self.states = states
        self.meter = meter
        self.variant: Method | None = None
        self.state: State = {}
        self._built: Assembled | None = None
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
        self._built = None
        return choice

    def restore(self, round: int | None) -> None:
        """Take up the state that was saved in ``round``; None: start with none."""
        self.state = {} if round is None or self.states is None else load_state(self._file(round))

    def answer(self, round: int, turn: int, data: bytes | bytearray) -> Answer:
        """Take one turn of the conversation of ``round``. Raises MethodError for what the method's code raised."""
        with self.meter.span("download"):
            payload = Payload.from_bytes(data)
        try:
            reply, done = self._turn(round, turn, payload)
        except (FedgeError, MemoryError):
            raise
        except RuntimeError:
            raise  # an allocation that the wall refused comes as one; the caller tells them apart
        except Exception as error:
            raise MethodError(f"{self.name}: {type(self.variant).__name__}.client: {error}") from error
        if done and self.state and self.states is not None:
            save_state(self.state, self._file(round))
            self._file(round - 2).unlink(missing_ok=True)
        with self.meter.span("pack"):
            packed = reply.to_bytes()
        return Answer(packed, done, bool(self.state), self.meter.take())

    def end(self) -> None:
        """Leave the conversation where it is; the next turn 0 starts a new one."""
        if self._talk is not None:
            self._talk.close()
        self._talk = self._device = None

    def _turn(self, round: int, turn: int, payload: Payload) -> tuple[Payload, bool]:
        if turn == 0:
            self.end()
            self._open(round)
            assert self.variant is not None and self._device is not None
            started = self.variant.client(self._device, payload)
            if isinstance(started, Payload):
                return self._close(started)
            self._talk = started
            reply = next(self._talk)
        else:
            if self._talk is None:
                raise MethodError(f"{self.name}: turn {turn} of a conversation that is over")
            self._set_random()
            try:
                reply = self._talk.send(payload)
            except StopIteration as stop:
                return self._close(stop.value)
        self._random = (torch.get_rng_state(), random.getstate())
        return reply, False

    def _open(self, round: int) -> None:
        if self.variant is None:
            raise MethodError(f"{self.name} was asked without having picked anything")
        if self._built is None:
            with self.meter.span("build"):
                self._built = assemble(self.variant, self.ground.base, *self.brief.seeds)
        else:
            self._built.reset()
        seeds = (*self.brief.seeds, round, self.name)
        self._device = Device(
            self.name,
            self._built.model,
            self._built.initial,
            self.rows,
            self.ground.task,
            self.meter,
            round=round,
            public=self.ground.public,
            state=self.state,
            seed=seeds,
        )
        seed_everything(*seeds)

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

    def _file(self, round: int) -> Path:
        assert self.states is not None
        return self.states / f"{self.name}.{self.brief.index}.{round}.state"
