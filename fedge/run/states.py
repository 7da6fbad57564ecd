"""States on disk: nested dicts of tensors and JSON values, as one safetensors file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from fedge.core.method import State
from fedge.core.payload import Tree, pack, unpack
from fedge.errors import MethodError
from fedge.run.folder import write_whole

_MARK = "$tensor"


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

    text = json.dumps(plain(state), allow_nan=False)
    return tensors, text


def revive(tensors: Tree, text: str) -> State:
    """The state that ``flatten`` took apart, its tensors cloned out of their buffer."""

    def value(plain: Any) -> Any:
        if isinstance(plain, dict):
            if set(plain) == {_MARK}:
                return tensors[plain[_MARK]].clone()
            return {key: value(item) for key, item in plain.items()}
        if isinstance(plain, list):
            return [value(item) for item in plain]
        return plain

    state = value(json.loads(text))
    assert isinstance(state, dict)
    return state


def save_state(state: State, path: Path) -> None:
    """Write a state whole or not at all."""
    tensors, text = flatten(state)
    write_whole(path, bytes(pack(tensors, {"state": text})))


def load_state(path: Path) -> State:
    """Read what ``save_state`` wrote. Raises MethodError when the file is not there."""
    try:
        data = bytearray(path.read_bytes())
    except FileNotFoundError as error:
        raise MethodError(f"the state {path.name} is gone") from error
    tensors, metadata = unpack(data)
    return revive(tensors, metadata["state"])
