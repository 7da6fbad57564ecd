"""Ways to damage bytes, JSON and text; everything drawn from the generator that is given."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

#: Values that have broken parsers before.
NASTY: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 255, 256, 2**31, 2**32 - 1, 2**53 + 1, 2**63, -(2**63), 10**40, 0.5, -0.0, 1e-320,
    1e308, "", "\0", "x" * 300, "../../etc/passwd", "é\u202e", "NaN", "1e999", [], [[]], {}, {"": None}, [0] * 50,
)  # fmt: skip
_WORDS = (b"\0", b"\xff", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x80", b"{", b"[", b'"', b"\\u", b"1e999", b"-")


def damaged(data: bytes, draw: Random, other: bytes = b"") -> bytes:
    """The bytes with one to four damages: flipped, set, cut, doubled, moved, or spliced with ``other``."""
    found = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 2, 4))):
        at = draw.randrange(len(found) + 1)
        to = min(len(found), at + draw.choice((1, 1, 2, 4, 8, 32, 256)))
        way = draw.randrange(8)
        if way == 0 and found:
            found[at % len(found)] ^= 1 << draw.randrange(8)
        elif way == 1 and found:
            found[at % len(found)] = draw.randrange(256)
        elif way == 2:
            del found[at:to]
        elif way == 3:
            found[at:at] = found[at:to]
        elif way == 4:
            found[at:at] = draw.choice(_WORDS)
        elif way == 5:
            found[at:to] = draw.choice(_WORDS)
        elif way == 6:
            del found[at:]
        elif other:
            start = draw.randrange(len(other))
            found[at:to] = other[start : start + draw.choice((1, 4, 16, 128))]
    return bytes(found)


def changed(value: Any, draw: Random) -> Any:
    """A JSON value with one part changed for a nasty one, left out, doubled or nested."""
    if isinstance(value, dict) and value and draw.random() < 0.9:
        key = draw.choice(list(value))
        found = dict(value)
        way = draw.randrange(6)
        if way == 0:
            del found[key]
        elif way == 1:
            found[draw.choice(("blob", "id", "n", "x", "", key + " "))] = found[key]
        elif way == 2:
            found[key] = draw.choice(NASTY)
        else:
            found[key] = changed(value[key], draw)
        return found
    if isinstance(value, list) and value and draw.random() < 0.8:
        at = draw.randrange(len(value))
        return draw.choice(
            (
                [*value[:at], *value[at + 1 :]],
                [*value, value[at]],
                [*value[:at], changed(value[at], draw), *value[at + 1 :]],
            )
        )
    if isinstance(value, int) and draw.random() < 0.5:
        return value + draw.choice((-1, 1, 7, 2**20, -(2**20)))
    deep: Any = draw.choice(NASTY)
    if draw.random() < 0.05:
        for _ in range(draw.choice((3, 40, 400))):
            deep = [deep]
    return deep


def rejson(data: bytes, draw: Random) -> bytes:
    """JSON bytes with one value changed; bytes that are no JSON are damaged instead."""
    try:
        value = json.loads(data)
    except ValueError:
        return damaged(data, draw)
    return json.dumps(changed(value, draw)).encode()


def relined(text: str, draw: Random, others: Sequence[str]) -> str:
    """Text of lines with some left out, doubled, moved, indented, cut or taken from another text."""
    lines = text.split("\n")
    for _ in range(draw.choice((1, 1, 2, 3, 6))):
        at = draw.randrange(len(lines))
        lines[at : at + 1] = draw.choice(_LINES)(lines, at, draw, others)
        lines = lines or [""]
    return "\n".join(lines)


_TOKENS = (
    "", "null", "~", "true", "0", "-1", "1e400", ".inf", ".nan", "2**3", "99999999999999999999", "[", "]", "{", "}",
    "[]", "{}", "&a", "*a", "<<: *a", "!!python/object:os.system", "!!binary |", "|", ">", "%YAML 9.9", "---", "...",
    "512MiB", "-5MiB", "1e30GiB", "40ms", "'", '"', "\t", "é", "\u2028", "\x07", "#", "? ", ": ", "- ", "0x10", "1_000",
    "2026-01-01", "12:30:00", "module:function", "/etc/passwd", "${HOME}", "~/x", "[[[[[[[[[[[[[[[[[[[[",
)  # fmt: skip

_Line = Callable[[list[str], int, Random, Sequence[str]], list[str]]
_LINES: tuple[_Line, ...] = (
    lambda lines, at, draw, others: [],
    lambda lines, at, draw, others: [lines[at]] * 2,
    lambda lines, at, draw, others: [draw.choice(lines)],
    lambda lines, at, draw, others: [" " * draw.randrange(6) + lines[at]],
    lambda lines, at, draw, others: [lines[at].strip()],
    lambda lines, at, draw, others: [lines[at][: draw.randrange(len(lines[at]) + 1)]],
    lambda lines, at, draw, others: [lines[at] + draw.choice(_TOKENS)],
    lambda lines, at, draw, others: [_retoken(lines[at], draw)],
    lambda lines, at, draw, others: [_retoken(lines[at], draw)],
    lambda lines, at, draw, others: [_retoken(lines[at], draw)],
    lambda lines, at, draw, others: [lines[at], draw.choice(draw.choice(others).split("\n"))],
    lambda lines, at, draw, others: [damaged(lines[at].encode(), draw).decode("utf-8", "replace")],
)


def _retoken(line: str, draw: Random) -> str:
    """One word of a line, or its value, for another."""
    words = line.split(" ")
    words[draw.randrange(len(words))] = draw.choice(_TOKENS)
    if ":" in line and draw.random() < 0.5:
        return line.split(":", 1)[0] + ": " + draw.choice(_TOKENS)
    return " ".join(words)
