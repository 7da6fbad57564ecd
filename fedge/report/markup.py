"""HTML and SVG out of nested calls; whatever isn't markup already is escaped, so that no name can break a page."""

from __future__ import annotations

from html import escape

_VOID = ("meta", "br")


class Markup(str):
    """Text that is markup and stays as it is."""

    __slots__ = ()


def element(tag: str, *children: object, **attributes: object) -> Markup:
    """``element("rect", x=1, class_="a", data_n=2)``; None and False leave a child or an attribute out."""
    told = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escape(_plain(value))}"' if value is not True else f" {name}"
        for name, value in attributes.items()
        if value is not None and value is not False
    )
    if tag in _VOID:
        return Markup(f"<{tag}{told}>")
    return Markup(f"<{tag}{told}>{join(*children)}</{tag}>")


def join(*children: object) -> Markup:
    """Children one after the other, lists taken apart."""
    parts: list[str] = []
    for child in children:
        if isinstance(child, Markup):
            parts.append(child)
        elif isinstance(child, (list, tuple)):
            parts.append(join(*child))
        elif child is not None and child is not False:
            parts.append(escape(_plain(child)))
    return Markup("".join(parts))


def _plain(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
