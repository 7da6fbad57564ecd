"""``report.html``: one page that tells a run from its folder alone, and asks nothing of any network."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from fedge.report.charts import budgets, curve, lanes
from fedge.report.files import write_beside
from fedge.report.markup import Markup, element
from fedge.report.parts import css_word, legend_key, loss_badge, rows_table, section, size_of, stage_keys, stage_name
from fedge.report.record import Happening, Record
from fedge.report.trace import write_trace
from fedge.report.usage import usages
from fedge.report.words import amount, metric, plural, spans, with_variant
from fedge.units import format_bytes, format_seconds

_SAFE = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def write_report(run: Path) -> Path:
    """Write a run's ``report.html`` and ``trace.json``; returns the page's path. MissingError when it isn't a run."""
    record = Record(run)
    write_trace(record)
    return write_beside(run / "report.html", page(record))


def page(record: Record) -> str:
    """The whole page."""
    style = Markup(files("fedge.report").joinpath("page.css").read_text(encoding="utf-8"))
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="Content-Security-Policy", content=_SAFE),
        element("title", f"{record.name}: {record.status}"),
        element("style", style),
    )
    body = element(
        "body",
        element(
            "main",
            _headline(record),
            _trouble(record),
            _figures(record),
            _learning(record),
            _stages(record),
            _lanes(record),
            _losses(record),
            _budgets(record),
            _picks(record),
            _devices(record),
            _exports(record),
            _limits(record),
            _facts(record),
            _settings(record),
        ),
    )
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"


# -- what it came to ---------------------------------------------------------------------------------------------------


def _headline(record: Record) -> Markup:
    data = record.settings.get("data")
    about = [
        f"model {_name(record.settings.get('model'))}",
        f"data {data.get('dataset') if isinstance(data, Mapping) else data}",
        plural(len(record.devices), "device"),
        f"seed {record.summary.get('seed', record.settings.get('seed'))}",
        _when(record),
    ]
    return element(
        "header",
        element("h1", record.name, element("span", record.status, class_=f"pill {css_word(record.status)}")),
        element("p", " · ".join(part for part in about if part), class_="lead"),
    )


def _trouble(record: Record) -> Markup | None:
    if record.summary.get("error"):
        return section("How it ended", element("p", record.summary["error"]), class_="error")
    if record.status == "interrupted":
        return section("Interrupted", element("p", "Go on with ", element("code", f"fedge up --resume {record.path}")))
    if record.status == "running":
        return section("Still running", element("p", "This is how far it had got when the page was written."))
    return None


def _figures(record: Record) -> Markup:
    measure = record.measure()
    closed = [stage.closed for stage in record.stages if stage.closed]
    sent = {
        way: sum(int(line.get(f"bytes_{way}") or 0) for line in (*record.metrics,) if line.get("arrival") is not None)
        for way in ("up", "down")
    }
    shown: list[tuple[str, str]] = []
    told = [stage["metrics"] for stage in closed if measure in stage.get("metrics", {})]
    told = told or [test.metrics for test in record.tests if measure in test.metrics]
    if measure and told:
        shown.append((amount(measure, told[-1][measure]), measure))
        if "worst_device_accuracy" in told[-1]:
            shown.append((amount("", told[-1]["worst_device_accuracy"]), "worst device's accuracy"))
    shown.append((format_seconds(record.ended), "emulated time"))
    shown += [(format_bytes(sent[way]), f"sent {way}") for way in ("up", "down")]
    used = [use.peak for uses in usages(record).values() for use in uses]
    if any(used):
        shown.append((format_bytes(max(used)), "highest peak"))
    if closed:
        shown.append((f"{sum(stage.get('energy_j') or 0 for stage in closed):,.0f} J", "energy, all devices"))
    lost = len({loss.device for loss in record.losses})
    shown.append((f"{lost} of {len(record.devices)}", "devices lost"))
    return element("div", [element("div", element("b", v), element("span", n)) for v, n in shown], class_="figures")


def _learning(record: Record) -> Markup | None:
    measure = record.measure()
    tests = [test for test in record.tests if measure in test.metrics]
    if measure is None or not tests:
        return section("Learning", element("p", "Nothing was tested.", class_="note")) if record.answers else None
    drawn = element("div", curve(record, measure, over="time"), curve(record, measure, over="bytes"), class_="two")
    thin = any(name.startswith(f"{measure}_exit_") for test in tests for name in test.metrics)
    entries = [*stage_keys(record)]
    if record.summary.get("baselines"):
        entries.append(
            legend_key("baseline on the same rows", element("line", x1=0, x2=14, y1=7, y2=7, class_="baseline"))
        )
    note = element("p", "Thin lines are the model's single exits.", class_="note") if thin else None
    rows = [
        [line.get("name"), metric(line), line.get("detail")]
        for line in record.summary.get("baselines") or []
        if isinstance(line, Mapping)
    ]
    beside = rows_table(["baseline", "metric", "what it is"], rows, long=["what it is"]) if rows else None
    return section("Learning", element("div", entries, class_="legend"), drawn, note, beside)


