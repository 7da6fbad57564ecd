"""Methods by name: from a catalogue key and options to a value, and back to JSON that another process can read."""

from __future__ import annotations

from dataclasses import MISSING, fields
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from fedge.core.method import Method
from fedge.errors import ConfigError, MethodError, nearest
from fedge.methods.table import ALIASES, BUILT


def make(key: str, options: dict[str, Any] | None = None) -> Method:
    """The method that ``key`` names: a catalogue key, one of its aliases, or ``module:name`` of the user's own.

    Lists in ``options`` become tuples, since methods are frozen values. Raises ConfigError for a key that isn't
    there and for options that the method doesn't take.
    """
    maker = _maker(key)
    options = {name: tuple(value) if isinstance(value, list) else value for name, value in (options or {}).items()}
    try:
        method = maker(**options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"method '{key}': {error}") from error
    if not isinstance(method, Method):
        raise ConfigError(f"'{key}' gives a {type(method).__name__}, which is not a fedge method")
    return method


def _maker(key: str) -> Any:
    target = key if ":" in key else BUILT.get(ALIASES.get(key, key)) or _installed(key)
    if target is None:
        hint = nearest(key, [*BUILT, *ALIASES])
        raise ConfigError(f"method '{key}' is not built" + (f" ({hint})" if hint else ""))
    module, _, name = target.partition(":")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"method '{key}': {error}") from error


def _installed(key: str) -> str | None:
    """Where another package's method of this key lies (``fedge.spec.installed`` says what is wrong with others)."""
    targets = {point.value for point in entry_points(group="fedge.methods", name=key)}
    return targets.pop() if len(targets) == 1 else None


def describe(method: Method) -> dict[str, Any]:
    """The method as JSON: its class and every field; nested methods become nested objects."""
    cls = type(method)
    return {
        "class": f"{cls.__module__}:{cls.__qualname__}",
        "fields": {f.name: _plain(getattr(method, f.name)) for f in fields(method)},
    }


def revive(described: dict[str, Any]) -> Method:
    """The method that ``describe`` described."""
    module, _, name = described["class"].partition(":")
    method = getattr(import_module(module), name)(**{k: _value(v) for k, v in described["fields"].items()})
    if not isinstance(method, Method):
        raise MethodError(f"'{described['class']}' is not a method")
    return method


def difference(variant: Method, method: Method) -> dict[str, Any]:
    """The fields in which a variant differs from the method as it was written, for people and for ``summary.json``.

    A member of a mixed cohort differs by its own fields from its class's defaults.
    """
    inner = getattr(variant, "member", None)
    if isinstance(inner, Method):
        return difference(inner, type(inner)())
    shown = {}
    for f in fields(variant):
        value = getattr(variant, f.name)
        if type(method) is type(variant):
            usual = getattr(method, f.name)
        else:
            usual = None if f.default is MISSING else f.default
        if value != usual and not isinstance(value, Method):
            shown[f.name] = _plain(value)
    return shown


def _plain(value: Any) -> Any:
    if isinstance(value, Method):
        return {"method": describe(value)}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def _value(value: Any) -> Any:
    if isinstance(value, dict) and set(value) == {"method"}:
        return revive(value["method"])
    if isinstance(value, list):
        return tuple(_value(item) for item in value)
    return value
