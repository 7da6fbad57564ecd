"""A snapshot of a run as the few lines of the live view. Pure: a value and a width in, lines out."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from fedge.report.snapshot import STATES, Snapshot
from fedge.report.words import amount, plural, spans
from fedge.units import format_seconds

_STEPS = "▁▂▃▄▅▆▇█"
_STYLES = {"computing": "green", "sending": "cyan", "lost": "red", "picking": "yellow"}
_PHASES = {
    "preparing": "preparing",
    "planning": "planning",
    "baselines": "baselines",
    "rounds": "",
    "closing": "closing the stage",
    "ended": "ended",
}
#: A bar or a curve shorter than this says nothing; a longer one than that says no more.
_SHORTEST, _LONGEST = 8, 40

Part = tuple[str, str]


def picture(snapshot: Snapshot | None, passing: str, columns: int, now: float) -> list[Text]:
    """The view's lines, none wider than ``columns``; ``passing`` is the newest line of those that don't last.

    ``now``: seconds of the epoch; elapsed and remaining time are carried on to it. What finds no room on a line is
    left out whole, the least important first, and only a name may be shortened, with an ellipsis.
    """
    if snapshot is None:
        return [_line([("fedge is starting", "bold")], columns)]
    lines = [_where(snapshot, columns)]
    if snapshot.phase in ("preparing", "planning"):
        lines += [_line([(passing, "dim")], columns)] if passing else []
    if snapshot.stage is not None and snapshot.devices:
        lines.append(_devices(snapshot, columns))
        busy = _busy(snapshot, columns)
        lines += [busy] if busy is not None else []
    if snapshot.curve:
        lines.append(_figure(snapshot, columns))
    lines.append(_times(snapshot, columns, now))
    return lines


def sparkline(values: Sequence[float], columns: int) -> str:
    """The values as one row of bars of eight heights, lowest to highest; the last of each share when there are many."""
    if len(values) > columns:
        values = [values[(at + 1) * len(values) // columns - 1] for at in range(columns)]
    low, high = min(values, default=0.0), max(values, default=0.0)
    if high == low:
        return _STEPS[3] * len(values)
    return "".join(_STEPS[round((value - low) / (high - low) * (len(_STEPS) - 1))] for value in values)


def _where(snapshot: Snapshot, columns: int) -> Text:
    if snapshot.stage is None:
        return _line([(snapshot.federation, "bold"), (_PHASES[snapshot.phase], "")], columns)
    name = f"{snapshot.stage} · {snapshot.method}" if snapshot.method else snapshot.stage
    parts: list[Part] = [(name, "bold"), (f"round {snapshot.round} of {snapshot.rounds}", "")]
    if snapshot.phase != "rounds":
        parts.append((_PHASES[snapshot.phase], ""))
    parts.append((f"stage {snapshot.stage_index + 1} of {snapshot.stages}", "dim"))
    line = _line(parts, columns)
    room = min(_LONGEST, columns - cell_len(line.plain) - 2)
    if room >= _SHORTEST and snapshot.rounds:
        done = max(0, snapshot.round - (snapshot.phase == "rounds"))
        full = done * room // snapshot.rounds
        line.append("  ").append("━" * full, "green").append("━" * (room - full), "bright_black")
    return line


def _devices(snapshot: Snapshot, columns: int) -> Text:
    counts = {state: snapshot.count(state) for state in STATES}
    parts: list[Part] = [
        (f"{count} {state}", _STYLES.get(state, "") if count else "dim")
        for state, count in counts.items()
        if count or state != "picking"
    ]
    return _line([(plural(len(snapshot.devices), "device") + ":", ""), *parts], columns, " ", ", ")


def _busy(snapshot: Snapshot, columns: int) -> Text | None:
    """Who computes now, by name, as far as the line goes."""
    names = [device.name for device in snapshot.devices if device.state == "computing"]
    if not names:
        return None
    head = "computing: "
    room = columns - cell_len(head)
    return Text(head, "dim").append(shortened(spans(names), room), "green") if room >= _SHORTEST else None


def _figure(snapshot: Snapshot, columns: int) -> Text:
    measure = snapshot.measure or "figure"
    values = snapshot.curve
    best = (min if measure in ("perplexity", "loss") else max)(values)
    parts: list[Part] = [(f"{measure} {amount(measure, values[-1])}", "bold")]
    if len(values) > 1:
        parts.append((f"best {amount(measure, best)}", ""))
    line = _line(parts, columns)
    room = min(_LONGEST, columns - cell_len(line.plain) - 2)
    if len(values) > 1 and room >= _SHORTEST:
        line.append("  ").append(sparkline(values, room), "cyan")
    return line


def _times(snapshot: Snapshot, columns: int, now: float) -> Text:
    since = max(0.0, now - snapshot.at) if snapshot.phase != "ended" else 0.0
    parts: list[Part] = [(f"{_seconds(snapshot.elapsed_s + since)} elapsed", "")]
    if snapshot.stage is not None:
        if snapshot.left_s is not None and snapshot.phase != "ended":
            parts.append((f"about {_seconds(max(1.0, snapshot.left_s - since))} to the end", ""))
        parts.append((f"{format_seconds(snapshot.virtual_s)} emulated", ""))
    return _line(parts, columns)


def _seconds(duration: float) -> str:
    """Whole seconds: tenths that jump four times a second are no information."""
    minutes, seconds = divmod(int(duration), 60)
    if minutes >= 60:
        return format_seconds(duration)
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"


def _line(parts: Sequence[Part], columns: int, first: str = "  ", gap: str = "  ") -> Text:
    """The parts side by side as far as there is room: a part that doesn't fit is left out with all after it.

    first: what stands between the first and the second, gap: between the others. The first is there in any case, cut
    with an ellipsis if it has to be.
    """
    line = Text(no_wrap=True)
    for at, (words, style) in enumerate(parts):
        between = "" if at == 0 else first if at == 1 else gap
        if cell_len(line.plain + between + words) > columns:
            if at == 0:
                line.append(shortened(words, columns), style)
            break
        line.append(between).append(words, style)
    return line


def shortened(words: str, columns: int) -> str:
    """The words, cut with an ellipsis when they are wider than ``columns``."""
    return set_cell_size(words, max(0, columns - 1)).rstrip(" ,…") + "…" if cell_len(words) > columns else words
