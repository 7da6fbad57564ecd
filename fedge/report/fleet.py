"""The page's sections about devices: what they did over time, lost, used, picked, and came to."""

from __future__ import annotations

from typing import Any

from fedge.report.bars import budgets
from fedge.report.files import is_number
from fedge.report.lanes import Lanes
from fedge.report.markup import Markup, element
from fedge.report.parts import (
    folded_table,
    legend_key,
    loss_badge,
    rows_table,
    section,
    size_of,
    stage_keys,
    stage_name,
)
from fedge.report.record import Happening, Record
from fedge.report.usage import usages
from fedge.report.words import numbers, plural, spans, with_variant
from fedge.units import format_bytes, format_seconds

#: What joules go to.
_ENERGY = ("idle", "compute", "radio")


def lanes_section(record: Record) -> Markup | None:
    """A lane for each device."""
    if not record.answers and not record.losses:
        return None
    causes = sorted({str(loss.said.get("cause")) for loss in record.losses})
    keys = [*stage_keys(record), *(legend_key(f"lost: {cause}", loss_badge(cause)) for cause in causes)]
    if any(answer.late for answer in record.answers):
        keys.append(legend_key("answered too late", element("rect", x=1, y=2, width=12, height=10, class_="s0 late")))
    if record.away:
        keys.append(legend_key("not available that round", element("circle", cx=7, cy=7, r=3.5, class_="away")))
    lead = "A bar runs from the question to the answer's arrival; at the right, rounds answered in time of those asked."
    legend = element("div", keys, class_="legend")
    return section("Devices over time", element("p", lead, class_="lead"), legend, Lanes(record).draw())


def losses_section(record: Record) -> Markup | None:
    """What was lost, and why; a device that was lost again in the same way stays one row."""
    out = [pick for pick in record.picks if pick.said.get("event") == "left-out"]
    if not record.answers and not record.losses and not out:
        return None
    causes: dict[str, int] = {}
    for loss in record.losses:
        causes[str(loss.said.get("cause"))] = causes.get(str(loss.said.get("cause")), 0) + 1
    counted = ", ".join(f"{count} by {cause}" for cause, count in sorted(causes.items()))
    times = plural(len(record.losses), "time")
    lead = f"{times} a device was lost: {counted}." if record.losses else "Nothing was lost."
    others = [
        f"{spans({pick.device for pick in out})} stayed out: nothing on offer fitted." if out else None,
        f"{plural(len(record.away), 'time')} a device was not available for a round." if record.away else None,
        f"{plural(len(record.deaths), 'time')} the host lost a device's process." if record.deaths else None,
        *(
            f"{e.said.get('stage')} round {e.round + 1} was {e.said.get('event')}: {e.said.get('detail')}."
            for e in record.empty[:20]
        ),
    ]
    return section(
        "What was lost, and why",
        element("p", lead, class_="lead"),
        [element("p", line, class_="lead") for line in others if line],
        _lost_table(record) if record.losses else None,
        [element("p", _FAULTS, class_="lead"), _fault_table(record)] if record.faults else None,
    )


_FAULTS = "Faults that the file asks for, or that were done by hand, and how they ended:"


def _fault_table(record: Record) -> Markup:
    same: dict[tuple[int, str, str], list[Happening]] = {}
    for fault in record.faults:
        same.setdefault((fault.stage, str(fault.said.get("kind")), str(fault.said.get("ended"))), []).append(fault)
    rows = [
        [
            kind.replace("_", " "),
            stage_name(record.stages[stage]),
            spans({fault.device for fault in faults}),
            numbers(sorted({fault.round + 1 for fault in faults})),
            len(faults),
            ended,
        ]
        for (stage, kind, ended), faults in sorted(same.items())
    ]
    return rows_table("faults", ["fault", "stage", "devices", "rounds", "times", "ended"], rows, numbers=["times"])


def _lost_table(record: Record) -> Markup:
    same: dict[tuple[Any, ...], list[Happening]] = {}
    for loss in record.losses:
        said = loss.said
        method = with_variant(said.get("method"), said.get("variant"))
        key = (loss.stage, loss.device, said.get("cause"), said.get("phase"), method, size_of(said.get("cap")))
        same.setdefault(key, []).append(loss)
    rows = [
        [
            device,
            cause,
            stage_name(record.stages[stage]),
            numbers(loss.round + 1 for loss in losses),
            format_seconds(record.lost_at(losses[0])),
            phase,
            method,
            size_of(max(loss.said.get("peak") or 0 for loss in losses)),
            cap,
            losses[0].said.get("detail") or _late(losses),
        ]
        for (stage, device, cause, phase, method, cap), losses in same.items()
    ]
    names = ["device", "cause", "stage", "rounds", "first at", "phase", "method", "peak", "cap", "detail"]
    return rows_table("losses", names, rows, numbers=["first at", "peak", "cap"], long=["method", "detail"])


