"""How the page and the tables say things: a method with its variant, a figure, a loss."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fedge.report.record import Happening
from fedge.units import format_bytes


def with_variant(method: object, variant: object) -> str:
    """'lora (rank=4)'."""
    if not method:
        return "–"
    if not isinstance(variant, Mapping) or not variant:
        return str(method)
    return f"{method} ({', '.join(f'{name}={_short(value)}' for name, value in variant.items())})"


def amount(measure: str, value: float) -> str:
    """A metric's value with as many digits as say something."""
    return f"{value:.2f}" if measure == "perplexity" else f"{value:.4f}"


def metric(metrics: Mapping[str, Any]) -> str:
    """The figure that a stage is told by: 'accuracy 0.9312'."""
    for name in ("perplexity", "accuracy"):
        if isinstance(metrics.get(name), (int, float)):
            return f"{name} {amount(name, metrics[name])}"
    return "–"


def of_devices(metrics: Mapping[str, Any], whose: str) -> str | None:
    """The devices' own figures in the mean, and the worst one's: '0.8912, worst 0.7010'.

    whose: 'device', the common model on each device's own mix or rows, or 'personal', each device's own model.
    """
    mean, worst = (metrics.get(f"{word}_{whose}_accuracy") for word in ("mean", "worst"))
    if not isinstance(mean, (int, float)) or not isinstance(worst, (int, float)):
        return None
    return f"{amount('', mean)}, worst {amount('', worst)}"


def plural(count: int, noun: str) -> str:
    """'1 device', '3 devices'."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def spans(devices: Iterable[str]) -> str:
    """'box-00, phone-00 … phone-07': three and more that follow each other are named by the first and the last."""
    runs: list[list[str]] = []
    for device in sorted(devices):
        if runs and _following(runs[-1][-1]) == device:
            runs[-1].append(device)
        else:
            runs.append([device])
    return ", ".join(f"{run[0]} … {run[-1]}" if len(run) > 2 else ", ".join(run) for run in runs)


def numbers(given: Iterable[int]) -> str:
    """'2, 4 … 7': three and more that follow each other are told by the first and the last."""
    rows: list[list[int]] = []
    for number in sorted(set(given)):
        if rows and rows[-1][-1] + 1 == number:
            rows[-1].append(number)
        else:
            rows.append([number])
    return ", ".join(f"{row[0]} … {row[-1]}" if len(row) > 2 else ", ".join(map(str, row)) for row in rows)


def _following(device: str) -> str | None:
    group, dash, number = device.rpartition("-")
    return f"{group}{dash}{int(number) + 1:0{len(number)}}" if number.isascii() and number.isdigit() else None


def sort_of(loss: Happening) -> str:
    """Why a device was lost, in a line: 'memory in backward with lora (rank=8), peak 9.1 MiB, cap 9 MiB'."""
    said = loss.said
    words = str(said.get("cause"))
    if said.get("phase"):
        words += f" in {said['phase']}"
    if said.get("method"):
        words += f" with {with_variant(said['method'], said.get('variant'))}"
    if said.get("peak"):
        words += f", peak {format_bytes(said['peak'])}"
    if said.get("cap"):
        words += f", cap {format_bytes(said['cap'])}"
    return words


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
