"""Tables on the terminal: framed by rich on a screen, plain columns in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from shutil import get_terminal_size
from typing import Any, TextIO

_NARROWEST = 6


def table(
    rows: Sequence[Mapping[str, Any]],
    columns: Sequence[str] | Mapping[str, str],
    title: str | None = None,
    *,
    file: TextIO | None = None,
) -> None:
    """Print rows as a table.

    ``columns`` are the keys to show in order, or a mapping of key to heading. Numbers stand right, a missing or None
    value is a dash. On a terminal the table fits its width (80 columns where it can't be told): long cells wrap.
    Elsewhere each row is one line, nothing is cut, and columns are two spaces apart.
    """
    out = sys.stdout if file is None else file
    headings = dict(columns) if isinstance(columns, Mapping) else {name: name.replace("_", " ") for name in columns}
    right = {name for name in headings if _numbers([row.get(name) for row in rows])}
    cells = [[_cell(row.get(name)) for name in headings] for row in rows]
    if out.isatty():
        _framed(cells, headings, right, title, out)
    else:
        _plain(cells, headings, right, title, out)


def _numbers(values: Sequence[Any]) -> bool:
    given = [value for value in values if value is not None]
    return bool(given) and all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in given)


def _cell(value: Any) -> str:
    if value is None or value == "":
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(_cell(item) for item in value) or "–"
    return " ".join(str(value).split())


def _framed(
    cells: Sequence[Sequence[str]], headings: Mapping[str, str], right: set[str], title: str | None, out: TextIO
) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    width = get_terminal_size((80, 24)).columns
    made = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", show_edge=False, padding=(0, 1, 0, 0))
    for at, (name, heading) in enumerate(headings.items()):
        widest = max([len(heading), *(len(row[at]) for row in cells)])
        # what a row is called stays in one piece, unless that leaves too little for the rest
        whole = name in right or (at == 0 and widest <= width // 3)
        made.add_column(
            Text(heading),
            justify="right" if name in right else "left",
            overflow="fold",
            no_wrap=whole,
            min_width=widest if whole else min(widest, _NARROWEST),
        )
    for row in cells:
        # Text, so that square brackets in a value are no markup
        made.add_row(*(Text(cell) for cell in row))
    Console(file=out, highlight=False, width=width).print(made)


def _plain(
    cells: Sequence[Sequence[str]], headings: Mapping[str, str], right: set[str], title: str | None, out: TextIO
) -> None:
    lines = [list(headings.values()), *cells]
    widths = [max(len(line[at]) for line in lines) for at in range(len(headings))]
    if title:
        print(title, file=out)
    for line in lines:
        parts = [
            cell.rjust(width) if name in right else cell.ljust(width)
            for cell, width, name in zip(line, widths, headings, strict=True)
        ]
        print("  ".join(parts).rstrip(), file=out)
