"""What a run leaked: ``audit``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedge.commands import complete
from fedge.commands.parameters import Json, print_json, progress


def audit(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="The folder of a run that is done.", autocompletion=complete.runs)
    ],
    victims: Annotated[int, typer.Option("--victims", min=1, help="Devices whose round is attacked.")] = 2,
    rows: Annotated[int, typer.Option("--rows", min=1, help="Rows that each of them has in it; 1 is the worst.")] = 1,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Steps of the gradient inversion.")] = 200,
    as_json: Json = False,
) -> None:
    """Attack what a run's last stage sends, and ask its model who trained it.

    One round is run again from the stage's beginning, and what the server sees of it (one answer, or a sum under
    secure aggregation) is inverted: images by their gradient, texts by the token embeddings that moved. Membership is
    told from the loss.

    Example: fedge audit runs/20260131-120000-quickstart --rows 1
    """
    from fedge.audit.report import audit
    from fedge.report.tables import table

    found = audit(run, victims=victims, rows=rows, steps=steps, say=progress)
    if as_json:
        print_json({"audit": found})
        return
    figures = ("reconstruction", "tokens", "mia_auc", "mia_tpr_at_1_fpr")
    shown = [
        {**line, **{name: "–" if line[name] is None else f"{line[name]:.3f}" for name in figures}} for line in found
    ]
    columns = {
        "method": "method",
        "protection": "protection",
        "sees": "the server sees",
        "bytes_up": "bytes up",
        "reconstruction": "image correlation",
        "tokens": "tokens found",
        "mia_auc": "membership AUC",
        "mia_tpr_at_1_fpr": "TPR at 1 % FPR",
    }
    table(shown, columns, "audit")
