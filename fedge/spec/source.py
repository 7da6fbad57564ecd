"""A YAML file as plain values, with the place of every key, so that each later mistake can be pointed at.

Scalars follow YAML 1.2 where 1.1 surprises: ``1e-3`` is a number, ``no`` and ``12:30`` are text. Anchors, aliases and
merge keys work; a key given twice is a mistake.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from fedge.errors import ConfigError, Problem
from fedge.spec.syntax import explain

Keys = tuple[str | int, ...]

# an alias inside an alias inside an alias … can ask for more values than a machine holds
_MOST_VALUES = 30_000
_DEEPEST = 100
# the parsers go as deep as the file does, and libyaml's ends the process where the stack ends
_SHALLOW = 5000
_LARGEST = 4 << 20


def _number(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    text = str(loader.construct_scalar(node)).replace("_", "")
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


def _loader(base: Any) -> Any:
    made: Any = type("Loader", (base,), {"yaml_implicit_resolvers": {}})
    for tag, pattern, first in (
        ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
        ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
        ("int", r"[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F]+)", list("-+0123456789")),
        (
            "float",
            r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+|\.[0-9]+(?:[eE][-+]?[0-9]+)?)"
            r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
            list("-+0123456789."),
        ),
        ("merge", r"<<", ["<"]),
    ):
        made.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(rf"(?:{pattern})\Z"), first)
    made.add_constructor("tag:yaml.org,2002:float", _number)
    return made


_Loader = _loader(yaml.SafeLoader)
# libyaml reads some ten times faster; where it finds a mistake the other one says it in its words
_FastLoader = _loader(yaml.CSafeLoader) if hasattr(yaml, "CSafeLoader") else _Loader


@dataclass(frozen=True)
class Place:
    """Where a key stands; ``line`` and ``column`` count from 1, and are None for a value that came by ``--set``."""

    file: str
    line: int | None = None
    column: int | None = None


def beside(folder: Path, name: str) -> Path:
    """The absolute path that a word in a file of ``folder`` names, whether something is there or not."""
    try:
        path = (folder / Path(name).expanduser()).resolve()
        path.exists()
    except (OSError, RuntimeError, ValueError):  # too long, no such user, a null character: nothing is there
        return folder / "…"
    return path


def dotted(keys: Sequence[str | int]) -> str:
    """A key's path as messages write it, such as ``stages.0.rounds``."""
    return ".".join(str(key) for key in keys)


@dataclass
class Source:
    """What a file says: ``data``, the ``places`` of its keys, and the ``problems`` found so far."""

    file: str
    data: Any = None
    places: dict[str, Place] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    told: set[str] = field(default_factory=set)  # keys about which all is said

    def place(self, path: str) -> Place:
        """The place of the key, or of the nearest one above it that was written."""
        while path not in self.places and path:
            path = path.rpartition(".")[0]
        return self.places.get(path, Place(self.file))

    def problem(self, path: str, message: str, *, hint: str | None = None) -> Problem:
        place = self.place(path)
        return Problem(message, file=place.file, line=place.line, column=place.column, key=path or None, hint=hint)

    def report(self, path: str, message: str, *, hint: str | None = None) -> None:
        if not any(path == told or path.startswith(f"{told}.") for told in self.told):
            self.problems.append(self.problem(path, message, hint=hint))

    def report_of(self, path: str, error: ConfigError) -> None:
        """Take over what is wrong in a file that the key ``path`` names; what has no place there gets the key's."""
        for problem in error.problems:
            if problem.file is None:
                self.report(path, problem.message, hint=problem.hint)
            else:
                self.problems.append(problem)

    def raise_problems(self) -> None:
        """Raise a ConfigError with every problem, in the order of the file; what ``--set`` brought comes last."""
        if self.problems:
            unique = list(dict.fromkeys(self.problems))
            own = [problem for problem in unique if problem.file == self.file]
            own.sort(key=lambda problem: (problem.line or 0, problem.column or 0))
            unique = own + [problem for problem in unique if problem.file != self.file]
            raise ConfigError(unique)


