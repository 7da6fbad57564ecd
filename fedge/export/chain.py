"""Running a chain of stage graphs: every exit's logits, or each row only as deep as it must go."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedge.export.criteria import scores, taken

Columns = Mapping[str, np.ndarray]
Open = Callable[[Path], Any]


class Chain:
    """The stages of a folder, opened by ``opener`` (path to an onnxruntime session), shallowest first."""

    def __init__(self, folder: Path, stages: int, opener: Open):
        self._sessions = [opener(folder / f"stage-{at + 1}.onnx") for at in range(stages)]
        self._takes = [[one.name for one in session.get_inputs()] for session in self._sessions]
        self._gives = [[one.name for one in session.get_outputs()] for session in self._sessions]

    def step(self, at: int, columns: Columns) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """One stage: the columns for the next one, and the logits."""
        found = self._sessions[at].run(None, {name: columns[name] for name in self._takes[at]})
        outputs = dict(zip(self._gives[at], found, strict=True))
        logits = outputs.pop("logits")
        handed = {name.removeprefix("next_"): value for name, value in outputs.items()}
        return {**{name: column for name, column in columns.items() if name not in handed}, **handed}, logits

    def all_exits(self, columns: Columns) -> list[np.ndarray]:
        """The logits of every exit for a batch."""
        found = []
        for at in range(len(self._sessions)):
            columns, logits = self.step(at, columns)
            found.append(logits)
        return found

    def leave_early(
        self, columns: Columns, criterion: str, thresholds: Sequence[float]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Logits ``[rows, classes]`` and exit indices ``[rows]`` of a classifier's batch.

        A row that is sure leaves, and the next stage gets the others alone.
        """
        rows = len(next(iter(columns.values())))
        exits = np.full(rows, len(self._sessions) - 1)
        going = np.arange(rows)
        answers: np.ndarray | None = None
        seen: list[np.ndarray] = []
        for at in range(len(self._sessions)):
            columns, logits = self.step(at, columns)
            answers = np.zeros((rows, logits.shape[-1]), dtype=logits.dtype) if answers is None else answers
            answers[going] = logits
            seen.append(logits)
            if at == len(self._sessions) - 1:
                break
            found = scores(seen, criterion)[:, -1:]
            sure = taken(np.concatenate([found, found], axis=1), thresholds[at : at + 1]) == 0
            exits[going[sure]] = at
            going, seen = going[~sure], [each[~sure] for each in seen]
            columns = {name: column[~sure] for name, column in columns.items()}
            if not len(going):
                break
        assert answers is not None
        return answers, exits
