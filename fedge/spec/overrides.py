"""``--set a.b.c=value``: laid over what a file says, with a place of its own for every mistake."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedge.errors import ConfigError, Problem
from fedge.spec.source import Keys, Place, Source, beside, describe, dotted, parse_yaml

# a short form in the file, and the key that it stands for: so that `--set model.task=…` works over `model: name`
_SHORT: dict[Keys, str] = {("model",): "name", ("data",): "dataset", ("devices", "*", "network"): "name"}


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
        pairs.append((label, path.strip(), _from_here(parsed.data)))
    return pairs


def _from_here(value: Any) -> Any:
    """A path that begins with a dot was typed on a command line: it counts from there, not from the file's folder."""
    if isinstance(value, str) and value.startswith(("./", "../")):
        return str(beside(Path.cwd(), value))
    return value


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
    _cover(source, done, label)


def _cover(source: Source, done: Keys, label: str) -> None:
    """What stood at a key and below it is gone, with what was said of it; its place is the override's from now on."""
    prefix = dotted(done)
    for known in [p for p in source.places if p == prefix or p.startswith(prefix + ".")]:
        del source.places[known]
    source.told -= {told for told in source.told if told == prefix or told.startswith(prefix + ".")}
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