def read_yaml(path: Path, *, what: str = "federation") -> Source:
    """Read one YAML file whose top is a mapping.

    Raises ConfigError when there is no such file, or it isn't UTF-8, YAML, or a mapping.
    """
    name = str(path)
    text = _decoded(_bytes_of(path, name, what), name)
    source = parse_yaml(text, name)
    if source.data is None:
        raise ConfigError(Problem(f"is empty; a {what} starts with its keys", file=name, line=1))
    if not isinstance(source.data, dict):
        raise ConfigError(
            Problem(f"expected a mapping of keys, got {describe(source.data)}", file=name, line=1, column=1)
        )
    return source


def _bytes_of(path: Path, name: str, what: str) -> bytes:
    try:
        with path.open("rb") as file:
            raw = file.read(_LARGEST + 1)
    except FileNotFoundError:
        raise ConfigError(Problem("no such file", file=name)) from None
    except IsADirectoryError:
        raise ConfigError(Problem("is a folder, not a file", file=name)) from None
    except OSError as error:
        raise ConfigError(Problem(f"can't be read: {error.strerror}", file=name)) from None
    if len(raw) > _LARGEST:
        raise ConfigError(Problem(f"is larger than {_LARGEST >> 20} MiB; a {what} is a page of text", file=name))
    return raw


def _decoded(raw: bytes, name: str) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        wide = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        hint = "it is UTF-16, as Windows' shell writes it; save it as UTF-8" if wide else "save it as UTF-8"
        raise ConfigError(Problem("is not UTF-8 text", file=name, line=line, hint=hint)) from None


def parse_yaml(text: str, file: str) -> Source:
    """Parse YAML text; raises ConfigError where it isn't YAML. Duplicate keys land in ``problems``."""
    try:
        try:
            _check_depth(text, file)
            loader = _FastLoader(text)
            node = loader.get_single_node()
        except (yaml.YAMLError, UnicodeError):
            loader = _Loader(text)
            node = loader.get_single_node()
    except yaml.YAMLError as error:
        raise ConfigError(explain(error, text, file)) from None
    except RecursionError:
        raise ConfigError(Problem(f"nested more than {_DEEPEST} deep", file=file)) from None
    except ValueError as error:
        raise ConfigError(Problem(f"isn't YAML that can be read: {error}", file=file)) from None
    source = Source(file)
    if node is not None:
        source.data = _Builder(loader, source).build(node, (), None)
    return source


