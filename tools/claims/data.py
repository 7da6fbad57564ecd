"""Where the claims' data lies: bundled with scikit-learn, or in the developers' shared folder of real data."""

from __future__ import annotations

import os
from pathlib import Path

BUNDLED = ("digits",)


class Absent(Exception):
    """A data set that is not on this machine; the message is the line that a user gets."""


def located(name: str) -> Path | None:
    """A data set's file or folder, None for a bundled one. Raises Absent where it is not on this machine."""
    if name in BUNDLED:
        return None
    told = os.environ.get("FEDGE_SHARED_DATA")
    root = Path(told) if told else Path(__file__).resolve().parents[3] / "shared" / "data"
    path = root / name
    if not path.exists():
        raise Absent(f"the shared data set {name} is not in {root}; FEDGE_SHARED_DATA says where it is")
    return path
