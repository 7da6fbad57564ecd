"""States on disk: nested dicts of tensors and JSON values, as one safetensors file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from fedge.core.method import State
from fedge.core.payload import Tree, pack, unpack
from fedge.errors import FedgeError, MethodError, ProtocolError
from fedge.run.folder import read_sealed, write_sealed

_MARK = "$tensor"
_SECRET = 32


def flatten(state: State) -> tuple[Tree, str]:
    """Tensors by number, and the state's JSON with references in their place.

    Raises MethodError for a value that is neither a tensor nor JSON.
    """
    tensors: Tree = {}

    def plain(value: Any) -> Any:
        if isinstance(value, Tensor):
            name = str(len(tensors))
            tensors[name] = value
            return {_MARK: name}
        if isinstance(value, dict):
            if not all(isinstance(key, str) for key in value):
                raise MethodError("a state's keys must be strings")
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        raise MethodError(f"a state holds a {type(value).__name__}; it may hold tensors and JSON values only")

    try:
        text = json.dumps(plain(state), allow_nan=False)
    except ValueError as error:
        raise MethodError("a state holds a number that is not finite") from error
    return tensors, text


def revive(tensors: Tree, text: str) -> State:
    """The state that ``flatten`` took apart, its tensors cloned out of their buffer.

    Raises ValueError, KeyError or RecursionError for what it can't have written.
    """

    def value(plain: Any) -> Any:
        if isinstance(plain, dict):
            if set(plain) == {_MARK}:
                return tensors[str(plain[_MARK])].clone()
            return {key: value(item) for key, item in plain.items()}
        if isinstance(plain, list):
            return [value(item) for item in plain]
        return plain

    state = value(json.loads(text))
    if not isinstance(state, dict):
        raise ValueError("it is not a mapping")
    return state


def state_file(folder: Path, device: str, stage: int, saved: int) -> Path:
    """Where a device's state of a stage lies, under the number of conversations after the first that it has seen."""
    return folder / f"{device}.{stage}.{saved}.state"


def secret_of(folder: Path, device: str) -> bytes:
    """A device's secret: 32 bytes from the operating system, made when they are first asked for."""
    path = folder / f"{device}.secret"
    with suppress(FileNotFoundError):
        if len(found := path.read_bytes()) == _SECRET:
            return found
    # one that was cut short by a death was never used
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(found := os.urandom(_SECRET))
    return found


def forget_states(folder: Path, stage: int, needed: Mapping[str, int | None]) -> None:
    """Delete the states of earlier stages, and of this one those that no device goes on from any more.

    ``needed``: the number from which each device would go on. Later ones are left: they are written again.
    """
    for path in folder.glob("*.state"):
        device, index, saved = path.name.removesuffix(".state").rsplit(".", 2)
        kept = needed.get(device)
        if int(index) < stage or (int(index) == stage and kept is not None and int(saved) < kept):
            path.unlink(missing_ok=True)


def save_state(state: State, path: Path) -> None:
    """Write a state whole or not at all."""
    tensors, text = flatten(state)
    try:
        data = pack(tensors, {"state": text})
    except KeyError as error:
        raise MethodError(f"a state holds a tensor of {error}, which can't be saved") from error
    write_sealed(path, data)


def load_state(path: Path) -> State:
    """Read what ``save_state`` wrote. Raises MethodError when the file is not there, FedgeError when it is damaged."""
    if not path.exists():
        raise MethodError(f"the state {path} is gone")
    try:
        tensors, metadata = unpack(read_sealed(path))
        return revive(tensors, metadata["state"])
    except (ProtocolError, ValueError, KeyError, RecursionError) as error:
        raise FedgeError(f"{path} is damaged: it holds no state that fedge writes ({error})") from error
