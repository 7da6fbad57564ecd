"""Where a run stands after a round, as one file: all that a resume needs, written beside and renamed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from fedge.core.payload import Payload
from fedge.errors import FedgeError
from fedge.run.answers import Late
from fedge.run.coordinator import Coordinator
from fedge.run.states import load_state, save_state

_FILE = "run.checkpoint"
_RESOLVED = "resolved.yaml"


@dataclass
class Checkpoint:
    """stage: the one under way; round: rounds that are done in it; now: emulated seconds; done: closed stages' records.

    open: whether the stage has begun, and ``began`` when in emulated time. accounts, state and kept (late answers) are
    the coordinator's. metrics_size: bytes of ``metrics.jsonl`` that belong to what is done. wall_s: seconds spent so
    far. task, classes: what the model does (0 for language modelling). model_sha256, exports: what the last stage left.
    settings: the digest of the ``resolved.yaml`` that all this belongs to, None where there is none.
    """

    stage: int = 0
    round: int = 0
    now: float = 0.0
    open: bool = False
    began: float = 0.0
    state: dict[str, Any] = field(default_factory=dict)
    accounts: dict[str, Any] = field(default_factory=dict)
    kept: dict[str, Any] = field(default_factory=dict)
    done: list[dict[str, Any]] = field(default_factory=list)
    metrics_size: int = 0
    wall_s: float = 0.0
    baselines: list[dict[str, Any]] = field(default_factory=list)
    task: str = ""
    classes: int = 0
    model_sha256: str | None = None
    exports: list[dict[str, Any]] = field(default_factory=list)
    settings: str | None = None

    def save(self, folder: Path) -> None:
        """Write it as the run's checkpoint."""
        self.settings = _settings(folder)
        save_state(dict(vars(self)), folder / _FILE)

    @classmethod
    def load(cls, folder: Path) -> Checkpoint:
        """The run's checkpoint, or one of a run that has not begun.

        Raises FedgeError when it is damaged, or the run's settings were changed since.
        """
        if not (folder / _FILE).exists():
            return cls()
        told = load_state(folder / _FILE)
        found = cls()
        for name, usual in vars(found).items():
            value = told.pop(name, usual)
            if not _alike(value, usual):
                raise FedgeError(f"{folder / _FILE} is damaged: '{name}' is a {type(value).__name__}")
            setattr(found, name, value)
        if told:
            raise FedgeError(f"{folder / _FILE} is of another version of fedge: it holds '{next(iter(told))}'")
        if found.settings != _settings(folder):
            raise FedgeError(
                f"{folder.parent / _RESOLVED} was changed since the run began",
                hint="a resumed run keeps its settings; put them back, or start a run anew",
            )
        return found

    def note(self, coordinator: Coordinator) -> None:
        """Take over where a stage's coordinator stands."""
        self.round, self.now, self.open = coordinator.round, coordinator.now, True
        self.state = coordinator.state
        self.accounts = {name: account.to_json() for name, account in coordinator.accounts.items()}
        self.kept = {
            device: {"arrival": late.arrival, "asked": late.asked, "payload": _bytes(late.payload)}
            for device, late in coordinator.kept.items()
        }

    def put(self, coordinator: Coordinator) -> None:
        """Bring a fresh coordinator to where the stage stood."""
        coordinator.round, coordinator.now, coordinator.state = self.round, self.now, self.state
        for name, plain in self.accounts.items():
            coordinator.accounts[name].take(plain)
        coordinator.kept = {
            device: Late(late["arrival"], _payload(late["payload"]), late["asked"])
            for device, late in self.kept.items()
        }
        coordinator.refresh()


def _alike(value: object, usual: object) -> bool:
    """Whether a checkpoint's value is of the kind that belongs there."""
    if usual is None:
        return value is None or isinstance(value, str)
    if isinstance(usual, bool) or not isinstance(usual, (int, float)):
        return type(value) is type(usual)
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    return whole or (isinstance(usual, float) and isinstance(value, float))


def _settings(folder: Path) -> str | None:
    """The digest of the resolved federation beside the folder of checkpoints."""
    path = folder.parent / _RESOLVED
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def _bytes(payload: Payload) -> torch.Tensor:
    return torch.frombuffer(payload.to_bytes(), dtype=torch.uint8)


def _payload(data: torch.Tensor) -> Payload:
    return Payload.from_bytes(bytearray(data.numpy().tobytes()))