def _stages(record: Record) -> Markup | None:
    rows = []
    for stage in record.stages:
        closed = stage.closed or {}
        rows.append(
            [
                stage_name(stage),
                stage.method,
                f"{len(stage.rounds)}/{stage.planned}" if stage.planned else len(stage.rounds),
                metric(closed.get("metrics", {})) if closed else "not finished",
                format_seconds(stage.ended - stage.began),
                format_bytes(closed.get("bytes_up", _sent(record, stage.index, "bytes_up"))),
                format_bytes(closed.get("bytes_down", _sent(record, stage.index, "bytes_down"))),
                format_bytes(closed["peak_memory"]) if closed.get("peak_memory") else None,
                f"{closed['energy_j']:,.1f} J" if closed.get("energy_j") is not None else None,
                sum(loss.stage == stage.index for loss in record.losses),
            ]
        )
    names = ["stage", "method", "rounds", "metric", "emulated", "up", "down", "peak", "energy", "losses"]
    return section("Stages", rows_table(names, rows, numbers=names[4:])) if rows else None


def _sent(record: Record, stage: int, way: str) -> int:
    return sum(int(answer.said.get(way) or 0) for answer in record.answers if answer.stage == stage)


# -- the devices -------------------------------------------------------------------------------------------------------


def _lanes(record: Record) -> Markup | None:
    if not record.answers and not record.losses:
        return None
    causes = sorted({str(loss.said.get("cause")) for loss in record.losses})
    keys = [*stage_keys(record), *(legend_key(f"lost: {cause}", loss_badge(cause)) for cause in causes)]
    if any(answer.late for answer in record.answers):
        keys.append(legend_key("answered too late", element("rect", x=1, y=2, width=12, height=10, class_="s0 late")))
    if record.away:
        keys.append(legend_key("not available that round", element("circle", cx=7, cy=7, r=3.5, class_="away")))
    lead = "A bar runs from the question to the answer's arrival; at the right, rounds answered in time of those asked."
    return section(
        "Devices over time", element("p", lead, class_="lead"), element("div", keys, class_="legend"), lanes(record)
    )


def _losses(record: Record) -> Markup | None:
    out = [pick for pick in record.picks if pick.said.get("event") == "left-out"]
    if not record.answers and not record.losses and not out:
        return None
    rows = [
        [
            format_seconds(loss.virtual_s),
            loss.said.get("stage"),
            loss.round + 1,
            loss.device,
            loss.said.get("cause"),
            loss.said.get("phase"),
            with_variant(loss.said.get("method"), loss.said.get("variant")),
            size_of(loss.said.get("peak")),
            size_of(loss.said.get("cap")),
            loss.said.get("detail") or _late(loss),
        ]
        for loss in record.losses
    ]
    names = ["emulated", "stage", "round", "device", "cause", "phase", "method", "peak", "cap", "detail"]
    causes: dict[str, int] = {}
    for loss in record.losses:
        causes[str(loss.said.get("cause"))] = causes.get(str(loss.said.get("cause")), 0) + 1
    counted = ", ".join(f"{count} by {cause}" for cause, count in sorted(causes.items()))
    lead = f"{plural(len(rows), 'time')} a device was lost: {counted}." if rows else "Nothing was lost."
    others = [
        f"{plural(len(record.away), 'time')} a device was not available for a round." if record.away else None,
        f"{plural(len(record.deaths), 'time')} the host lost a device's process." if record.deaths else None,
        *(
            f"{e.said.get('stage')} round {e.round + 1} was {e.said.get('event')}: {e.said.get('detail')}."
            for e in record.empty[:20]
        ),
    ]
    stayed = f"{spans({pick.device for pick in out})} stayed out: nothing on offer fitted." if out else None
    return section(
        "What was lost, and why",
        element("p", lead, class_="lead"),
        [element("p", line, class_="lead") for line in (stayed, *others) if line],
        rows_table(names, rows, numbers=["emulated", "round", "peak", "cap"], long=["method", "detail"])
        if rows
        else None,
    )


def _late(loss: Happening) -> str | None:
    arrival = loss.said.get("arrival")
    return f"its answer would have come at {format_seconds(arrival)}" if isinstance(arrival, (int, float)) else None


def _budgets(record: Record) -> Markup | None:
    used = usages(record)
    if not used:
        return None
    keys = [
        *stage_keys(record, "peak in "),
        legend_key("predicted", element("line", x1=7, x2=7, y1=1, y2=13, class_="predicted")),
    ]
    if any(use.over for uses in used.values() for use in uses):
        keys.append(
            legend_key("went over and was killed", element("rect", x=1, y=2, width=12, height=10, class_="over"))
        )
    lead = "Peaks as a share of the memory that each device grants; at the right, the highest one."
    return section(
        "Budgets",
        element("p", lead, class_="lead"),
        element("div", keys, class_="legend"),
        budgets(used),
        class_="budget",
    )


