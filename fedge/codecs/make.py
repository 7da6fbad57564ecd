"""Codecs and chains by name: from a key and its options to a value, and back to JSON that another process reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from importlib import import_module
from typing import Any

from fedge.codecs.chain import Chain
from fedge.codecs.codec import Codec, legal
from fedge.codecs.table import BUILT
from fedge.errors import ConfigError, nearest


def make(key: str, options: Mapping[str, Any] | None = None) -> Codec:
    """The codec that ``key`` names: one of the table, or ``module:name`` of the user's own.

    Raises ConfigError for a key that isn't there, options that the codec doesn't take, roles that it must not touch.
    """
    target = key if ":" in key else BUILT.get(key)
    if target is None:
        hint = nearest(key, BUILT)
        raise ConfigError(f"no codec '{key}'" + (f" ({hint})" if hint else ""))
    module, _, name = target.partition(":")
    try:
        maker = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"codec '{key}': {error}") from error
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in (options or {}).items()}
    try:
        codec = maker(**given)
        if not isinstance(codec, Codec):
            raise TypeError(f"it gives a {type(codec).__name__}, which is not a fedge codec")
        legal(type(codec))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"codec '{key}': {error}") from error
    return codec


def chain(written: Sequence[tuple[str, Mapping[str, Any]]]) -> Chain:
    """The chain of codecs as (key, options). Raises ConfigError also for an order that is not legal."""
    return Chain(tuple(make(key, options) for key, options in written))


def describe(made: Chain) -> list[dict[str, Any]]:
    """The chain as JSON: the class of each codec and every field."""
    return [
        {
            "class": f"{type(codec).__module__}:{type(codec).__qualname__}",
            "fields": {f.name: _plain(getattr(codec, f.name)) for f in fields(codec)},
        }
        for codec in made.codecs
    ]


def revive(described: Sequence[Mapping[str, Any]]) -> Chain:
    """The chain that ``describe`` described."""
    return chain([(each["class"], each["fields"]) for each in described])


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
