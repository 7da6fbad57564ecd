"""Taking a run's model to devices: ``export``, ``infer``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from fedge.commands.parameters import BestEffort, Json, print_json, progress


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run with a deploy stage.")],
    precision: Annotated[
        str, typer.Option("--precision", metavar="P,P", help="Number formats: fp32, fp16, int8, int4.")
    ] = "fp32",
    exits: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--exits", metavar="N,N", help="Only the exits after these blocks; all by default."),
    ] = None,
    devices: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--for", metavar="DEVICE,…", help="Choose a file for each: profiles, their files, or the run's own groups."
        ),
    ] = None,
    budget: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--budget", metavar="20ms|50mJ|90%", help="Mean time or energy of a query on these devices, or accuracy."
        ),
    ] = None,
    criterion: Annotated[
        str,
        typer.Option("--criterion", metavar="NAME", help="When an exit is sure: max_prob, margin, entropy, patience."),
    ] = "max_prob",
    as_json: Json = False,
) -> None:
    """Write a run's model as ONNX for each exit and precision, held against PyTorch, and choose files for devices.

    Example: fedge export runs/20260131-120000-deploy --precision fp32,int8 --for pi-4b-4g --budget 20ms
    """
    from fedge.export.budget import parse_budget
    from fedge.report.exports import export_tables
    from fedge.run.exporting import Wish, export

    if budget is not None and devices is None:
        raise typer.BadParameter("a budget is a device's: say for which with --for", param_hint="--budget")
    wish = Wish(
        precision=_words(precision),
        exits=None if exits is None else _numbers(exits),
        devices=_words(devices or ""),
        budget=None if budget is None else parse_budget(budget),
        criterion=criterion,
    )
    outcome = export(run, wish, progress)
    if as_json:
        print_json({"exports": outcome.exports, "devices": outcome.devices})
    else:
        export_tables(outcome.exports, outcome.devices)


def infer(
    folder: Annotated[Path, typer.Argument(metavar="EXPORT", help="A target's folder, such as RUN/export/adaptive.")],
    device: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--device", metavar="DEVICE", help="Held to this profile's memory, timed on its clock too."),
    ] = None,
    batch: Annotated[int, typer.Option("--batch", min=0, metavar="ROWS", help="Rows at once through a chain.")] = 0,
    queries: Annotated[int, typer.Option("--queries", min=1, metavar="N", help="At least so many.")] = 256,
    seconds: Annotated[float, typer.Option("--seconds", min=0, metavar="S", help="At least so long.")] = 0.0,
    mlperf: Annotated[bool, typer.Option("--mlperf", help="MLPerf's single stream: 1024 queries and 60 s.")] = False,
    thresholds: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--thresholds", metavar="T,T", help="In place of the export's own."),
    ] = None,
    best_effort: BestEffort = False,
    as_json: Json = False,
) -> None:
    """Run an export with onnxruntime on its run's test rows: latency, exits taken, accuracy, memory.

    Example: fedge infer runs/20260131-120000-deploy/export/adaptive --device pi-4b-4g
    """
    from fedge.export.measure import MLPERF
    from fedge.export.session import Query
    from fedge.report.exports import infer_table
    from fedge.run.exporting import infer

    if mlperf:
        queries, seconds = MLPERF
    given = None if thresholds is None else tuple(_floats(thresholds))
    query = Query(batch=batch, queries=queries, seconds=seconds, thresholds=given, best_effort=best_effort)
    found = infer(folder, query, device, progress)
    print_json({"infer": [found]}) if as_json else infer_table(found)


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _numbers(text: str) -> tuple[int, ...]:
    words = _words(text)
    wrong = [word for word in words if not word.isdigit()]
    if wrong or not words:
        raise typer.BadParameter(f"'{wrong[0] if wrong else text}' is no number of blocks", param_hint="--exits")
    return tuple(map(int, words))


def _floats(text: str) -> list[float]:
    try:
        return [float(word) for word in _words(text)]
    except ValueError as error:
        raise typer.BadParameter(
            f"'{text}': thresholds are numbers, such as 0.9,0.8", param_hint="--thresholds"
        ) from error
