"""``report.html``: one page that tells a run from its folder alone, and asks nothing of any network."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

from fedge.report.charts import curve, measures
from fedge.report.closing import behind
from fedge.report.drawing import sign
from fedge.report.files import write_beside
from fedge.report.fleet import budgets_section, devices_section, lanes_section, losses_section, picks_section
from fedge.report.markup import Markup, element
from fedge.report.parts import css_word, folded_table, legend_key, rows_table, section, size_of, stage_name
from fedge.report.record import Record
from fedge.report.trace import write_trace
from fedge.report.usage import usages
from fedge.report.words import amount, metric, plural
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
            lanes_section(record),
            losses_section(record),
            budgets_section(record),
            picks_section(record),
            devices_section(record),
            _exports(record),
            _limits(record),
            _remote(record),
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
        if "mean_personal_accuracy" in told[-1]:
            shown.append((amount("", told[-1]["mean_personal_accuracy"]), "devices' own models, mean"))
            shown.append((amount("", told[-1]["worst_personal_accuracy"]), "worst own model"))
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
    entries = [legend_key(stage.title, sign(stage.index, 7, 7, 4.2)) for stage in record.stages]
    if record.summary.get("baselines"):
        line = element("line", x1=0, x2=14, y1=7, y2=7, class_="baseline")
        entries.append(legend_key("baseline on the same rows", line))
    rows = [
        [line.get("name"), metric(line), line.get("detail")]
        for line in record.summary.get("baselines") or []
        if isinstance(line, Mapping)
    ]
    names = ["baseline", "metric", "what it is"]
    beside = rows_table("baselines", names, rows, long=["what it is"]) if rows else None
    return section("Learning", element("div", entries, class_="legend"), drawn, _tests(record, measure), beside)


def _tests(record: Record, measure: str) -> Markup:
    """What the curves show, in figures."""
    shown = list(dict.fromkeys(name for test in record.tests for name in measures(test, measure)))
    rows = [
        [
            stage_name(record.stages[test.stage]),
            test.round + 1,
            format_seconds(test.virtual_s),
            format_bytes(test.bytes_sent),
            *(amount(measure, test.metrics[name]) if name in test.metrics else None for name in shown),
        ]
        for test in record.tests
    ]
    names = ["stage", "round", "emulated", "sent", *(name.replace("_", " ") for name in shown)]
    return folded_table("The curves in figures", names, rows, numbers=names[1:])


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
    return section("Stages", rows_table("stages", names, rows, numbers=names[4:])) if rows else None


def _sent(record: Record, stage: int, way: str) -> int:
    return sum(int(answer.said.get(way) or 0) for answer in record.answers if answer.stage == stage)


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
    return section("Exports", rows_table("exports", names, rows, numbers=names[2:5])) if rows else None


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
        [element("p", f"{line[0].upper()}{line[1:]}.") for line in behind(record.summary)],
    )


def _remote(record: Record) -> Markup | None:
    """Devices on other machines: how often each joined, what passed, and what was refused of it."""
    told = record.summary.get("remote")
    if not isinstance(told, Mapping):
        return None
    rows = [
        [
            name,
            line.get("joined"),
            format_bytes(line.get("received", 0)),
            format_bytes(line.get("sent", 0)),
            ", ".join(f"{kind} {count}" for kind, count in (line.get("refused") or {}).items()) or "nothing",
            line.get("ignored"),
        ]
        for name, line in (told.get("devices") or {}).items()
    ]
    away = told.get("turned_away") or {}
    said = f"Listened at {told.get('address')}. Turned away: {away.get('key', 0)} by an unlisted key, "
    said += f"{away.get('handshake', 0)} in the handshake, {away.get('often', 0)} that came too often."
    names = ["device", "joined", "received", "sent", "refused", "ignored"]
    numbers = ["joined", "received", "sent", "ignored"]
    return section("On other machines", element("p", said), rows_table("remote devices", names, rows, numbers=numbers))


def _facts(record: Record) -> Markup:
    wall, host = record.summary.get("wall_s"), record.host
    machine = (host.get("platform"), host.get("processor"), host.get("cores") and f"{host['cores']} cores")
    facts = {
        "folder": element("code", record.path),
        "model sha256": element("code", record.summary["model_sha256"]) if record.summary.get("model_sha256") else None,
        "clock": record.summary.get("clock"),
        "wall time": format_seconds(wall) if isinstance(wall, (int, float)) and record.status != "running" else None,
        "host": ", ".join(str(part) for part in machine if part),
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
