"""Results that outlive a session: one JSON file for each method, beside the source, so that fresh rows are not run
again. A record goes with the hash of its source, data and versions; the verdict is taken anew each time."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from tools.claims.claim import Claim, Seen
from tools.claims.source import fingerprint

FOLDER = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Result:
    """What a claim's measuring gave: figures by name, a value for each seed; processor seconds of all seeds."""

    fingerprint: str
    figures: dict[str, list[float]]
    seconds: float

    def holds(self, claim: Claim) -> bool:
        """The claim's verdict on these figures."""
        return bool(claim.holds(Seen(self.figures)))


def find(claim: Claim, folder: Path = FOLDER) -> tuple[Result | None, bool]:
    """The stored result, if any, and whether it is fresh: measured by what the source, data and versions are now."""
    record = _read(claim, folder).get(claim.name)
    if record is None:
        return None, False
    result = Result(**record)
    return result, result.fingerprint == fingerprint(claim)


def keep(claim: Claim, result: Result, folder: Path = FOLDER) -> None:
    """Write a result beside the others of its method; the file is whole or as it was before."""
    folder.mkdir(parents=True, exist_ok=True)
    records = {**_read(claim, folder), claim.name: asdict(result)}
    path = _path(claim, folder)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(json.dumps(dict(sorted(records.items())), indent=1) + "\n", encoding="utf-8")
    beside.replace(path)


def _read(claim: Claim, folder: Path) -> dict[str, dict[str, object]]:
    path = _path(claim, folder)
    found: dict[str, dict[str, object]] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def _path(claim: Claim, folder: Path) -> Path:
    return folder / f"{claim.method.replace(':', '-')}.json"
