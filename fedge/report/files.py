"""Reading what a run's folder holds, and writing into it. What isn't of its kind there is as if it weren't there."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedge.errors import FedgeError

Json = dict[str, Any]

_NUMBERS = (
    "time virtual_s began arrival bytes_up bytes_down bytes peak_memory predicted_peak predicted_peak_memory peak cap "
    "budget_memory energy_j wall_s behind_s slowdown accuracy loss perplexity parity_max_abs cores rounds"
)
_COUNTS = "round stage_index"
_WORDS = "event stage method device cause phase reason detail name status target file precision error clock"
_MAPS = "variant counts seconds metrics limits behind"
_LISTS = "cohort stages exports baselines degraded"
#: The greatest number that is believed: more bytes or microseconds than any run has.
_GREATEST = 1e18


def read_text(path: Path) -> str:
    """A file's text, empty when it isn't there; FedgeError when it can't be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise FedgeError(f"{path} can't be read: {error.strerror or error}") from error


def read_json(path: Path) -> Json:
    """A file's JSON object, empty when there is none."""
    return _object(read_text(path)) or {}


def read_lines(path: Path) -> list[Json]:
    """The records of a ``.jsonl`` file, without those that a kill cut short."""
    return [record for line in read_text(path).splitlines() if (record := _object(line)) is not None]


def write_beside(path: Path, text: str) -> Path:
    """Write a file so that it is the old one or the whole new one. FedgeError, naming it, where that can't be."""
    try:
        handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as out:
                out.write(text)
            os.chmod(beside, 0o644)
            os.replace(beside, path)
        except BaseException:
            Path(beside).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise FedgeError(f"{path} can't be written: {error.strerror or error}") from error
    return path


def is_number(value: Any) -> bool:
    """Whether it is a number that can be drawn."""
    plain = isinstance(value, (int, float)) and not isinstance(value, bool)
    return plain and math.isfinite(value) and abs(value) <= _GREATEST


def _object(text: str) -> Json | None:
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return _fitting(found) if isinstance(found, dict) else None


def _fitting(record: Json) -> Json:
    """A record without what isn't of its kind: None stays, a word where a number should be goes."""
    return {
        name: _inside(value) for name, value in record.items() if value is None or _KINDS.get(name, _anything)(value)
    }


def _inside(value: Any) -> Any:
    if isinstance(value, dict):
        return _fitting(value)
    if isinstance(value, list):
        return [_inside(part) for part in value if part is not None]
    return value


def _anything(value: Any) -> bool:
    return not isinstance(value, float) or is_number(value)


def _count(value: Any) -> bool:
    return is_number(value) and isinstance(value, int) and value >= 0


_KINDS: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(_NUMBERS.split(), is_number),
    **dict.fromkeys(_COUNTS.split(), _count),
    **{name: lambda value: isinstance(value, str) for name in _WORDS.split()},
    **{name: lambda value: isinstance(value, dict) for name in _MAPS.split()},
    **{name: lambda value: isinstance(value, list) for name in _LISTS.split()},
}