def _picks(record: Record) -> Markup | None:
    """Who picked what, and why; devices that picked the same for the same reason share a row."""
    groups: dict[tuple[Any, ...], list[str]] = {}
    for pick in record.picks:
        said = pick.said
        what = with_variant(said.get("method"), said.get("variant")) if said.get("event") == "picked" else "stays out"
        key = (pick.stage, pick.round, what, size_of(said.get("predicted_peak")), said.get("reason"))
        groups.setdefault(key, []).append(pick.device)
    rows = [
        [stage_name(record.stages[stage]), round + 1, spans(devices), *rest]
        for (stage, round, *rest), devices in sorted(groups.items(), key=lambda pair: (pair[0][:2], pair[1]))
    ]
    names = ["stage", "round", "devices", "picked", "predicted peak", "because"]
    table = rows_table(names, rows, numbers=["round", "predicted peak"], long=["devices", "picked", "because"])
    return section("What each device picked, and why", table) if rows else None


def _devices(record: Record) -> Markup | None:
    rows = []
    for device in record.devices:
        lines = [line for stage in record.stages for line in stage.devices if line.get("device") == device]
        answers = [answer for answer in record.answers if answer.device == device]
        profile, budget = record.budgets.get(device, (None, 0))
        rows.append(
            [
                device,
                profile,
                size_of(budget),
                len(answers),
                sum(loss.device == device for loss in record.losses),
                f"{lines[-1]['accuracy']:.4f}" if lines and lines[-1].get("accuracy") is not None else None,
                format_seconds(sum(line.get("virtual_s") or 0 for line in lines)) if lines else None,
                format_bytes(sum(int(answer.said.get("bytes_up") or 0) for answer in answers)),
                format_bytes(sum(int(answer.said.get("bytes_down") or 0) for answer in answers)),
                f"{sum(line.get('energy_j') or 0 for line in lines):,.1f} J" if lines else None,
            ]
        )
    names = ["device", "profile", "grants", "answers", "losses", "accuracy", "worked", "up", "down", "energy"]
    table = rows_table(names, rows, numbers=names[2:])
    return (
        element("section", element("details", element("summary", "Every device in figures"), table)) if rows else None
    )


# -- the rest ----------------------------------------------------------------------------------------------------------


def _exports(record: Record) -> Markup | None:
    rows = [
        [
            line.get("target"),
            line.get("precision"),
            size_of(line.get("bytes")),
            f"{line['accuracy']:.4f}" if isinstance(line.get("accuracy"), (int, float)) else None,
            f"{line['parity_max_abs']:.1e}" if isinstance(line.get("parity_max_abs"), (int, float)) else None,
            element("code", line.get("file")),
        ]
        for line in record.summary.get("exports") or []
        if isinstance(line, Mapping)
    ]
    names = ["export", "precision", "size", "accuracy", "largest difference", "file"]
    return section("Exports", rows_table(names, rows, numbers=names[2:5])) if rows else None


def _limits(record: Record) -> Markup | None:
    limits, degraded = record.summary.get("limits") or {}, record.summary.get("degraded") or []
    if not limits and not degraded:
        return None
    held = ", ".join(f"{what} by {how}" for what, how in limits.items() if how) if isinstance(limits, Mapping) else ""
    return section(
        "Limits",
        element("p", f"Held: {held}.") if held else None,
        element("p", "Not enforced:") if degraded else element("p", "Everything that was asked for was enforced."),
        element("ul", [element("li", line) for line in degraded]) if degraded else None,
    )


def _facts(record: Record) -> Markup:
    wall, host = record.summary.get("wall_s"), record.host
    facts = {
        "folder": element("code", record.path),
        "model sha256": element("code", record.summary["model_sha256"]) if record.summary.get("model_sha256") else None,
        "clock": record.summary.get("clock"),
        "wall time": format_seconds(wall) if isinstance(wall, (int, float)) and record.status != "running" else None,
        "host": ", ".join(str(p) for p in (host.get("platform"), host.get("cores") and f"{host['cores']} cores") if p),
        "versions": ", ".join(f"{n} {host[n]}" for n in ("fedge", "torch") if host.get(n)),
    }
    return section("This run", element("dl", [[element("dt", n), element("dd", v)] for n, v in facts.items() if v]))


def _settings(record: Record) -> Markup:
    folded = element(
        "details", element("summary", "The federation, with every default"), element("pre", record.resolved)
    )
    return element("section", folded)


def _name(given: object) -> str:
    return str(given.get("name")) if isinstance(given, Mapping) else str(given)


def _when(record: Record) -> str | None:
    return record.when.strftime("%Y-%m-%d %H:%M %Z").strip() if record.when else None
