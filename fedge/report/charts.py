"""The page's drawings: curves, lanes and bars as SVG.

Whatever runs along a drawing is in percent and whatever stands across it in pixels, so that a drawing takes any width
and its letters keep their size; colours come from the page's style sheet, so that they follow light and dark.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

from fedge.report.markup import Markup, element, join
from fedge.report.record import Answer, Happening, Record, Tested
from fedge.report.scale import Scale, bytes_scale, seconds_scale, value_scale
from fedge.report.usage import Usage
from fedge.report.words import amount, plural, sort_of
from fedge.units import format_bytes, format_seconds

#: Devices that are drawn at most, and answers that are drawn one by one; more than that nobody can look at.
MOST_LANES = 64
MOST_ANSWERS = 6000
_HEIGHT = 210
_LANE = 22


def curve(record: Record, measure: str, *, over: str) -> Markup:
    """The metric over emulated time (``over='time'``) or over bytes sent, with the baselines as dashed lines."""
    tests = [test for test in record.tests if measure in test.metrics]
    along = _time if over == "time" else _sent
    end = max([along(test) for test in tests], default=0.0)
    across = seconds_scale(end * 1.02) if over == "time" else bytes_scale(end * 1.02)
    shown, hidden = _baselines(record, measure, [test.metrics[measure] for test in tests])
    values = [test.metrics[name] for test in tests for name in _of(test, measure)] + [value for _, value in shown]
    up = value_scale(min(values), max(values))
    unit = f"emulated {across.unit}" if over == "time" else f"{across.unit} sent, up and down, all devices"
    drawn = join(
        _grid(across, up),
        [_dashed(up, name, value, y) for (name, value), y in zip(shown, _apart(up, shown), strict=True)],
        _lines(tests, measure, across, up, along),
        element("text", unit, x="100%", y=_HEIGHT + 34, class_="axis end"),
    )
    left_out = ", ".join(f"{name} {amount(measure, value)}" for name, value in hidden)
    note = element("p", f"outside of the drawing: {left_out}", class_="note") if left_out else None
    words = f"{measure} over {'emulated time' if over == 'time' else 'bytes sent'}"
    box = element("div", _svg(drawn, _HEIGHT + 40, words), class_="plot", style="--left:3.2rem;--right:.6rem")
    return element("figure", element("figcaption", words), box, note)


def _time(test: Tested) -> float:
    return test.virtual_s


def _sent(test: Tested) -> float:
    return float(test.bytes_sent)


def _of(test: Tested, measure: str) -> list[str]:
    """The measure and, for a model with several exits, that of each exit."""
    return [name for name in test.metrics if name == measure or name.startswith(f"{measure}_exit_")]


def _baselines(record: Record, measure: str, values: Sequence[float]) -> tuple[list[tuple[str, float]], ...]:
    """Baselines that share the drawing, and those so much worse than the curve that they would flatten it."""
    given = record.summary.get("baselines")
    found = [
        (str(line.get("name")), float(line[measure]))
        for line in (given if isinstance(given, list) else [])
        if isinstance(line, Mapping) and isinstance(line.get(measure), (int, float))
    ]
    low, high = min(values), max(values)
    reach = max(high - low, 0.1 * abs(high))
    near = [pair for pair in found if (pair[1] >= low - reach if measure == "accuracy" else pair[1] <= high + reach)]
    return near, [pair for pair in found if pair not in near]


def _grid(across: Scale, up: Scale) -> Markup:
    rows = [
        join(
            element("line", x1=0, x2="100%", y1=_y(up, value), y2=_y(up, value), class_="grid"),
            element("text", label, x=-8, y=_y(up, value) + 4, class_="tick end"),
        )
        for value, label in up.ticks
    ]
    return join(rows, _ticks(across, _HEIGHT))


def _ticks(across: Scale, y: float) -> list[Markup]:
    return [
        join(
            element("line", x1=across.percent(v), x2=across.percent(v), y1=y, y2=y + 4, class_="mark"),
            element("text", label, x=across.percent(v), y=y + 17, class_="tick middle"),
        )
        for v, label in across.ticks
    ]


def _y(up: Scale, value: float) -> float:
    return round(8 + (1 - up.share(value)) * (_HEIGHT - 8), 1)


def _apart(up: Scale, shown: Sequence[tuple[str, float]]) -> list[float]:
    """Where the baselines' names stand so that none covers another."""
    places: dict[int, float] = {}
    last = -99.0
    for index in sorted(range(len(shown)), key=lambda i: _y(up, shown[i][1])):
        last = places[index] = max(_y(up, shown[index][1]) - 4, last + 13)
    return [places[index] for index in range(len(shown))]


def _dashed(up: Scale, name: str, value: float, y: float) -> Markup:
    return join(
        element("line", x1=0, x2="100%", y1=_y(up, value), y2=_y(up, value), class_="baseline"),
        element("text", f"{name} {value:.3g}", x=5, y=y, class_="name"),
    )


