"""What a method's server side says in a round: its questions packed for the wire, its state, and who is to blame."""

from __future__ import annotations

import json
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from fedge.core.method import Ask, State
from fedge.core.payload import Payload
from fedge.errors import FedgeError, MethodError
from fedge.run.brief import Brief
from fedge.wire.blobs import Blob


def packed(ask: object, devices: Container[str]) -> dict[str, Blob]:
    """The bytes of a turn's questions in device order; what several devices are asked alike is one blob.

    MethodError for anything but an Ask to some of ``devices``.
    """
    if not isinstance(ask, Ask) or not isinstance(ask.to, Mapping):
        raise MethodError(f"it asked by a {type(ask).__name__}, not by an Ask")
    questions: dict[str, Blob] = {}
    blobs: dict[Any, Blob] = {}
    for device in sorted(ask.to):
        if device not in devices:
            raise MethodError(f"it asks '{device}', which is not a device of this federation")
        if not isinstance(ask.to[device], Payload):
            raise MethodError(f"it asks '{device}' by a {type(ask.to[device]).__name__}, not by a Payload")
        same = _identity(ask.to[device])
        if same not in blobs:
            blobs[same] = Blob(ask.to[device].to_bytes())
        questions[device] = blobs[same]
    return questions


def as_state(state: object) -> State:
    """What a method's ``init`` or ``round`` left; MethodError for anything but a dict."""
    if not isinstance(state, dict):
        raise MethodError(f"it left a {type(state).__name__} as its state, not a dict")
    return state


@contextmanager
def blame(brief: Brief, part: str) -> Iterator[None]:
    """Turn what a method's server side raises into a MethodError that names the method and the function."""
    try:
        yield
    except MethodError as error:
        raise MethodError(f"method '{brief.key}', {part}: {error.message}", hint=error.hint) from error
    except FedgeError:
        raise
    except Exception as error:
        raise MethodError(f"method '{brief.key}', {part}: {type(error).__name__}: {error}") from error


def _identity(payload: Payload) -> tuple[Any, ...]:
    """Equal for payloads that hold the very same tensors, weight and meta, as long as they live."""
    tensors = tuple((role, name, id(tensor)) for role, tree in payload.parts.items() for name, tensor in tree.items())
    return (tuple(payload.parts), tensors, payload.weight, json.dumps(payload.meta, sort_keys=True, default=repr))
