"""What the page's drawings share: axes, colours and signs of stages, the frame.

Whatever runs along a drawing is in percent and whatever stands across it in pixels, so that a drawing takes any width
and its letters keep their size; colours come from the page's style sheet, so that they follow light and dark.
"""

from __future__ import annotations

from collections.abc import Sequence

from fedge.report.markup import Markup, element, join
from fedge.report.scale import Scale


def colour(stage: int) -> str:
    """The class that gives a stage its colour."""
    return f"s{stage % 6}"


def sign(stage: int, x: str | float, y: float, size: float, said: object = None) -> Markup:
    """A stage's mark at a point: disc, square, diamond or triangle, so that it is not told by colour alone."""
    r, kind = size, colour(stage)
    title = element("title", said) if said else None
    if stage % 4 == 0:
        return element("circle", title, cx=x, cy=y, r=r, class_=kind)
    corners = {
        1: f"M-{0.9 * r:.4g} -{0.9 * r:.4g}h{1.8 * r:.4g}v{1.8 * r:.4g}h-{1.8 * r:.4g}Z",
        2: f"M0 -{1.4 * r:.4g}L{1.4 * r:.4g} 0L0 {1.4 * r:.4g}L-{1.4 * r:.4g} 0Z",
        3: f"M0 -{1.4 * r:.4g}L{1.3 * r:.4g} {r:.4g}H-{1.3 * r:.4g}Z",
    }
    path = element("path", title, d=corners[stage % 4], class_=kind)
    # a path takes no percentages: a drawing of its own, without a size, brings it to its place
    return element("svg", path, x=x, y=y, width=1, height=1, class_="at")


def ticks(across: Scale, y: float) -> list[Markup]:
    """The marks and numbers of a horizontal axis at height ``y``."""
    return [
        join(
            element("line", x1=across.percent(v), x2=across.percent(v), y1=y, y2=y + 4, class_="mark"),
            element("text", label, x=across.percent(v), y=y + 17, class_="tick middle"),
        )
        for v, label in across.ticks
    ]


def frame(drawn: Markup, height: float, words: str, *, left: str, right: str) -> Markup:
    """A drawing with room at its sides; ``words`` tell those who can't see it what it is."""
    box = element("svg", drawn, height=round(height), role="img", aria_label=words)
    return element("div", box, class_="plot", style=f"--left:{left};--right:{right}")


def gutter(names: Sequence[str]) -> str:
    """The room that the longest of some names needs."""
    return f"{min(26, max([len(name) for name in names], default=4) + 2)}ch"
