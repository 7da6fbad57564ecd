"""Answers that wait for the end of their turn, beyond what memory should hold of them: as files, read one at a time."""

from __future__ import annotations

import shutil
from pathlib import Path

from fedge.run.folder import write_whole

#: Bytes of answers that are kept in memory in one round.
LIMIT = 512 << 20

#: Where they lie in a run's folder: on its disk, for a temporary folder may itself be memory.
STASH = ("checkpoints", "answers")


class Stash:
    """Files below ``folder``, gone with ``clear``. ``limit``: bytes of a round that stay in memory."""

    def __init__(self, folder: Path, limit: int = LIMIT):
        self._folder = folder
        self._limit = limit
        self._held = 0
        self._files: list[Path] = []

    def put(self, data: bytearray) -> Path | None:
        """Where the bytes lie now; None while they may stay in memory."""
        self._held += len(data)
        if self._held <= self._limit:
            return None
        self._folder.mkdir(exist_ok=True)
        path = self._folder / f"{len(self._files)}.answer"
        write_whole(path, data)
        self._files.append(path)
        return path

    def clear(self) -> None:
        """Forget all of a round's answers."""
        if self._files:
            self.discard()
        self._files, self._held = [], 0

    def discard(self) -> None:
        """Remove the folder with whatever a killed launcher left in it."""
        shutil.rmtree(self._folder, ignore_errors=True)
