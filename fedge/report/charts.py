"""The page's curves: a metric over emulated time and over bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

from fedge.report.drawing import colour, frame, sign, ticks
from fedge.report.markup import Markup, element, join
from fedge.report.record import Record, Tested
from fedge.report.scale import Scale, bytes_scale, seconds_scale, value_scale
from fedge.report.words import amount
from fedge.units import format_bytes, format_seconds

_HEIGHT = 210


def curve(record: Record, measure: str, *, over: str) -> Markup:
    """The metric over emulated time (``over='time'``) or over bytes sent, with the baselines as dashed lines."""
    tests = [test for test in record.tests if measure in test.metrics]
    along = _time if over == "time" else _sent
    end = max([along(test) for test in tests], default=0.0)
    across = seconds_scale(end * 1.02) if over == "time" else bytes_scale(end * 1.02)
    shown, hidden = _baselines(record, measure, [test.metrics[measure] for test in tests])
    values = [test.metrics[name] for test in tests for name in measures(test, measure)]
    up = value_scale(min(values + [value for _, value in shown]), max(values + [value for _, value in shown]))
    unit = f"emulated {across.unit}" if over == "time" else f"{across.unit} sent, up and down, all devices"
    points = [(across.share(along(test)), _y(up, test.metrics[n])) for test in tests for n in measures(test, measure)]
    drawn = join(
        _grid(across, up),
        [_dashed(_y(up, value)) for _, value in shown],
        _lines(tests, measure, across, up, along),
        _exits(tests, measure, up),
        [
            _named(f"{name} {value:.3g}", y, _free(points, y))
            for (name, value), y in zip(shown, _apart(up, shown), strict=True)
        ],
        element("text", unit, x="100%", y=_HEIGHT + 34, class_="axis end"),
    )
    left_out = ", ".join(f"{name} {amount(measure, value)}" for name, value in hidden)
    note = element("p", f"outside of the drawing: {left_out}", class_="note") if left_out else None
    words = f"{measure} over {'emulated time' if over == 'time' else 'bytes sent'}"
    first, last = tests[0].metrics[measure], tests[-1].metrics[measure]
    read = f"{words}: from {amount(measure, first)} to {amount(measure, last)}; every figure is in the table below"
    room = "3.2rem" if any(len(measures(test, measure)) > 1 for test in tests) else ".9rem"
    box = frame(drawn, _HEIGHT + 40, read, left="3.2rem", right=room)
    return element("figure", element("figcaption", words), box, note)


def measures(test: Tested, measure: str) -> list[str]:
    """The measure and, for a model with several exits, that of each exit."""
    return [name for name in test.metrics if name == measure or name.startswith(f"{measure}_exit_")]


def _time(test: Tested) -> float:
    return test.virtual_s


def _sent(test: Tested) -> float:
    return float(test.bytes_sent)


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
    return join(rows, ticks(across, _HEIGHT))


def _y(up: Scale, value: float) -> float:
    return round(8 + (1 - up.share(value)) * (_HEIGHT - 8), 1)


def _apart(up: Scale, shown: Sequence[tuple[str, float]]) -> list[float]:
    """Where the names of values stand so that none covers another."""
    places: dict[int, float] = {}
    last = -99.0
    for index in sorted(range(len(shown)), key=lambda i: _y(up, shown[i][1])):
        last = places[index] = max(_y(up, shown[index][1]) - 4, last + 13)
    return [places[index] for index in range(len(shown))]


def _dashed(y: float) -> Markup:
    return element("line", x1=0, x2="100%", y1=y, y2=y, class_="baseline")


def _free(points: Sequence[tuple[float, float]], y: float) -> float:
    """The end of the drawing, 0 or 1, at which a name at height ``y`` covers fewer points."""
    near = [x for x, height in points if y - 14 < height < y + 6]
    return 0.0 if sum(x < 0.35 for x in near) <= sum(x > 0.65 for x in near) else 1.0


def _named(words: str, y: float, end: float) -> Markup:
    place = {"x": "100%", "dx": -5, "class_": "name end"} if end else {"x": 5, "class_": "name"}
    return element("text", words, y=y, **place)


def _exits(tests: Sequence[Tested], measure: str, up: Scale) -> list[Markup]:
    """The name of each exit beside its last point."""
    last: dict[str, float] = {}
    for test in tests:
        last |= {name: test.metrics[name] for name in measures(test, measure) if name != measure}
    ends = list(last.items())
    return [
        element("text", f"exit {name.rpartition('_')[2]}", x="100%", dx=4, y=y + 7, class_="tick")
        for (name, _), y in zip(ends, _apart(up, ends), strict=True)
    ]


def _lines(
    tests: Sequence[Tested], measure: str, across: Scale, up: Scale, along: Callable[[Tested], float]
) -> list[Markup]:
    """One line for the measure and a thin one for each exit; a stage's part has the stage's colour and sign."""
    drawn = []
    names = sorted({name for test in tests for name in measures(test, measure)}, key=lambda name: name == measure)
    for name in names:
        points = [test for test in tests if name in test.metrics]
        thin = "" if name == measure else " thin"
        for before, after in pairwise(points):
            ends = {"x1": across.percent(along(before)), "x2": across.percent(along(after))}
            heights = {"y1": _y(up, before.metrics[name]), "y2": _y(up, after.metrics[name])}
            drawn.append(element("line", class_=f"curve {colour(after.stage)}{thin}", **ends, **heights))
        for test in points:
            said = (
                f"round {test.round + 1}: {name.replace('_', ' ')} {amount(measure, test.metrics[name])}\n"
                f"{format_seconds(test.virtual_s)} emulated, {format_bytes(test.bytes_sent)} sent"
            )
            place = across.percent(along(test)), _y(up, test.metrics[name])
            drawn.append(sign(test.stage, *place, 2 if thin else 3.2, said))
    return drawn
