"""The bare PyTorch loop that fedge is measured against: two forked processes, plain steps, one sum a round.

``python -m tools.bare N`` trains N devices for one round and says when it is done: what a start costs without fedge.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from pathlib import Path

import torch
from torch import nn

from fedge.data.source import read
from fedge.emulation.malloc import pin_malloc
from fedge.emulation.process import die_with_parent
from fedge.models.load import load

STEPS, BATCH, SLOTS = 8, 32, 2


class Mlp(nn.Module):
    """A 64-128-10 perceptron on images of 8 × 8: a visit with next to no work in it."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(64, 128)
        self.classifier = nn.Linear(128, 10)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.classifier(torch.relu(self.body(pixel_values.flatten(1))))
        return logits


def mlp() -> nn.Module:
    """What ``model: tools.bare:mlp`` names."""
    return Mlp()


def model_of(name: str) -> nn.Module:
    """'mlp', or a bundled model with ten classes."""
    return Mlp() if name == "mlp" else load(name, "image-classification", classes=10, seed=0).model


class Bare:
    """The loop's processes, each of which trains its half of ``devices`` in turn."""

    def __init__(self, model: nn.Module, devices: int, pinned: bool):
        """Fork at once: call it before anything has made threads. pinned: hold malloc as fedge does behind a wall."""
        self.pids: list[int] = []
        self._devices = devices
        self._ends: list[tuple[int, int]] = []
        self._weights = _flat(model)
        for side in range(SLOTS):
            down, back = os.pipe(), os.pipe()
            parent = os.getpid()
            pid = os.fork()
            if pid == 0:
                die_with_parent(parent=parent)
                try:
                    _work(model, down[0], back[1], devices // SLOTS, pinned, seed=side)
                except BaseException:
                    traceback.print_exc()
                finally:
                    os._exit(0)
            self.pids.append(pid)
            os.close(down[0])
            os.close(back[1])
            self._ends.append((down[1], back[0]))

    def round(self) -> None:
        """Weights down, sums of changes up, their mean added."""
        for down, _ in self._ends:
            _write(down, self._weights)
        total = torch.zeros_like(self._weights)
        for _, back in self._ends:
            total += _read(back, len(self._weights))
        self._weights = self._weights + total / self._devices

    def close(self) -> None:
        """End the processes."""
        for down, back in self._ends:
            os.close(down)
            os.close(back)
        for pid in self.pids:
            os.kill(pid, signal.SIGKILL)  # each holds the other's pipe too, so that neither would see its own end
            os.waitpid(pid, 0)


def _work(model: nn.Module, orders: int, answers: int, devices: int, pinned: bool, seed: int) -> None:
    """One process: train ``devices`` times from the weights that came, answer the sum of the changes."""
    if pinned:
        pin_malloc()
    torch.manual_seed(seed)
    train = read("digits", folder=Path(), seed=0).train
    images = torch.tensor(train.image).float().reshape(-1, 1, 8, 8) / 255
    labels = torch.tensor(train.label)
    count = sum(parameter.numel() for parameter in model.parameters())
    model.requires_grad_(True).train()
    while True:
        start = _read(orders, count)
        total = torch.zeros_like(start)
        for _ in range(devices):
            # a copy: the parameters become views of the vector, and training would change the start with them
            nn.utils.vector_to_parameters(start.clone(), model.parameters())
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
            for _ in range(STEPS):
                rows = torch.randint(0, len(labels), (BATCH,))
                output = model(pixel_values=images[rows])
                logits = output if isinstance(output, torch.Tensor) else output.logits
                nn.functional.cross_entropy(logits, labels[rows]).backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            total += _flat(model) - start
        _write(answers, total)


def _flat(model: nn.Module) -> torch.Tensor:
    return nn.utils.parameters_to_vector(model.parameters()).detach().clone()


def _write(end: int, tensor: torch.Tensor) -> None:
    data = memoryview(tensor.numpy()).cast("B")
    while data:
        data = data[os.write(end, data) :]


def _read(end: int, count: int) -> torch.Tensor:
    data = bytearray(4 * count)
    view = memoryview(data)
    while view:
        got = os.readv(end, [view])
        if not got:
            os._exit(0)
        view = view[got:]
    return torch.frombuffer(data, dtype=torch.float32).clone()


def main() -> int:
    """One round over so many devices, with the imports that fedge's launcher makes."""
    import fedge.run.launcher
    import fedge.run.warmup  # noqa: F401

    torch.set_num_threads(1)
    bare = Bare(model_of("vit-nano"), int(sys.argv[1]), pinned=True)
    bare.round()
    print("round done", flush=True)
    bare.close()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
