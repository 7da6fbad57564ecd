"""A YAML file as plain values, with the place of every key, so that each later mistake can be pointed at.

Scalars follow YAML 1.2 where 1.1 surprises: ``1e-3`` is a number, ``no`` and ``12:30`` are text. Anchors, aliases and
merge keys work; a key given twice is a mistake.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from fedge.errors import ConfigError, Problem

Keys = tuple[str | int, ...]

# an alias inside an alias inside an alias … can ask for more values than a machine holds
_MOST_VALUES = 100_000
_DEEPEST = 100


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
    return ".".join(str(key) for key in keys)


@dataclass
class Source:
    """What a file says: ``data``, the ``places`` of its keys, and the ``problems`` found so far."""

    file: str
    data: Any = None
    places: dict[str, Place] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def place(self, path: str) -> Place:
        """The place of the key, or of the nearest one above it that was written."""
        while path not in self.places and path:
            path = path.rpartition(".")[0]
        return self.places.get(path, Place(self.file))

    def problem(self, path: str, message: str, *, hint: str | None = None) -> Problem:
        place = self.place(path)
        return Problem(message, file=place.file, line=place.line, column=place.column, key=path or None, hint=hint)

    def report(self, path: str, message: str, *, hint: str | None = None) -> None:
        self.problems.append(self.problem(path, message, hint=hint))

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
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(Problem("no such file", file=name)) from None
    except IsADirectoryError:
        raise ConfigError(Problem("is a folder, not a file", file=name)) from None
    except OSError as error:
        raise ConfigError(Problem(f"can't be read: {error.strerror}", file=name)) from None
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ConfigError(Problem("is not UTF-8 text", file=name, line=line)) from None
    source = parse_yaml(text, name)
    if source.data is None:
        raise ConfigError(Problem(f"is empty; a {what} starts with its keys", file=name, line=1))
    if not isinstance(source.data, dict):
        raise ConfigError(
            Problem(f"expected a mapping of keys, got {describe(source.data)}", file=name, line=1, column=1)
        )
    return source


def parse_yaml(text: str, file: str) -> Source:
    """Parse YAML text; raises ConfigError where it isn't YAML. Duplicate keys land in ``problems``."""
    try:
        try:
            loader = _FastLoader(text)
            node = loader.get_single_node()
        except (yaml.YAMLError, UnicodeError):
            loader = _Loader(text)
            node = loader.get_single_node()
    except yaml.YAMLError as error:
        raise ConfigError(_syntax(error, text, file)) from None
    except (RecursionError, ValueError) as error:
        raise ConfigError(Problem(f"isn't YAML that can be read: {type(error).__name__}", file=file)) from None
    source = Source(file)
    if node is not None:
        source.data = _Builder(loader, source).build(node, (), None)
    return source


def _syntax(error: yaml.YAMLError, text: str, file: str) -> Problem:
    if isinstance(error, yaml.reader.ReaderError):
        line = text[: error.position].count("\n") + 1
        character = chr(error.character) if isinstance(error.character, int) else error.character
        return Problem(f"a character that YAML doesn't allow: {character!r}", file=file, line=line)
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    what = getattr(error, "problem", None) or str(error)
    if mark is None:
        return Problem(f"isn't YAML: {what}", file=file)
    hint = None
    lines = text.splitlines()
    here = lines[mark.line] if mark.line < len(lines) else ""
    if "\t" in here[: mark.column + 1]:
        what, hint = "a tab where YAML wants spaces", "indent with spaces"
    elif "mapping values are not allowed" in what:
        what, hint = "a ':' that doesn't fit here", "is a quote missing, or is the line above indented differently?"
    elif "found undefined alias" in what:
        what = what.replace("found undefined alias", "no anchor of the name")
    elif "while parsing a flow" in str(getattr(error, "context", "")) and getattr(error, "context_mark", None):
        hint = f"the bracket opened on line {error.context_mark.line + 1} is not closed"
    elif isinstance(error, yaml.composer.ComposerError) and "document" in what:
        what = "a second document; one file holds one"
    return Problem(f"isn't YAML: {what}", file=file, line=mark.line + 1, column=mark.column + 1, hint=hint)


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
        if id(node) in self.open or len(path) > _DEEPEST:
            raise ConfigError(
                Problem("contains itself, or is nested too deep", file=place.file, line=place.line, column=place.column)
            )
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
            message = f"the value '{node.value[:40]}' can't be read as {tag}"
            self.source.problems.append(
                Problem(message, file=place.file, line=place.line, column=place.column, key=dotted(path) or None)
            )
            return None

    def _mapping(self, node: yaml.MappingNode, path: Keys) -> dict[str, Any]:
        own: dict[str, Any] = {}
        merged: list[tuple[yaml.Node, yaml.Node]] = []
        lines: dict[str, int] = {}
        for key, value in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                merged += self._merge(value)
                continue
            name = self._key(key)
            if name in lines:
                mark = key.start_mark
                self.source.problems.append(
                    Problem(
                        f"given twice; the first is on line {lines[name]}",
                        file=self.source.file,
                        line=mark.line + 1,
                        column=mark.column + 1,
                        key=dotted((*path, name)),
                    )
                )
                continue
            lines[name] = key.start_mark.line + 1
            own[name] = self.build(value, (*path, name), key)
        for key, value in merged:
            name = self._key(key)
            if name not in own:
                own[name] = self.build(value, (*path, name), key)
        return own

    def _merge(self, value: yaml.Node) -> list[tuple[yaml.Node, yaml.Node]]:
        nodes = value.value if isinstance(value, yaml.SequenceNode) else [value]
        pairs: list[tuple[yaml.Node, yaml.Node]] = []
        for node in nodes:
            if not isinstance(node, yaml.MappingNode) or id(node) in self.open:
                mark = value.start_mark
                raise ConfigError(
                    Problem("'<<' wants a mapping", file=self.source.file, line=mark.line + 1, column=mark.column + 1)
                )
            self.open.add(id(node))
            for key, inner in node.value:
                if key.tag == "tag:yaml.org,2002:merge":
                    pairs += self._merge(inner)
                else:
                    pairs.append((key, inner))
            self.open.discard(id(node))
            if len(pairs) > _MOST_VALUES:
                raise ConfigError(Problem(f"more than {_MOST_VALUES} values", file=self.source.file))
        return pairs

    def _key(self, key: yaml.Node) -> str:
        if not isinstance(key, yaml.ScalarNode):
            mark = key.start_mark
            raise ConfigError(
                Problem("a key must be a word", file=self.source.file, line=mark.line + 1, column=mark.column + 1)
            )
        return str(key.value)


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
    return "a list" if isinstance(value, (list, tuple)) else f"a {type(value).__name__}"


