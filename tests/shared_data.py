"""Where the developers' real data sets lie: FEDGE_SHARED_DATA, or shared/data beside the repository."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def shared_data(*parts: str) -> Path:
    """The path of a shared data set; skips the calling test where it is not on this machine."""
    told = os.environ.get("FEDGE_SHARED_DATA")
    root = Path(told) if told else Path(__file__).resolve().parents[2] / "shared" / "data"
    path = root.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"the shared data set {'/'.join(parts)} is not in {root}")
    return path
