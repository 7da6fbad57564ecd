"""Taking a run's model to devices: ``export``, ``infer``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from fedge.commands.federated import infer_federated
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
            "--for",
            metavar="DEVICE,…",
            help="Choose a file for each: profiles, their files, a folder of them, or the run's own groups.",
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
    mobile: Annotated[
        bool, typer.Option("--ort", help="ORT's own format too, with the list of operators that a mobile build needs.")
    ] = False,
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
        mobile=mobile,
    )
    outcome = export(run, wish, progress)
    if as_json:
        print_json({"exports": outcome.exports, "devices": outcome.devices})
    else:
        export_tables(outcome.exports, outcome.devices)


def infer(
    folder: Annotated[
        Path, typer.Argument(metavar="EXPORT", help="A target's folder, such as RUN/export/adaptive; or RUN.")
    ],
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
    federated: Annotated[
        bool,
        typer.Option("--federated", help="All devices of the run answer, each at its exit; their average is judged."),
    ] = False,
    deadline: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--deadline", metavar="TIME", help="Federated: who answers later does not count, such as 200ms."),
    ] = None,
    on: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            "--on", metavar="FILE", help="Rows with the columns of the run's data, in place of its test rows."
        ),
    ] = None,
    budget: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--budget", metavar="20ms", help="Say how many queries take no longer."),
    ] = None,
    show: Annotated[int, typer.Option("--show", min=0, metavar="N", help="Print the first N rows' predictions.")] = 3,
    best_effort: BestEffort = False,
    as_json: Json = False,
) -> None:
    """Run an export with onnxruntime on its run's test rows: predictions, latency, exits taken, accuracy, memory.

    One query after the other on one thread, or batches through a chain. Of a language model it is the pass over a
    prompt: text is not generated, since no keys and values are kept. With --federated the run's devices answer
    together, as processes over their links, by PyTorch.

    Example: fedge infer runs/20260131-120000-deploy/export/adaptive --device pi-4b-4g --budget 20ms

    Example: fedge infer runs/20260131-120000-deploy/export/chain --batch 32 --on more.csv

    Example: fedge infer runs/20260131-120000-deploy --federated --queries 128 --deadline 200ms
    """
    if federated:
        alone = {"--device": device, "--batch": batch, "--seconds": seconds, "--thresholds": thresholds, "--on": on}
        for name, value in {**alone, "--budget": budget, "--mlperf": mlperf}.items():
            if value:
                raise typer.BadParameter("is for one device's export; --federated asks all devices", param_hint=name)
        infer_federated(folder, rows=queries, deadline=deadline, best_effort=best_effort, as_json=as_json)
        return
    if deadline is not None:
        raise typer.BadParameter("is how long --federated waits for answers", param_hint="--deadline")
    from fedge.export.budget import parse_budget
    from fedge.export.measure import MLPERF
    from fedge.export.session import Query
    from fedge.report.exports import infer_table
    from fedge.run.exporting import infer

    if mlperf:
        queries, seconds = MLPERF
    given = None if thresholds is None else tuple(_floats(thresholds))
    wanted = None if budget is None else parse_budget(budget)
    if wanted is not None and wanted.kind != "seconds":
        raise typer.BadParameter("here a budget is the time that a query may take, such as 20ms", param_hint="--budget")
    query = Query(
        batch=batch,
        queries=queries,
        seconds=seconds,
        thresholds=given,
        best_effort=best_effort,
        budget=None if wanted is None else wanted.value,
        show=show,
    )
    found = infer(folder, query, device, on, progress)
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
