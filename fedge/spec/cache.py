"""Where fedge keeps what can be computed again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """$FEDGE_CACHE, or fedge's folder in the user's cache."""
    told = os.environ.get("FEDGE_CACHE")
    if told:
        return Path(told)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fedge"