def _lines(
    tests: Sequence[Tested], measure: str, across: Scale, up: Scale, along: Callable[[Tested], float]
) -> list[Markup]:
    """One line for the measure and a thin one for each exit; a stage's part has the stage's colour."""
    drawn = []
    names = sorted({name for test in tests for name in _of(test, measure)}, key=lambda name: name == measure)
    for name in names:
        points = [test for test in tests if name in test.metrics]
        thin = "" if name == measure else " thin"
        for before, after in pairwise(points):
            ends = {"x1": across.percent(along(before)), "x2": across.percent(along(after))}
            heights = {"y1": _y(up, before.metrics[name]), "y2": _y(up, after.metrics[name])}
            drawn.append(element("line", class_=f"curve {_colour(after.stage)}{thin}", **ends, **heights))
        for test in points:
            said = (
                f"round {test.round + 1}: {name.replace('_', ' ')} {amount(measure, test.metrics[name])}\n"
                f"{format_seconds(test.virtual_s)} emulated, {format_bytes(test.bytes_sent)} sent"
            )
            place = {"cx": across.percent(along(test)), "cy": _y(up, test.metrics[name])}
            dot = element("circle", element("title", said), r=2 if thin else 3.2, **place, class_=_colour(test.stage))
            drawn.append(dot)
    return drawn


def _colour(stage: int) -> str:
    return f"s{stage % 6}"


# -- lanes -------------------------------------------------------------------------------------------------------------


def lanes(record: Record) -> Markup:
    """A lane for each device over emulated time: rounds that it answered, moments at which it was lost."""
    answers, losses = defaultdict(list), defaultdict(list)
    for answer in record.answers:
        answers[answer.device].append(answer)
    for loss in record.losses:
        losses[loss.device].append(loss)
    away = defaultdict(list)
    for gap in record.away:
        away[gap.device].append(gap)
    devices = record.devices
    if len(devices) > MOST_LANES:
        told = set(sorted(devices, key=lambda d: (-len(losses[d]), -len(answers[d]), d))[:MOST_LANES])
        devices = [device for device in devices if device in told]
    across = seconds_scale(max([record.ended, 1e-9, *(loss.virtual_s for loss in record.losses)]) * 1.005)
    high = _LANE * len(devices)
    asked = Counter(device for event in record.events if event.get("event") == "round" for device in _cohort(event))
    ends = {(stage.index, r): end for stage in record.stages for r, (_, end) in stage.rounds.items()}
    whole = len(record.answers) <= MOST_ANSWERS
    rows = [
        join(
            element("text", device, x=-10, y=_LANE * row + 15, class_="label end"),
            element("line", x1=0, x2="100%", y1=_LANE * row + 11, y2=_LANE * row + 11, class_="lane"),
            _slices(answers[device], across, _LANE * row + 5, whole),
            [_gap(gap, across, _LANE * row + 11) for gap in away[device]],
            [_mark(loss, across, _LANE * row + 11, ends) for loss in losses[device]],
            element(
                "text",
                f"{sum(not answer.late for answer in answers[device])}/{asked[device]}",
                x="100%",
                dx=14,
                y=_LANE * row + 15,
                class_="tick",
            ),
        )
        for row, device in enumerate(devices)
    ]
    starts = [
        element("line", x1=across.percent(s.began), x2=across.percent(s.began), y1=0, y2=high, class_="border")
        for s in record.stages[1:]
    ]
    drawn = join(
        starts,
        rows,
        _ticks(across, high + 2),
        element("text", f"emulated {across.unit}", x="100%", y=high + 36, class_="axis end"),
    )
    left_out = len(record.devices) - len(devices)
    note = f"{plural(left_out, 'more device')} with fewer losses and answers not drawn" if left_out else None
    box = element(
        "div",
        _svg(drawn, high + 42, "devices over emulated time"),
        class_="plot",
        style=f"--left:{_gutter(devices)};--right:4rem",
    )
    return join(box, element("p", note, class_="note") if note else None)


def _cohort(event: Mapping[str, object]) -> list[str]:
    cohort = event.get("cohort")
    return [str(device) for device in cohort] if isinstance(cohort, list) else []


def _slices(answers: Sequence[Answer], across: Scale, y: float, whole: bool) -> list[Markup]:
    """A bar for each answer; where there are too many, one for each stretch without a visible gap."""
    if whole:
        return [_slice(a.began, a.arrival, a, across, y, _told(a)) for a in answers]
    drawn: list[Markup] = []
    began, last, count = 0.0, None, 0
    for answer in [*answers, None]:
        joins = last and answer and answer.stage == last.stage and across.share(answer.began - last.arrival) < 0.002
        if last and not joins:
            drawn.append(_slice(began, last.arrival, last, across, y, plural(count, "answer")))
        if answer and not joins:
            began, count = answer.began, 0
        last, count = answer, count + 1
    return drawn


