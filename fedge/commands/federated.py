"""``fedge infer RUN --federated``: devices answer together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedge.commands.parameters import print_json, progress
from fedge.errors import MissingError
from fedge.report.tables import table
from fedge.units import format_bytes, format_seconds


def infer_federated(place: Path, *, rows: int, deadline: str | None, best_effort: bool, as_json: bool) -> None:
    """Let the devices of the run that ``place`` is, or lies in, answer its test rows, and print how they did."""
    from fedge.run.federated import Question, ask
    from fedge.run.launcher import Options
    from fedge.units import parse_seconds

    run = next((each for each in (place, *place.resolve().parents) if (each / "resolved.yaml").is_file()), None)
    if run is None:
        raise MissingError(f"{place} is no run's folder", hint="give RUN, or RUN/export/TARGET")
    seconds = None if deadline is None else parse_seconds(deadline, zero=False)
    options = Options(best_effort=best_effort)
    found = ask(run, Question(rows=rows, deadline=seconds), options, progress)
    if as_json:
        print_json(found)
    else:
        _tables(found["infer"][0], found["devices"])


def _tables(one: Mapping[str, Any], devices: Sequence[Mapping[str, Any]]) -> None:
    table(
        [
            {
                **line,
                "accuracy": _four(line["accuracy"]),
                "peak": format_bytes(line["peak_memory"]),
                "up": format_bytes(line["bytes_up"]),
                "down": format_bytes(line["bytes_down"]),
                "time": format_seconds(line["virtual_s"]),
                "energy": f"{line['energy_j']:.3g} J",
                "lost": line["lost"]["cause"] if line["lost"] else None,
            }
            for line in devices
        ],
        ["device", "profile", "exit", "answered", "accuracy", "peak", "up", "down", "time", "energy", "lost"],
        "each device alone",
    )
    lines = [("queries", f"{one['answered']} of {one['queries']} answered")]
    lines += [(f"accuracy of the average, {how}", _four(one[f"accuracy_{how}"])) for how in ("uniform", "confidence")]
    alone = {name: value for name, value in one.items() if name.startswith("accuracy_exit_")}
    lines += [(f"accuracy of exit {name.rpartition('_')[2]} alone", _four(value)) for name, value in alone.items()]
    if one["round_s_p50"] is not None:
        spread = ", ".join(f"p{at} {format_seconds(one[f'round_s_p{at}'])}" for at in (50, 90, 95))
        lines.append(("a round of queries, emulated", spread))
    lines.append(("bytes down, up", f"{format_bytes(one['bytes_down'])}, {format_bytes(one['bytes_up'])}"))
    lines.append(("energy of all devices", f"{one['energy_j']:.3g} J"))
    table([{"figure": name, "value": value} for name, value in lines], ["figure", "value"], "together")


def _four(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
