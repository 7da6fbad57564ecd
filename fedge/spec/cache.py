"""Where fedge keeps what can be computed again."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def cache_folder() -> Path:
    """$FEDGE_CACHE, or fedge's folder in the user's cache."""
    told = os.environ.get("FEDGE_CACHE")
    if told:
        return Path(told)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fedge"


def store(path: Path, text: str) -> None:
    """Write a file of the cache, whole or not at all. One that can't be written costs time and nothing else."""
    beside = path.with_suffix(f".{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)
    except OSError:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