def _slice(began: float, arrival: float, answer: Answer, across: Scale, y: float, said: str) -> Markup:
    width = f"{100 * (across.share(arrival) - across.share(began)):.4g}%"
    kind = f"{_colour(answer.stage)} late" if answer.late else _colour(answer.stage)
    return element(
        "rect", element("title", said), x=across.percent(began), y=y, width=width, height=12, rx=2, class_=kind
    )


def _told(answer: Answer) -> str:
    said = answer.said
    lines = [
        f"{answer.device}, {said.get('stage')} round {answer.round + 1}" + (", came too late" if answer.late else ""),
        f"{format_seconds(answer.began)} to {format_seconds(answer.arrival)}",
        f"{format_bytes(said.get('bytes_down') or 0)} down, {format_bytes(said.get('bytes_up') or 0)} up",
    ]
    if said.get("peak_memory"):
        lines.append(f"peak {format_bytes(said['peak_memory'])}")
    return "\n".join(lines)


def _gap(gap: Happening, across: Scale, y: float) -> Markup:
    said = f"{gap.device} was not available for {gap.said.get('stage')} round {gap.round + 1}"
    return element("circle", element("title", said), cx=across.percent(gap.virtual_s), cy=y, r=3.5, class_="away")


def _mark(loss: Happening, across: Scale, y: float, ends: Mapping[tuple[int, int], float]) -> Markup:
    """A loss, as the first letter of its cause; a late device is lost when its round ends."""
    cause = str(loss.said.get("cause"))
    at = ends.get((loss.stage, loss.round), loss.virtual_s) if cause == "deadline" else loss.virtual_s
    said = f"{loss.device} lost in {loss.said.get('stage')} round {loss.round + 1}: {sort_of(loss)}"
    place = across.percent(at)
    return element(
        "g",
        element("title", said),
        element("circle", cx=place, cy=y, r=7.5),
        element("text", cause[:1].upper(), x=place, y=y + 3.5),
        class_=f"lost {cause if cause.isalpha() else ''}",
    )


# -- budgets -----------------------------------------------------------------------------------------------------------


def budgets(used: Mapping[str, Sequence[Usage]]) -> Markup:
    """For each device its peak in every stage as a share of what it grants, with the prediction as a tick."""
    devices = list(used)
    if len(devices) > MOST_LANES:
        devices = sorted(devices, key=lambda d: -max((u.share for u in used[d]), default=0.0))[:MOST_LANES]
    tall = max((len(used[device]) for device in devices), default=1)
    row = max(24, 8 * tall + 8)
    high = row * len(devices)
    ticks = tuple((n / 4, f"{25 * n} %") for n in range(5))
    across = Scale(0.0, 1.0, ticks)
    drawn = join(
        [element("line", x1=across.percent(v), x2=across.percent(v), y1=0, y2=high, class_="grid") for v, _ in ticks],
        [_budget(device, used[device], across, row * place, row) for place, device in enumerate(devices)],
        _ticks(across, high + 2),
        element("text", "of the memory that the device grants", x="100%", y=high + 36, class_="axis end"),
    )
    left = len(used) - len(devices)
    box = element(
        "div",
        _svg(drawn, high + 42, "peaks against budgets"),
        class_="plot",
        style=f"--left:{_gutter(devices)};--right:8.4rem",
    )
    return join(
        box, element("p", f"{plural(left, 'device')} with lower shares not drawn", class_="note") if left else None
    )


def _budget(device: str, used: Sequence[Usage], across: Scale, top: float, row: float) -> Markup:
    bar = min(12.0, (row - 8) / max(1, len(used)) - 2)
    first = top + (row - (bar + 2) * len(used)) / 2
    parts = []
    for place, use in enumerate(used):
        y = round(first + place * (bar + 2), 1)
        title = element("title", use.told())
        if use.over:
            parts.append(element("rect", title, x=0, y=y, width="100%", height=bar, rx=1, class_="over"))
        if use.peak:
            width = across.percent(use.peak / use.budget)
            kind = f"{_colour(use.stage)} bar"
            parts.append(element("rect", title, x=0, y=y, width=width, height=bar, rx=1, class_=kind))
        if use.predicted:
            x = across.percent(use.predicted / use.budget)
            parts.append(element("line", title, x1=x, x2=x, y1=y - 1, y2=y + bar + 1, class_="predicted"))
    most = max(used, key=lambda use: use.share, default=None)
    middle = top + row / 2 + 4
    return join(
        element("text", device, x=-10, y=middle, class_="label end"),
        parts,
        element("text", most.short(), x="100%", dx=10, y=middle, class_="tick") if most else None,
    )


def _gutter(devices: Sequence[str]) -> str:
    return f"{min(26, max([len(device) for device in devices], default=4) + 2)}ch"


def _svg(drawn: Markup, height: float, words: str) -> Markup:
    return element("svg", drawn, height=round(height), role="img", aria_label=words)