def _late(losses: list[Happening]) -> str | None:
    arrival = losses[0].said.get("arrival")
    if not isinstance(arrival, (int, float)):
        return None
    return f"its {'first ' if len(losses) > 1 else ''}answer would have come at {format_seconds(arrival)}"


def budgets_section(record: Record) -> Markup | None:
    """Peaks against budgets, drawn and as a table."""
    used = usages(record)
    if not used:
        return None
    keys = [
        *stage_keys(record, "peak in "),
        legend_key("predicted", element("line", x1=7, x2=7, y1=1, y2=13, class_="predicted")),
    ]
    if any(use.over for uses in used.values() for use in uses):
        killed = element("rect", x=1, y=2, width=12, height=10, class_="over")
        keys.append(legend_key("went over and was killed", killed))
    rows = [
        [
            device,
            use.title,
            size_of(use.budget),
            size_of(use.peak),
            size_of(use.predicted),
            f"{100 * use.share:.1f} %",
            "yes" if use.over else None,
        ]
        for device, uses in used.items()
        for use in uses
    ]
    names = ["device", "stage", "budget", "peak", "predicted", "share", "killed"]
    lead = "Peaks as a share of the memory that each device grants; at the right, the highest one."
    return section(
        "Budgets",
        element("p", lead, class_="lead"),
        element("div", keys, class_="legend"),
        budgets(used),
        folded_table("Budgets and peaks in figures", names, rows, numbers=names[2:6]),
        class_="budget",
    )


def picks_section(record: Record) -> Markup | None:
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
    table = rows_table("picks", names, rows, numbers=["round", "predicted peak"], long=["devices", "picked", "because"])
    return section("What each device picked, and why", table) if rows else None


def devices_section(record: Record) -> Markup | None:
    """Every device's totals."""
    if not record.devices:
        return None
    answers: dict[str, list[Any]] = {device: [] for device in record.devices}
    lines: dict[str, list[Any]] = {device: [] for device in record.devices}
    losses = dict.fromkeys(record.devices, 0)
    for answer in record.answers:
        answers[answer.device].append(answer.said)
    for loss in record.losses:
        losses[loss.device] += 1
    for line in (line for stage in record.stages for line in stage.devices):
        lines[str(line["device"])].append(line)
    personal = any(line.get("personal_accuracy") is not None for of in lines.values() for line in of)
    figures = {"accuracy": "accuracy", **({"own model": "personal_accuracy"} if personal else {})}
    rows = [
        {
            **_granted(record, device),
            "answers": len(answers[device]),
            "losses": losses[device],
            **{told: _figure(lines[device], name) for told, name in figures.items()},
            **_spent(lines[device], answers[device]),
        }
        for device in record.devices
    ]
    names = list(rows[0])
    table = folded_table("Every device in figures", names, [list(row.values()) for row in rows], numbers=names[3:])
    told_by = (
        "Rates: how it is known what a device sustains in arithmetic and memory traffic, and with which software. "
        "Energy: idle is what a device draws all the time, compute and radio what each takes beyond that."
    )
    return element("section", table, element("p", told_by, class_="lead"))


def _granted(record: Record, device: str) -> dict[str, Any]:
    profile, budget = record.budgets.get(device, (None, 0))
    return {"device": device, "profile": profile, "rates": record.rates.get(device), "grants": size_of(budget)}


def _spent(lines: list[dict[str, Any]], answers: list[Any]) -> dict[str, Any]:
    """What a device worked, sent, received and drew, over all stages. answers: what it said with each."""
    return {
        "worked": format_seconds(sum(line.get("virtual_s") or 0 for line in lines)) if lines else None,
        "up": format_bytes(sum(int(said.get("bytes_up") or 0) for said in answers)),
        "down": format_bytes(sum(int(said.get("bytes_down") or 0) for said in answers)),
        "energy": f"{sum(line.get('energy_j') or 0 for line in lines):,.1f} J" if lines else None,
        **{part: _joules(lines, part) for part in _ENERGY},
    }


def _joules(lines: list[dict[str, Any]], part: str) -> str | None:
    """A device's joules of one kind in all stages; None where a run of an older version doesn't tell."""
    parts = [line["energy_parts"] for line in lines if isinstance(line.get("energy_parts"), dict)]
    told = [of[part] for of in parts if is_number(of.get(part))]
    return f"{sum(told):,.1f} J" if told else None


def _figure(lines: list[dict[str, Any]], name: str) -> str | None:
    """A device's figure of its last stage."""
    value = lines[-1].get(name) if lines else None
    return None if value is None else f"{value:.4f}"
