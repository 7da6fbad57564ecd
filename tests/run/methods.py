"""Methods that do what real ones rarely do; federations name them as ``tests.run.methods:Name``."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from fedge.core.method import Ask, Device, Method, Replies, Server, State, Talk
from fedge.core.payload import Payload
from fedge.methods.customize.bitfit import BitFit
from fedge.methods.customize.ditto import Ditto
from fedge.methods.customize.fedper import FedPer
from fedge.methods.customize.fedsa_lora import FedSALoRA


@dataclass(frozen=True, kw_only=True)
class Alone(BitFit):
    """BitFit without variants, so that its plan is one trace."""

    def variants(self) -> Sequence[Method]:
        return [self]


@dataclass(frozen=True, kw_only=True)
class Remembers(Alone):
    """Adds noise to what it sends, and sends a running mean that it keeps in the device's state."""

    def client(self, dev: Device, down: Payload) -> Payload:
        reply = super().client(dev, down)
        assert isinstance(reply, Payload)
        mean = dev.state.setdefault("mean", {})
        for name, delta in reply["delta"].items():
            delta += 1e-3 * torch.randn_like(delta)
            if name in mean:
                mean[name].mul_(0.5).add_(delta, alpha=0.5)
            else:
                mean[name] = delta.clone()
        dev.state["rounds"] = dev.state.get("rounds", 0) + 1
        return Payload({"delta": {name: tensor.clone() for name, tensor in mean.items()}}, weight=reply.weight)


@dataclass(frozen=True, kw_only=True)
class Chats(Alone):
    """Three turns: noise up, noise back, noise up, more noise back, and then the change that all of it has spoilt."""

    def client(self, dev: Device, down: Payload) -> Talk:
        dev.state.setdefault("heard", torch.zeros(()))
        for _ in range(2):
            told = yield Payload({"scalars": {"noise": torch.rand(())}})
            dev.state["heard"] += told["scalars"]["noise"]
        reply = super().client(dev, down)
        assert isinstance(reply, Payload)
        for delta in reply["delta"].values():
            delta += 1e-3 * dev.state["heard"] * torch.rand_like(delta)
        return reply

    def round(self, srv: Server, state: State) -> Generator[Ask, Replies, State]:
        replies = yield Ask({device: self.down(srv, state, device) for device in srv.cohort})
        for _ in range(2):
            total = sum(reply["scalars"]["noise"] for reply in replies.values())
            replies = yield Ask({d: Payload({"scalars": {"noise": total + torch.rand(())}}) for d in replies})
        return self.update(srv, state, replies)


@dataclass(frozen=True, kw_only=True)
class Breaks(Alone):
    """Raises on phone-01."""

    def client(self, dev: Device, down: Payload) -> Payload:
        if dev.name == "phone-01":
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied (4x3 and 5x6)")
        reply = super().client(dev, down)
        assert isinstance(reply, Payload)
        return reply


@dataclass(frozen=True, kw_only=True)
class Diverges(Alone):
    """phone-01 answers by what is not a number."""

    def client(self, dev: Device, down: Payload) -> Payload:
        reply = super().client(dev, down)
        assert isinstance(reply, Payload)
        if dev.name == "phone-01":
            for delta in reply["delta"].values():
                delta.fill_(float("nan"))
        return reply


@dataclass(frozen=True, kw_only=True)
class LoneDitto(Ditto):
    """Ditto without variants."""

    def variants(self) -> Sequence[Method]:
        return [self]


@dataclass(frozen=True, kw_only=True)
class LonePer(FedPer):
    """FedPer without variants."""

    def variants(self) -> Sequence[Method]:
        return [self]


@dataclass(frozen=True, kw_only=True)
class LoneSA(FedSALoRA):
    """FedSA-LoRA without variants."""

    def variants(self) -> Sequence[Method]:
        return [self]


@dataclass(frozen=True, kw_only=True)
class Falters(LoneDitto):
    """When phone-01 tests its own model, signal 9 ends its process, once; ``once`` is made by it."""

    once: str = ""

    def personal(self, dev: Device, down: Payload) -> nn.Module:
        if dev.name == "phone-01" and self.once and not Path(self.once).exists():
            Path(self.once).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().personal(dev, down)


@dataclass(frozen=True, kw_only=True)
class Struck(Remembers):
    """In round 1 something happens to the process of phone-01, once: ``how`` says what, ``once`` is made by it.

    kill, stop: signals 9 and 19 to the device itself. zygote, frozen zygote: the same to its parent. launcher: signal 9
    to the process whose pid is in the file ``once`` + '.launcher'.
    """

    how: str = "kill"
    once: str = ""

    def client(self, dev: Device, down: Payload) -> Payload:
        if dev.name == "phone-01" and dev.round == 1 and self.once and not Path(self.once).exists():
            Path(self.once).touch()
            victim = {"launcher": self._launcher()}.get(self.how, os.getppid() if "zygote" in self.how else os.getpid())
            os.kill(victim, signal.SIGSTOP if self.how in ("stop", "frozen zygote") else signal.SIGKILL)
            time.sleep(30)
        return super().client(dev, down)

    def _launcher(self) -> int:
        path = Path(self.once + ".launcher")
        return int(path.read_text()) if path.exists() else 0


@dataclass(frozen=True, kw_only=True)
class Rings(Alone):
    """Two Ctrl-Cs reach the process that first runs its client, which is the planner; ``once`` is made by it."""

    once: str

    def client(self, dev: Device, down: Payload) -> Payload:
        if not Path(self.once).exists():
            Path(self.once).touch()
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        return super().client(dev, down)
