"""The key ``codec`` of a stage: a chain of codecs, checked by the catalogue. Roles and order are core's words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from fedge.core.roles import Part, refusal
from fedge.errors import nearest
from fedge.spec.catalogue import Catalogue, CodecInfo
from fedge.spec.source import Source, describe

Options = dict[str, Any]
#: The field that names the roles; every codec has it.
ROLES_FIELD = "only"
_HINT = "codec: [topk: 0.1, int8]"


def read_codecs(given: object, at: str, source: Source, catalogue: Catalogue) -> tuple[tuple[str, Options], ...]:
    """The chain as (key, all its fields), in order; mistakes go to ``source.problems``.

    A codec is written as its name, as ``name: value`` of its first field, or as ``name: {field: value}``. One of the
    user's own, ``module:name``, is checked when it is made.
    """
    if given is None:
        return ()
    if not isinstance(given, list):
        source.report(at, f"expected a list of codecs, got {describe(given)}", hint=_HINT)
        return ()
    before = len(source.problems)
    read = [_codec(item, f"{at}.{place}", source, catalogue) for place, item in enumerate(given)]
    found = [each for each in read if each is not None]
    if len(source.problems) == before:
        _check_order(found, at, source, catalogue)
    return tuple(found)


def _codec(item: object, at: str, source: Source, catalogue: Catalogue) -> tuple[str, Options] | None:
    value: Any = None
    word = item
    if isinstance(item, Mapping) and len(item) == 1:
        word, value = next(iter(item.items()))
        at = f"{at}.{word}"
    if not isinstance(word, str):
        source.report(at, f"expected a codec or {{codec: value}}, got {describe(item)}", hint=_HINT)
        return None
    if ":" in word:
        if not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", word):
            source.report(at, f"expected module:function, got '{word}'")
        elif value is not None and not isinstance(value, Mapping):
            source.report(at, f"expected the codec's fields, got {describe(value)}")
        return word, {name: tuple(v) if isinstance(v, list) else v for name, v in dict(value or {}).items()}
    info = catalogue.codec(word)
    if info is None:
        known = [codec.key for codec in catalogue.codecs]
        source.report(at, f"no codec '{word}'", hint=nearest(word, known) or f"known: {', '.join(known)}")
        return None
    return word, {**info.defaults(), **_fields(info, value, at, source)}


def _fields(info: CodecInfo, value: object, at: str, source: Source) -> Options:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        value = {info.main: value} if info.main else {str(value): None}
    options: Options = {}
    for name, given in value.items():
        option = info.fields.get(name)
        if option is None:
            fields = list(info.fields)
            hint = nearest(str(name), fields) or f"its fields: {', '.join(fields)}"
            source.report(f"{at}.{name}" if len(value) > 1 else at, f"{info.key} has no field '{name}'", hint=hint)
            continue
        try:
            options[name] = option.read(given)
        except ValueError as error:
            source.report(at if name not in value else f"{at}.{name}", str(error), hint=option.doc or None)
    wrong = [role for role in options.get(ROLES_FIELD, ()) if role not in info.roles]
    if wrong:
        may = ", ".join(info.roles)
        source.report(f"{at}.{ROLES_FIELD}", f"'{info.key}' must not touch {', '.join(wrong)}; it may touch {may}")
    return options


def _check_order(found: list[tuple[str, Options]], at: str, source: Source, catalogue: Catalogue) -> None:
    infos = [catalogue.codec(key) for key, _ in found]
    if any(info is None for info in infos):
        return  # with one of the user's own the whole chain is checked when it is made
    parts = [
        Part(key, tuple(options.get(ROLES_FIELD) or info.roles), info.steps)
        for (key, options), info in zip(found, infos, strict=True)
        if info is not None
    ]
    wrong = refusal(parts)
    if wrong is not None:
        source.report(f"{at}.{wrong[0]}", wrong[1], hint=wrong[2])


def write_codecs(chain: tuple[tuple[str, Options], ...]) -> list[Any]:
    """The chain as a file would hold it, every default filled in."""
    plain = [(key, {n: list(v) if isinstance(v, tuple) else v for n, v in options.items()}) for key, options in chain]
    return [{key: options} if options else key for key, options in plain]
