"""What the page's sections are made of: tables, legends, names of stages."""

from __future__ import annotations

from collections.abc import Sequence

from fedge.report.markup import Markup, element, join
from fedge.report.record import Record, Stage
from fedge.report.words import plural
from fedge.units import format_bytes

#: Rows of a table that are shown at most.
MOST_ROWS = 1000


def section(title: str, *children: object, class_: str | None = None) -> Markup:
    """A part of the page with its heading."""
    return element("section", element("h2", title), *children, class_=class_)


def rows_table(
    title: str,
    names: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    numbers: Sequence[str] = (),
    long: Sequence[str] = (),
) -> Markup:
    """A table that scrolls sideways where it is too wide; ``numbers`` stand right, ``long`` ones wrap.

    ``title``: what it is called by those who can't see it.
    """
    kinds = ["number" if name in numbers else "long" if name in long else None for name in names]
    body = [
        element(
            "tr", [element("td", "–" if c is None or c == "" else c, class_=k) for c, k in zip(row, kinds, strict=True)]
        )
        for row in rows[:MOST_ROWS]
    ]
    cells = [element("th", name, scope="col", class_=kind) for name, kind in zip(names, kinds, strict=True)]
    whole = element("table", element("thead", element("tr", cells)), element("tbody", body))
    # a keyboard can scroll only what it can reach
    table = element("div", whole, class_="wide", role="region", tabindex=0, aria_label=title)
    left = len(rows) - MOST_ROWS
    return join(table, element("p", f"and {plural(left, 'more row')}", class_="note") if left > 0 else None)


def folded_table(
    title: str, names: Sequence[str], rows: Sequence[Sequence[object]], *, numbers: Sequence[str] = ()
) -> Markup:
    """A table behind its title."""
    return element("details", element("summary", title), rows_table(title, names, rows, numbers=numbers))


def stage_keys(record: Record, before: str = "") -> list[Markup]:
    """A legend's entry for each stage."""
    return [legend_key(f"{before}{stage.title}", _block(stage.index)) for stage in record.stages]


def legend_key(words: str, sign: Markup) -> Markup:
    """One entry of a legend."""
    return element("span", element("svg", sign, width=14, height=14, aria_hidden="true"), words)


def _block(stage: int) -> Markup:
    return element("rect", x=1, y=2, width=12, height=10, rx=2, class_=f"s{stage % 6}")


def stage_name(stage: Stage) -> Markup:
    """A stage's name behind its colour."""
    sign = element("svg", _block(stage.index), width=14, height=14, aria_hidden="true")
    return element("span", sign, " ", stage.name, class_="stage")


def loss_badge(cause: str) -> Markup:
    """The sign of a loss, as the lanes show it."""
    letter = element("text", cause[:1].upper(), x=7, y=10.5)
    return element("g", element("circle", cx=7, cy=7, r=7), letter, class_=f"lost {css_word(cause)}")


def size_of(size: object) -> str | None:
    """A size in binary units; None for what is no size, or nothing."""
    return format_bytes(size) if isinstance(size, (int, float)) and size else None


def css_word(text: str) -> str:
    """A word as a class of the style sheet; empty when it could be more than a word."""
    return text if text.isalpha() else ""
