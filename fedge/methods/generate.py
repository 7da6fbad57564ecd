"""Write ``catalogue.json``: the built methods' cards and fields, joined with the survey's table, and the codecs.

    python -m fedge.methods.generate [--check]

The file lets everything that must not import torch (``fedge config``, ``methods``, ``schema``) know each method's
fields. ``--check`` writes nothing and fails when the file is not up to date.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from fedge.codecs import table as codecs
from fedge.methods import table
from fedge.spec.catalogue import FILE
from fedge.spec.codec import ROLES_FIELD
from fedge.spec.stage import stage_keys

SURVEY = Path(__file__).with_name("survey.yaml")
_SCALARS = {int: "int", float: "float", bool: "bool", str: "str"}


def catalogue(
    built: Mapping[str, str] | None = None,
    aliases: Mapping[str, str] | None = None,
    survey: Sequence[Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """The document that ``catalogue.json`` holds; imports every built method."""
    built = table.BUILT if built is None else built
    aliases = table.ALIASES if aliases is None else aliases
    if survey is None:
        survey = yaml.safe_load(SURVEY.read_text(encoding="utf-8"))["methods"]
    rows = {row["key"]: row for row in survey}
    for alias, key in aliases.items():
        if key not in built or alias in built:
            raise ValueError(
                f"alias '{alias}' leads to '{key}': " + ("it is a key itself" if alias in built else "not built")
            )
    methods = [built_row(key, target, aliases, rows) for key, target in built.items()]
    for row in survey:
        if row["key"] not in built and row["key"] not in aliases:
            methods.append(_known(row, methods[: len(built)]))
    return {"methods": methods, "codecs": [_codec(key, target) for key, target in codecs.BUILT.items()]}


def text(document: Mapping[str, Any]) -> str:
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def built_row(key: str, target: str, aliases: Mapping[str, str], rows: Mapping[str, Any]) -> dict[str, Any]:
    """A method's row of the catalogue; imports it. TypeError or ValueError for fields that YAML can't hold."""
    module, _, name = target.partition(":")
    made = getattr(import_module(module), name)
    card = made.card
    names = sorted(alias for alias, to in aliases.items() if to == key)
    cited = [rows[name] for name in (key, *names) if name in rows]
    fields = options_of(made)
    stars = card.stars or next((_stars(row) for row in cited), None)
    return {
        "key": key,
        "aliases": names,
        "built": True,
        "module": target,
        "name": card.name,
        "stages": list(card.stages),
        "path": card.path,
        "citation": "; ".join(row["citation"] for row in cited) or None,
        "paper": card.paper,
        "stars": list(stars) if stars else None,
        "leaves": list(card.leaves),
        "deviations": list(card.deviations),
        "summary": card.summary,
        "tasks": list(card.tasks),
        "alternatives": list(card.alternatives),
        "family": card.family,
        "final": card.final,
        "roles": list(card.roles),
        "linear": bool(getattr(made, "linear", False)),
        "waives": dict(card.waives),
        "fields": fields,
        "nearest": key,
    }


def options_of(made: Any) -> dict[str, Any]:
    """A method class's fields, as the catalogue holds them.

    TypeError for a field that YAML has no value for, ValueError for one that hides a key of every stage.
    """
    fields = {field.name: _field(made, field) for field in dataclasses.fields(made) if field.init}
    clash = sorted(set(fields) & set(stage_keys()))
    if clash:
        words = ", ".join(clash)
        raise ValueError(f"{made.__name__}: the fields {words} are keys of every stage; name them otherwise")
    return fields


def _codec(key: str, target: str) -> dict[str, Any]:
    module, _, name = target.partition(":")
    made = getattr(import_module(module), name)
    if made.key != key:
        raise ValueError(f"{target} calls itself '{made.key}', not '{key}'")
    # what every codec has comes last
    own = sorted(dataclasses.fields(made), key=lambda field: field.name == ROLES_FIELD)
    return {
        "key": key,
        "module": target,
        "summary": made.summary,
        "paper": made.paper,
        "roles": list(made.roles),
        "steps": list(made.steps),
        "lossless": made.lossless,
        "fixed": made.fixed,
        "fields": {field.name: _field(made, field) for field in own},
        "main": own[0].name if len(own) > 1 else None,
    }


def _known(row: Mapping[str, Any], built: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "key": row["key"],
        "aliases": [],
        "built": False,
        "module": None,
        "name": row["name"],
        "stages": [row["stage"]],
        "path": row["path"],
        "citation": row["citation"],
        "paper": None,
        "stars": list(_stars(row)),
        "leaves": [],
        "deviations": [],
        "summary": "",
        "tasks": [],
        "alternatives": [],
        "family": None,
        "final": None,
        "fields": {},
        "nearest": nearest_built(row["path"], built),
    }


def _stars(row: Mapping[str, Any]) -> tuple[int, int, int]:
    return row["complexity"], row["efficiency"], row["scalability"]


def nearest_built(path: str, built: Sequence[Mapping[str, Any]]) -> str | None:
    """The built method whose path shares the most leading parts with ``path``; the first of several."""

    def parts(text: str) -> list[str]:
        return text.partition(" ")[0].split("/")

    best, most = None, 0
    for method in built:
        shared = 0
        for mine, theirs in zip(parts(path), parts(method["path"]), strict=False):
            if mine != theirs:
                break
            shared += 1
        if shared > most:
            best, most = method["key"], shared
    return best


def _field(made: Any, field: dataclasses.Field[Any]) -> dict[str, Any]:
    kind, choices = _type(typing.get_type_hints(made)[field.name], f"{made.__name__}.{field.name}")
    required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    default = None
    if field.default is not dataclasses.MISSING:
        default = field.default
    elif field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    return {
        "type": kind,
        "default": list(default) if isinstance(default, (tuple, list)) else default,
        "doc": field.metadata.get("doc", ""),
        "choices": list(field.metadata.get("choices", choices)),
        **({"required": True} if required else {}),
    }


def _type(hint: Any, where: str) -> tuple[str, Sequence[Any]]:
    """The field's type in the catalogue's words, and the choices of a Literal."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint in _SCALARS:
        return _SCALARS[hint], ()
    if origin is typing.Literal:
        return _SCALARS[type(arguments[0])], arguments
    if origin in (typing.Union, types.UnionType):
        # a field that Python may also give a Method takes that method's name in YAML
        kept = [a for a in arguments if a is not type(None) and not _is_method(a)]
        if len(kept) == 1:
            kind, choices = _type(kept[0], where)
            return (f"{kind} | None" if type(None) in arguments else kind), choices
    if origin in (tuple, list) or getattr(origin, "__name__", "") == "Sequence":
        inner = {argument for argument in arguments if argument is not Ellipsis}
        if len(inner) == 1:
            kind, choices = _type(inner.pop(), where)
            if "[" not in kind and "|" not in kind:
                return f"list[{kind}]", choices
    raise TypeError(f"{where}: YAML has no such value: {hint}; int, float, bool, str or lists of them")


def _is_method(hint: Any) -> bool:
    return isinstance(hint, type) and hasattr(hint, "variants")


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    fresh = text(catalogue())
    if "--check" in arguments:
        same = FILE.is_file() and FILE.read_text(encoding="utf-8") == fresh
        if not same:
            print(f"{FILE.name} is not up to date: run python -m fedge.methods.generate", file=sys.stderr)
        return 0 if same else 1
    FILE.write_text(fresh, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