def _check_depth(text: str, file: str) -> None:
    """Refuse what is nested too deep before the whole of it is read; a short text can't be so deep as to matter."""
    if len(text) <= _SHALLOW:
        return
    depth = 0
    for event in yaml.parse(text, Loader=_FastLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > _DEEPEST:
                mark = event.start_mark
                raise ConfigError(_too_deep(Place(file, mark.line + 1, mark.column + 1)))
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _too_deep(place: Place) -> Problem:
    return Problem(f"nested more than {_DEEPEST} deep", file=place.file, line=place.line, column=place.column)


class _Builder:
    """Walks the nodes once: values on one side, places on the other."""

    def __init__(self, loader: Any, source: Source):
        self.loader, self.source, self.count, self.open = loader, source, 0, set[int]()

    def build(self, node: yaml.Node, path: Keys, key: yaml.Node | None) -> Any:
        self.count += 1
        place = self._place(node, key)
        if self.count > _MOST_VALUES:
            raise ConfigError(Problem(f"more than {_MOST_VALUES} values", file=place.file, line=place.line))
        self.source.places[dotted(path)] = place
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path, place)
        if len(path) > _DEEPEST:
            raise ConfigError(_too_deep(place))
        if id(node) in self.open:
            self._wrong(node, "contains itself, by its own anchor", path)
            self.source.told.add(dotted(path))
            return None
        self.open.add(id(node))
        try:
            if isinstance(node, yaml.SequenceNode):
                return [self.build(item, (*path, index), None) for index, item in enumerate(node.value)]
            return self._mapping(node, path)
        finally:
            self.open.discard(id(node))

    def _place(self, node: yaml.Node, key: yaml.Node | None) -> Place:
        mark = node.start_mark
        if key is not None:
            start = key.start_mark
            # a block begins at its first line, an alias where its anchor stands: the key is where to look
            if not isinstance(node, yaml.ScalarNode) or mark.line != start.line or mark.column < start.column:
                mark = start
        return Place(self.source.file, mark.line + 1, mark.column + 1)

    def _scalar(self, node: yaml.ScalarNode, path: Keys, place: Place) -> Any:
        try:
            return self.loader.construct_object(node)
        except (yaml.YAMLError, ValueError, OverflowError):
            tag = node.tag.replace("tag:yaml.org,2002:", "!!")
            if tag.startswith("!!"):
                message, hint = f"the value '{node.value[:40]}' can't be read as {tag}", None
            else:
                message, hint = f"no tag '{tag[:40]}' is known here", "a value that begins with '!' stands in quotes"
            self.source.problems.append(
                Problem(message, place.file, place.line, place.column, key=dotted(path) or None, hint=hint)
            )
            self.source.told.add(dotted(path))
            return None

    def _mapping(self, node: yaml.MappingNode, path: Keys) -> dict[str, Any]:
        own: dict[str, Any] = {}
        merged: list[tuple[yaml.Node, yaml.Node]] = []
        lines: dict[str, int] = {}
        for key, value in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                merged += self._merge(value, path)
                continue
            name = self._key(key, path)
            if name is None:
                continue
            if name in lines:
                self._wrong(key, f"given twice; the first is on line {lines[name]}", (*path, name))
                continue
            lines[name] = key.start_mark.line + 1
            own[name] = self.build(value, (*path, name), key)
        for key, value in merged:
            name = self._key(key, path)
            if name is not None and name not in own:
                own[name] = self.build(value, (*path, name), key)
        return own

    def _merge(self, value: yaml.Node, path: Keys) -> list[tuple[yaml.Node, yaml.Node]]:
        nodes = value.value if isinstance(value, yaml.SequenceNode) else [value]
        pairs: list[tuple[yaml.Node, yaml.Node]] = []
        for node in nodes:
            if not isinstance(node, yaml.MappingNode) or id(node) in self.open:
                self._wrong(value, "'<<' wants a mapping, such as the anchor of one: `<<: *name`", (*path, "<<"))
                continue
            self.open.add(id(node))
            for key, inner in node.value:
                if key.tag == "tag:yaml.org,2002:merge":
                    pairs += self._merge(inner, path)
                else:
                    pairs.append((key, inner))
            self.open.discard(id(node))
            if len(pairs) > _MOST_VALUES:
                raise ConfigError(Problem(f"more than {_MOST_VALUES} values", file=self.source.file))
        return pairs

    def _key(self, key: yaml.Node, path: Keys) -> str | None:
        if isinstance(key, yaml.ScalarNode):
            return str(key.value)
        # `{{ name }}` is a mapping as the key of a mapping
        template = isinstance(key, yaml.MappingNode) and key.flow_style
        hint = "a template is not filled in; `--set KEY=VALUE` gives a value" if template else None
        self._wrong(key, "a key must be a word", path, hint)
        if path:
            self.source.told.add(dotted(path))
        return None

    def _wrong(self, node: yaml.Node, message: str, path: Keys, hint: str | None = None) -> None:
        """Note a mistake where the node stands."""
        line, column = node.start_mark.line + 1, node.start_mark.column + 1
        self.source.problems.append(
            Problem(message, self.source.file, line, column, key=dotted(path) or None, hint=hint)
        )


def describe(value: object) -> str:
    """A value in the words of someone who reads YAML."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        text = str(value)
        return f"the number {text if len(text) <= 30 else text[:27] + '...'}"
    if isinstance(value, str):
        return f"the text '{value if len(value) <= 40 else value[:37] + '...'}'"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, bytes):
        return "binary data"
    return "a list" if isinstance(value, (list, tuple)) else f"a {type(value).__name__}"
