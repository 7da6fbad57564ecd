"""The page's bars: what each device used of the memory that it grants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fedge.report.drawing import colour, frame, gutter, ticks
from fedge.report.markup import Markup, element, join
from fedge.report.scale import Scale
from fedge.report.usage import Usage
from fedge.report.words import plural

#: Devices that are drawn at most; more than that nobody can look at.
_MOST = 64


def budgets(used: Mapping[str, Sequence[Usage]]) -> Markup:
    """For each device its peak in every stage as a share of what it grants, with the prediction as a tick."""
    devices = list(used)
    if len(devices) > _MOST:
        devices = sorted(devices, key=lambda d: -max((u.share for u in used[d]), default=0.0))[:_MOST]
    tall = max((len(used[device]) for device in devices), default=1)
    row = max(24, 8 * tall + 8)
    high = row * len(devices)
    marks = tuple((n / 4, f"{25 * n} %") for n in range(5))
    across = Scale(0.0, 1.0, marks)
    drawn = join(
        [element("line", x1=across.percent(v), x2=across.percent(v), y1=0, y2=high, class_="grid") for v, _ in marks],
        [_budget(device, used[device], across, row * place, row) for place, device in enumerate(devices)],
        ticks(across, high + 2),
        element("text", "of the memory that the device grants", x="100%", y=high + 36, class_="axis end"),
    )
    left = len(used) - len(devices)
    words = f"peak memory of {plural(len(devices), 'device')} against its budget; every figure is in the table below"
    note = element("p", f"{plural(left, 'device')} with lower shares not drawn", class_="note") if left else None
    return join(frame(drawn, high + 42, words, left=gutter(devices), right="8.4rem"), note)


def _budget(device: str, used: Sequence[Usage], across: Scale, top: float, row: float) -> Markup:
    bar = min(12.0, (row - 8) / max(1, len(used)) - 2)
    first = top + (row - (bar + 2) * len(used)) / 2
    parts = []
    for place, use in enumerate(used):
        y = round(first + place * (bar + 2), 1)
        title = element("title", use.told())
        if use.peak:
            width = across.percent(use.peak / use.budget)
            kind = f"{colour(use.stage)} bar"
            parts.append(element("rect", title, x=0, y=y, width=width, height=bar, rx=1, class_=kind))
        if use.over:
            parts.append(element("rect", title, x=0, y=y, width="100%", height=bar, rx=1, class_="over"))
        if use.predicted:
            x = across.percent(use.predicted / use.budget)
            parts.append(element("line", title, x1=x, x2=x, y1=y - 1, y2=y + bar + 1, class_="predicted"))
    most = max(used, key=lambda use: use.share)
    middle = top + row / 2 + 4
    percent = "over" if most.over else f"{100 * most.share:.0f} %"
    return join(
        element("text", device, x=-10, y=middle, class_="label end"),
        parts,
        element("text", most.short(), x="100%", dx=10, y=middle, class_="tick roomy"),
        element("text", percent, x="100%", dx=10, y=middle, class_="tick narrow"),
    )
