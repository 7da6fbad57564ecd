"""What is known about every method without importing any: ``catalogue.json``, read once.

The file is written by ``python -m fedge.methods.generate`` from the built methods' own fields and the survey's table.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from fedge.errors import nearest
from fedge.spec.source import describe
from fedge.spec.words import number_meant

FILE = Path(__file__).resolve().parent.parent / "catalogue.json"


@dataclass(frozen=True)
class OptionInfo:
    """One field of a method: ``type`` is int, float, bool, str, a list[…] of these, each with ' | None' or not."""

    type: str
    default: Any = None
    doc: str = ""
    choices: tuple[Any, ...] = ()
    required: bool = False

    def read(self, given: object) -> Any:
        """The value as the method takes it (lists as tuples); ValueError in plain words when it doesn't fit."""
        kinds = [kind.strip() for kind in self.type.split("|")]
        if given is None and "None" in kinds:
            return None
        kind = kinds[0]
        if kind.startswith("list["):
            if not isinstance(given, (list, tuple)):
                one = f"; [{given}]?" if isinstance(given, (int, str)) else ""
                raise ValueError(f"expected a list, got {describe(given)}{one}")
            value: Any = tuple(_scalar(kind[5:-1], item) for item in given)
        else:
            value = _scalar(kind, given)
        for item in value if isinstance(value, tuple) else (value,):
            if self.choices and item not in self.choices:
                words = [str(choice) for choice in self.choices]
                close = nearest(str(item), words)
                raise ValueError(
                    f"expected one of {', '.join(words)}, got {describe(item)}" + (f"; {close}" if close else "")
                )
        return value


_WORDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text"}


def _scalar(kind: str, given: object) -> Any:
    right = {
        "int": isinstance(given, int) and not isinstance(given, bool),
        "float": isinstance(given, (int, float)) and not isinstance(given, bool),
        "bool": isinstance(given, bool),
        "str": isinstance(given, str),
    }
    if not right.get(kind, True):
        meant = number_meant(given, whole=kind == "int") if kind in ("int", "float") else ""
        raise ValueError(f"expected {_WORDS[kind]}, got {describe(given)}{meant}")
    if kind == "float" and isinstance(given, (int, float)):
        if given != given or given in (float("inf"), float("-inf")) or abs(given) > 1e300:
            raise ValueError(f"expected a finite number, got {describe(given)}")
        return float(given)
    return given


@dataclass(frozen=True)
class MethodInfo:
    """One method: a built one with its fields, or a row of the survey that is not built yet."""

    key: str
    name: str
    stages: tuple[str, ...]
    path: str
    built: bool = False
    module: str | None = None
    aliases: tuple[str, ...] = ()
    citation: str | None = None
    paper: str | None = None
    stars: tuple[int, int, int] | None = None
    leaves: tuple[str, ...] = ()
    deviations: tuple[str, ...] = ()
    summary: str = ""
    tasks: tuple[str, ...] = ()
    alternatives: tuple[str, ...] = ()
    family: str | None = None
    final: str | None = None
    roles: tuple[str, ...] = ()
    #: Whether the server needs the sum of the answers alone.
    linear: bool = False
    waives: Mapping[str, str] = field(default_factory=dict)
    fields: Mapping[str, OptionInfo] = field(default_factory=dict)
    nearest: str | None = None
    #: The package that brings it, where that is not fedge, and why it can't be used.
    package: str | None = None
    refused: str | None = None

    def defaults(self) -> dict[str, Any]:
        return {name: option.default for name, option in self.fields.items() if not option.required}


@dataclass(frozen=True)
class CodecInfo:
    """One codec: the roles that it may touch, the steps that it takes, and its fields, those of its own first.

    lossless: the very bits come back. fixed: the length of what is sent depends on shapes alone.
    """

    key: str
    module: str
    summary: str
    paper: str
    roles: tuple[str, ...]
    steps: tuple[str, ...]
    lossless: bool = False
    fixed: bool = True
    fields: Mapping[str, OptionInfo] = field(default_factory=dict)
    #: The field that a bare value means: ``topk: 0.1``.
    main: str | None = None

    def defaults(self) -> dict[str, Any]:
        return {name: option.default for name, option in self.fields.items()}


@dataclass(frozen=True)
class Catalogue:
    """Every method that fedge knows, built or not, and every codec, in the order of the file."""

    methods: tuple[MethodInfo, ...]
    codecs: tuple[CodecInfo, ...] = ()

    def find(self, word: str) -> MethodInfo | None:
        """The method of this key or alias; a key goes before an alias."""
        for info in self.methods:
            if info.key == word:
                return info
        return next((info for info in self.methods if word in info.aliases), None)

    def codec(self, word: str) -> CodecInfo | None:
        """The codec of this name."""
        return next((info for info in self.codecs if info.key == word), None)

    def built(self, stage: str | None = None) -> tuple[MethodInfo, ...]:
        return tuple(info for info in self.methods if info.built and (stage is None or stage in info.stages))


Info = TypeVar("Info", MethodInfo, CodecInfo)


def from_json(document: Mapping[str, Any]) -> Catalogue:
    """The catalogue from the parsed ``catalogue.json``."""
    methods = tuple(_info(MethodInfo, row) for row in document["methods"])
    return Catalogue(methods, tuple(_info(CodecInfo, row) for row in document.get("codecs", ())))


@cache
def load(path: Path = FILE) -> Catalogue:
    """Read the catalogue once, and with fedge's own what other packages bring; no method is imported."""
    from fedge.spec.installed import installed

    own = from_json(json.loads(path.read_text(encoding="utf-8")))
    taken = {name for info in own.methods for name in (info.key, *info.aliases)}
    return replace(own, methods=(*own.methods, *installed(taken)))


def find(word: str) -> MethodInfo | None:
    """The method of this key or alias in fedge's own catalogue."""
    return load().find(word)


def info_of(row: Mapping[str, Any]) -> MethodInfo:
    """One method from its row of the catalogue."""
    return _info(MethodInfo, row)


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _info(kind: type[Info], row: Mapping[str, Any]) -> Info:
    known = {name: _tuples(value) for name, value in row.items() if name in kind.__dataclass_fields__}
    known["fields"] = {
        name: OptionInfo(**{key: _tuples(value) for key, value in option.items()})
        for name, option in row.get("fields", {}).items()
    }
    return kind(**known)
