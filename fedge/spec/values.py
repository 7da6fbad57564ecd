"""The kinds of value that a key may hold, and pydantic's complaints turned into Problems with a place."""

from __future__ import annotations

import re
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import core_schema

from fedge import units
from fedge.errors import nearest
from fedge.spec.source import Source, describe
from fedge.spec.words import guess, number_meant


class Section(BaseModel):
    """One mapping of a YAML file: frozen, typed, no key beyond those declared."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


S = TypeVar("S", bound=Section)


@dataclass(frozen=True, eq=False)
class Check:
    """What a key takes: ``parse`` raises ValueError in plain words; ``write`` gives back what YAML would hold."""

    parse: Callable[[object], Any]
    schema: Mapping[str, Any]
    write: Callable[[Any], Any] | None = None

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        writer = core_schema.plain_serializer_function_ser_schema(self.write) if self.write else None
        return core_schema.no_info_plain_validator_function(self.parse, serialization=writer)

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        return dict(self.schema)


def quantity(parse: Callable[[object], Any], write: Callable[..., str], *examples: str) -> Check:
    """A number with its unit."""

    def text(value: float) -> str:
        return write(value, exact=True)

    return Check(parse, {"type": "string", "pattern": "^ *[0-9.]", "examples": list(examples)}, text)


def _nonzero_seconds(given: object) -> float:
    return units.parse_seconds(given, zero=False)


def _nonzero_share(given: object) -> float:
    return units.parse_share(given, zero=False)


SHARE_SCHEMA: Mapping[str, Any] = {
    "anyOf": [{"type": "string", "pattern": "%$"}, {"type": "number", "minimum": 0, "maximum": 1}],
    "examples": ["80%", 0.8],
}


def _word(given: object) -> str:
    if not isinstance(given, str):
        raise ValueError(f"expected text, got {describe(given)}")
    if not given.strip():
        raise ValueError("expected text, got nothing but spaces")
    if "\n" in given.strip("\r") or "\r" in given:
        raise ValueError("expected text on one line; `key: value`")
    if re.search(r"\$\{\w+", given):
        raise ValueError(f"'{given}': variables of the environment are not filled in; `--set KEY=VALUE` gives a value")
    if given[0] in "“”„‘’«»":
        raise ValueError(f"{given}: {given[0]} is not a quote to YAML, ' and \" are")
    return given


def _flag(given: object) -> bool:
    if not isinstance(given, bool):
        raise ValueError(f"expected true or false, got {describe(given)}")
    return given


Bytes = Annotated[int, quantity(units.parse_bytes, units.format_bytes, "512MiB", "1.5GB")]
Bitrate = Annotated[float, quantity(units.parse_bitrate, units.format_bitrate, "2Mbit/s")]
Byterate = Annotated[float, quantity(units.parse_byterate, units.format_byterate, "4.8GB/s")]
Seconds = Annotated[float, quantity(units.parse_seconds, units.format_seconds, "40ms", "2min")]
Timeout = Annotated[float, quantity(_nonzero_seconds, units.format_seconds, "90s", "2min")]
Flops = Annotated[float, quantity(units.parse_flops, units.format_flops, "9GFLOP/s")]
Watts = Annotated[float, quantity(units.parse_watts, units.format_watts, "6W")]
Joules = Annotated[float, quantity(units.parse_joules, units.format_joules, "20J", "1.5Wh")]
Share = Annotated[float, Check(units.parse_share, SHARE_SCHEMA, units.format_share)]
NonzeroShare = Annotated[float, Check(_nonzero_share, SHARE_SCHEMA, units.format_share)]
Text = Annotated[str, Check(_word, {"type": "string", "minLength": 1})]
Flag = Annotated[bool, Check(_flag, {"type": "boolean"})]


def optional(check: Check) -> Check:
    """The same, or nothing."""

    def parse(given: object) -> Any:
        return None if given is None else check.parse(given)

    def write(value: Any) -> Any:
        return check.write(value) if check.write and value is not None else value

    return Check(parse, {"anyOf": [dict(check.schema), {"type": "null"}]}, write)


def one_of(*words: str) -> Check:
    """A text that is one of ``words``; any other is refused with the nearest."""

    def check(given: object) -> str:
        if isinstance(given, str) and given in words:
            return given
        raise ValueError(not_one_of(given, words))

    return Check(check, {"type": "string", "enum": list(words)})


def not_one_of(given: object, words: typing.Iterable[str]) -> str:
    """What to say of a value that is none of these words, with the nearest of them."""
    words = list(words)
    close = nearest(given, words) if isinstance(given, str) else None
    return f"expected one of {', '.join(words)}, got {describe(given)}" + (f"; {close}" if close else "")


def whole(given: object, *, least: int | None = None, most: int | None = None) -> int:
    """A whole number within bounds; ValueError in plain words otherwise."""
    if isinstance(given, bool) or not isinstance(given, int):
        raise ValueError(f"expected a whole number, got {describe(given)}{number_meant(given, whole=True)}")
    shown = describe(given).removeprefix("the number ")
    if least is not None and given < least:
        raise ValueError(f"expected {least} or more, got {shown}")
    if most is not None and given > most:
        raise ValueError(f"expected {most} or less, got {shown}")
    return given


def integer(least: int, most: int = 10**9) -> Check:
    """A whole number from ``least`` to ``most``."""
    return Check(
        lambda given: whole(given, least=least, most=most), {"type": "integer", "minimum": least, "maximum": most}
    )


def real(given: object, least: float, most: float, *, above: bool = False) -> float:
    """A finite number within bounds; ValueError in plain words otherwise."""
    if isinstance(given, bool) or not isinstance(given, (int, float)):
        raise ValueError(f"expected a number, got {describe(given)}{number_meant(given)}")
    if not (least <= given <= most) or (above and given == least):
        low = f"more than {least:g}" if above else f"{least:g} or more"
        raise ValueError(f"expected {low} and at most {most:g}, got {describe(given).removeprefix('the number ')}")
    return float(given)


def number(least: float, most: float, *, above: bool = False) -> Check:
    """A finite number from ``least`` (beyond it where ``above``) to ``most``."""
    bound = "exclusiveMinimum" if above else "minimum"
    return Check(lambda given: real(given, least, most, above=above), {"type": "number", bound: least, "maximum": most})


def read(kind: type[S], data: object, path: str, source: Source) -> S | None:
    """Validate one section; what is wrong goes to ``source.problems`` and None comes back."""
    if data is None:
        data = {}
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        # unknown keys first: what they stand for isn't missing then
        for complaint in sorted(error.errors(include_url=False), key=lambda one: one["type"] != "extra_forbidden"):
            _report(kind, complaint, path, source)
        return None


# messages that say what kind of value is wanted, and not what for
_PLAIN = ("expected a whole number", "expected a number", "expected text", "expected true or false")
_EXPECTED = {
    "bool": "true or false",
    "string": "text",
    "int": "a whole number",
    "float": "a number",
    "dict": "a mapping",
    "model": "a mapping",
    "list": "a list",
    "tuple": "a list",
}


def _report(kind: type[Section], complaint: Mapping[str, Any], path: str, source: Source) -> None:
    loc = list(complaint["loc"])
    where = ".".join([*([path] if path else []), *(str(part) for part in loc)])
    sort = complaint["type"]
    if sort == "extra_forbidden":
        unknown_key(where, complaint["input"], known_keys(kind, loc[:-1]), source)
    elif sort == "missing":
        source.report(where, "this key is needed", hint=_described(kind, loc))
    elif sort == "value_error":
        message = str(complaint["ctx"]["error"])
        source.report(where, message, hint=_described(kind, loc) if message.startswith(_PLAIN) else None)
    else:
        expected = next((words for name, words in _EXPECTED.items() if sort.startswith(name + "_")), None)
        inner = known_keys(kind, loc) if sort.startswith("model_") else []
        hint = f"its keys: {', '.join(inner)}" if inner else _described(kind, loc)
        message = f"expected {expected or 'another kind of value'}, got {describe(complaint['input'])}"
        source.report(where, message, hint=hint)


def unknown_key(path: str, value: object, known: typing.Sequence[str], source: Source, why: str = "") -> None:
    """Report a key that a mapping doesn't take; one that it most likely stands for isn't reported as missing too."""
    above, _, word = path.rpartition(".")
    found = guess(word, known, value)
    source.report(path, "unknown key" + why, hint=found.hint or f"known here: {', '.join(known)}")
    meant = f"{above}.{found.key}" if above else found.key
    if meant is not None and meant not in source.places:
        source.told.add(meant)


def known_keys(kind: type[Section], loc: typing.Sequence[object] = ()) -> list[str]:
    """The keys that a section, or one inside it, takes in YAML."""
    inner = _inside(kind, loc)
    return [info.alias or name for name, info in inner.model_fields.items()] if inner else []


def _described(kind: type[Section], loc: typing.Sequence[object]) -> str | None:
    inner = _inside(kind, loc[:-1])
    for name, info in inner.model_fields.items() if inner else ():
        if (info.alias or name) == loc[-1]:
            return info.description
    return None


def _inside(kind: type[Section] | None, loc: typing.Sequence[object]) -> type[Section] | None:
    for part in loc:
        if kind is None:
            return None
        found = next((info for name, info in kind.model_fields.items() if (info.alias or name) == part), None)
        kind = _section(found.annotation) if found else None
    return kind


def _section(annotation: object) -> type[Section] | None:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    for argument in typing.get_args(annotation):
        if (found := _section(argument)) is not None:
            return found
    return None


def key(description: str, default: Any = ..., **more: Any) -> Any:
    """A key of a section with the words that the schema and the errors show for it."""
    return Field(default, description=description, **more)
