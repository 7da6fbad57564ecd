"""What a YAML parser says of a mistake, in the words of someone who wrote the file."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import yaml

from fedge.errors import Problem, nearest

_TOKENS = {
    "<stream end>": "the end of the file",
    "<document start>": "the end of the file",
    "<block end>": "the end of the block",
    "<block mapping start>": "a mapping",
    "<block sequence start>": "a list",
    "<scalar>": "text",
}
_BREAK = re.compile(r"\r\n|[\r\n\x85\u2028\u2029]")
_FITS = "a ':' that doesn't fit here"


@dataclass(frozen=True)
class _Fault:
    """What the parser said (``what``, while it was at ``during``), where (``mark``, ``start``), and the lines."""

    what: str
    during: str
    mark: Any
    start: Any
    lines: list[str]

    @property
    def here(self) -> str:
        return self.line(self.mark.line)

    def line(self, number: int) -> str:
        return self.lines[number] if 0 <= number < len(self.lines) else ""

    def above(self) -> int | None:
        """The number of the nearest line above that says something."""
        for number in range(self.mark.line - 1, -1, -1):
            if self.line(number).strip() and not self.line(number).lstrip().startswith("#"):
                return number
        return None


@dataclass(frozen=True)
class _Said:
    what: str
    hint: str | None = None
    line: int | None = None  # from 0, where it is not the parser's own
    column: int | None = None


def explain(error: yaml.YAMLError, text: str, file: str) -> Problem:
    """The mistake for which parsing ``text`` ended, with its place and, where one can tell, what would be right."""
    if isinstance(error, yaml.reader.ReaderError):
        line = text[: error.position].count("\n") + 1
        character = chr(error.character) if isinstance(error.character, int) else error.character
        return Problem(f"a character that YAML doesn't allow: {character!r}", file=file, line=line)
    start = getattr(error, "context_mark", None)
    mark = getattr(error, "problem_mark", None) or start
    what = getattr(error, "problem", None) or str(error)
    if mark is None:
        return Problem(f"isn't YAML: {what}", file=file)
    fault = _Fault(what, getattr(error, "context", None) or "", mark, start or mark, _BREAK.split(text))
    said = next(filter(None, (rule(fault) for rule in _RULES)), None) or _Said(_plain(what))
    line = mark.line if said.line is None else said.line
    column = mark.column if said.column is None else said.column
    return Problem(f"isn't YAML: {said.what}", file=file, line=line + 1, column=column + 1, hint=said.hint)


def _plain(what: str) -> str:
    for token, words in _TOKENS.items():
        what = what.replace(f"'{token}'", words).replace(token, words)
    return what.replace("'\\n'", "the end of the line")


def _tab(fault: _Fault) -> _Said | None:
    if "\t" in fault.here[: fault.mark.column + 1]:
        return _Said("a tab where YAML wants spaces", "indent with spaces")
    return None


def _pasted(fault: _Fault) -> _Said | None:
    if re.match(r"\s*<(!|html)", fault.lines[0], re.IGNORECASE):
        return _Said("this is an HTML page", "was the page saved in place of the file?", 0, 0)
    for line in dict.fromkeys((fault.start.line, fault.mark.line)):
        text = fault.line(line)
        if re.match(r"(<{7}|={7}|>{7})( |$)", text):
            return _Said("the mark of a merge conflict", "keep one side and remove the marks", line, 0)
        if text.startswith("```"):
            return _Said("a fence of markdown", "leave the ``` lines out", line, 0)
    return None


def _space(fault: _Fault) -> _Said | None:
    for line in range(fault.start.line, fault.mark.line + 1):
        column = fault.line(line).find("\u00a0")
        if column >= 0:
            return _Said("a no-break space (U+00A0)", "type a plain space in its place", line, column)
    return None


def _quote(fault: _Fault) -> _Said | None:
    if "quoted scalar" in fault.during and "end of stream" in fault.what:
        return _Said("a quote that is never closed", None, fault.start.line, fault.start.column)
    if "escape" in fault.what:
        hint = "single quotes keep backslashes as they are; a path can have / instead"
        return _Said("a backslash in double quotes begins an escape, and this is none", hint)
    return None


def _character(fault: _Fault) -> _Said | None:
    found = re.search(r"character '(.+)' that cannot start any token", fault.what)
    return _Said(f"a value can't begin with '{found[1]}'", "put it in quotes") if found else None


def _no_colon(fault: _Fault) -> _Said | None:
    if "could not find expected ':'" not in fault.what:
        return None
    line = fault.start.line
    equals = re.match(r"\s*[\w.-]+\s*=", fault.line(line))
    hint = "`key: value`" + (", not `key = value`" if equals else "")
    return _Said("a line without the ':' of a key", hint, line, fault.start.column)


def _colon(fault: _Fault) -> _Said | None:
    if "mapping values are not allowed" not in fault.what:
        return None
    if re.search(r":\s", fault.here[: fault.mark.column]):
        hint = "a mapping within a line stands in braces, such as {dirichlet: 0.3}; a text that holds ': ' in quotes"
        return _Said("a second ':' in the line", hint)
    above = fault.above()
    before = "" if above is None else fault.line(above)
    tight = re.match(r"(\s*(?:- +)*)([\w.-]+):(?=[^\s/])", before)
    if tight:
        return _Said(f"no space after the ':' of '{tight[2]}'", f"`{tight[2]}: …`", above, len(tight[0]) - 1)
    if not re.search(r":(\s|$)", before) and re.match(r"\s*[\w.-]+\s*=", before):
        return _Said("a line without the ':' of a key", "`key: value`, not `key = value`", above, 0)
    if re.search(r":\s+\S", before) and _indent(before) < _indent(fault.here):
        return _Said("indented as if it belonged to the line above, which has a value", "indent it as that line")
    return _Said(_FITS, "is a quote missing, or is the line above indented differently?")


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _anchor(fault: _Fault) -> _Said | None:
    if "scanning an alias" in fault.during or "scanning an anchor" in fault.during:
        return _Said("a value that begins with '*' or '&' names an anchor, and this is no name", "put it in quotes")
    found = re.search(r"found undefined alias '(.+)'", fault.what)
    if found is None:
        return None
    name = found[1]
    anchors = {
        match: number for number, line in enumerate(fault.lines, 1) for match in re.findall(r"(?:^|\s)&(\S+)", line)
    }
    if name in anchors:
        hint: str | None = f"it is on line {anchors[name]}, and must come before its use"
    else:
        hint = nearest(name, anchors) or f"an anchor is written &{name}, before its use"
    return _Said(f"no anchor of the name '{name}'", hint)


def _bracket(fault: _Fault) -> _Said | None:
    if "while parsing a flow" not in fault.during:
        return None
    return _Said(_plain(fault.what), f"the bracket opened on line {fault.start.line + 1} is not closed")


def _block(fault: _Fault) -> _Said | None:
    found = re.search(r"expected <block end>, but found '(.+)'", fault.what)
    if found is None:
        return None
    token, line = found[1], fault.start.line + 1
    if token in ("}", "]"):
        return _Said(f"a '{token}' too many")
    if "block collection" in fault.during and token in ("?", "<scalar>"):
        return _Said("a key where the list goes on", f"the list that begins on line {line} wants '- ' before it")
    if token == "-":
        return _Said("a '- ' among keys", "indent it below its key")
    if token.endswith("start>") or token == "?":
        where = f"what begins on line {line} stands in column {fault.start.column + 1}"
        return _Said("indented differently from what it belongs to", where)
    if re.search("[\"']", fault.here[: fault.mark.column]):
        return _Said("text after the quote has ended", "put the whole in 'single quotes', or leave the inner ones out")
    return _Said(_plain(fault.what))


def _document(fault: _Fault) -> _Said | None:
    if "another document" in fault.what or "document" in fault.during:
        return _Said("a second document; one file holds one")
    if "expected '<document start>'" in fault.what:
        table = re.match(r"\s*\[([\w.-]+)\]\s*$", fault.lines[0])
        return _Said("this stands after the end of the file's only value", table and f"`{table[1]}:`, not [{table[1]}]")
    return None


_RULES: tuple[Callable[[_Fault], _Said | None], ...] = (
    _tab,
    _pasted,
    _space,
    _quote,
    _character,
    _no_colon,
    _colon,
    _anchor,
    _bracket,
    _block,
    _document,
)
