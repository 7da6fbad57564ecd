"""fedge: docker compose for federations of edge devices.

From Python::

    import fedge

    run = fedge.up("federation.yaml", overrides={"stages.customize.rounds": 3})
    run.summary, run.metrics, run.model()
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedge.run.launcher import Run

__version__ = "0.1.0"


def up(
    federation: str | Path,
    overrides: Mapping[str, Any] | Sequence[str] = (),
    *,
    runs: str | Path = "runs",
    slots: int | None = None,
    inline: bool = False,
    best_effort: bool = False,
    tensorboard: bool = False,
    quiet: bool = False,
) -> Run:
    """Run a federation to its end, as ``fedge up`` does; progress goes to standard error unless ``quiet``.

    ``overrides``: dotted keys to values, or texts such as ``stages.customize.rounds=3``. ``tensorboard``: write an
    event file in the run's folder as it goes. Raises the errors of ``fedge.errors``.
    """
    import sys

    from fedge.report.board import follower
    from fedge.run.launcher import Options
    from fedge.run.launcher import up as launch

    def say(line: str) -> None:
        if not quiet:
            print(line, file=sys.stderr, flush=True)

    options = Options(runs=Path(runs), slots=slots, inline=inline, best_effort=best_effort)
    return launch(federation, overrides, options, say, follower() if tensorboard else None)
