"""The parameters that several verbs have, and the two ways to print."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from fedge.commands import complete

Federation = Annotated[
    str,
    typer.Argument(
        metavar="FEDERATION", help="A YAML file, or a folder with federation.yaml.", autocompletion=complete.federations
    ),
]
Set = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a key: stages.customize.rounds=3, data=../rows.csv. Can be repeated.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Runs = Annotated[Path, typer.Option("--runs", metavar="DIR", help="Where run folders are made.")]
BestEffort = Annotated[bool, typer.Option("--best-effort", help="Go on where a limit can't be applied, and say so.")]
Slots = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option("--slots", min=1, metavar="N", help="Devices that compute at once; the host's cores by default."),
]


def progress(line: str) -> None:
    """A line of progress, on standard error."""
    print(line, file=sys.stderr, flush=True)


def print_json(document: Any) -> None:
    """One JSON document on standard output."""
    print(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False))