# a short form in the file, and the key that it stands for: so that `--set model.task=…` works over `model: name`
_SHORT: dict[Keys, str] = {("model",): "name", ("devices", "*", "network"): "name"}


def override(source: Source, overrides: Sequence[str] | Mapping[str, object]) -> None:
    """Lay ``a.b.c=value`` over the data; what doesn't fit is added to ``source.problems``."""
    for item in _pairs(source, overrides):
        _apply(source, *item)


def _pairs(source: Source, overrides: Sequence[str] | Mapping[str, object]) -> list[tuple[str, str, Any]]:
    if isinstance(overrides, Mapping):
        return [(f"--set {path}", path, value) for path, value in overrides.items()]
    pairs = []
    for text in [overrides] if isinstance(overrides, str) else overrides:
        label = f"--set {text}"
        path, equals, value = text.partition("=")
        if not equals or not path.strip():
            source.problems.append(Problem("expected KEY=VALUE, such as seed=3", file=label))
            continue
        try:
            parsed = parse_yaml(value, label)
        except ConfigError as error:
            problem = error.problems[0]
            source.problems.append(Problem(problem.message, file=label, hint=problem.hint))
            continue
        source.problems += [Problem(p.message, file=label) for p in parsed.problems]
        pairs.append((label, path.strip(), parsed.data))
    return pairs


def _apply(source: Source, label: str, path: str, value: Any) -> None:
    at: Any = source.data
    done: Keys = ()
    words = path.split(".")
    if "" in words:
        source.problems.append(Problem("an empty word between two dots", file=label))
        return
    try:
        words = _stage_words(source.data, words)
        for index, word in enumerate(words):
            last = index == len(words) - 1
            key: str | int = word
            if isinstance(at, list):
                if not word.isdecimal() or int(word) >= len(at):
                    wanted = f"a number from 0 to {len(at) - 1}" if at else "nothing, the list is empty"
                    raise ValueError(f"'{dotted(done)}' is a list: expected {wanted}, not '{word}'")
                key = int(word)
            elif not isinstance(at, dict):
                raise ValueError(f"'{dotted(done)}' is {describe(at)} in the file; set it as a whole")
            done = (*done, key)
            if last:
                at[key] = value
            else:
                below = at[key] if isinstance(key, int) else at.get(key)
                if below is None:
                    below = {}
                elif isinstance(below, str) and (short := _short(done)):
                    below = {short: below}
                elif isinstance(below, (dict, list)):
                    # an anchor's value may stand in several places; only this one is meant
                    below = dict(below) if isinstance(below, dict) else list(below)
                at[key] = below
                at = below
    except ValueError as error:
        source.problems.append(Problem(str(error), file=label))
        return
    _cover(source, done, label, value)


def _cover(source: Source, done: Keys, label: str, value: Any) -> None:
    prefix = dotted(done)
    for known in [p for p in source.places if p == prefix or p.startswith(prefix + ".")]:
        del source.places[known]
    for length in range(1, len(done)):
        source.places.setdefault(dotted(done[:length]), Place(label))
    source.places[prefix] = Place(label)


def _short(keys: Keys) -> str | None:
    for pattern, name in _SHORT.items():
        if len(pattern) == len(keys) and all(p in ("*", k) for p, k in zip(pattern, keys, strict=True)):
            return name
    return None


def _stage_words(data: Any, words: list[str]) -> list[str]:
    """``stages.customize.rounds`` and ``stages.1.rounds`` both to ``stages.1.customize.rounds``."""
    stages = data.get("stages") if isinstance(data, dict) else None
    if words[0] != "stages" or len(words) < 2 or not isinstance(stages, list):
        return words
    kinds = [next(iter(s)) if isinstance(s, dict) and len(s) == 1 else None for s in stages]
    word, rest = words[1], words[2:]
    if not word.isdecimal():
        found = [index for index, kind in enumerate(kinds) if kind == word]
        if len(found) != 1:
            there = ", ".join(f"{index} ({kind})" for index, kind in enumerate(kinds))
            many = f"{len(found)} stages are '{word}'" if found else f"no stage is '{word}'"
            raise ValueError(f"{many}; name one by its number: {there}")
        return ["stages", str(found[0]), word, *rest]
    kind = kinds[int(word)] if int(word) < len(kinds) else None
    if rest and kind is not None and rest[0] != kind:
        return ["stages", word, kind, *rest]
    return words
