"""The commands: each parses, calls, prints. ``fedge.__main__`` turns what they raise into exit codes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from fedge.commands import complete, deploy
from fedge.commands import runs as verbs
from fedge.commands.parameters import BestEffort, Federation, Json, Runs, Set, Slots, print_json, progress

app = typer.Typer(
    name="fedge",
    help="docker compose for federations of edge devices: federated foundation models on devices you don't have.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

#: What the parser raises for a wrong command line.
usage_error = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")


def _version(wanted: bool) -> None:
    if wanted:
        from fedge import __version__

        print(f"fedge {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Options of every command."""


@app.command()
def config(federation: Federation, set: Set = None, as_json: Json = False) -> None:
    """Check a federation and print it with every default filled in.

    Example: fedge config federation.yaml --set stages.customize.rounds=3
    """
    from fedge.spec import load_federation, resolved

    text = resolved(load_federation(federation, set or ()))
    if as_json:
        import yaml

        print_json(yaml.safe_load(text))
    else:
        sys.stdout.write(text)


app.command()(verbs.up)


@app.command()
def plan(
    federation: Federation,
    set: Set = None,
    device: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--device", metavar="DEVICE", help="Only this device.", autocompletion=complete.devices),
    ] = None,
    all_offers: Annotated[bool, typer.Option("--all", help="Every variant, not only what is picked.")] = False,
    as_json: Json = False,
) -> None:
    """Say what a round would cost each device, what fits, and what each device picks. Trains nothing.

    Example: fedge plan federations/quickstart.yaml --device pi-00 --all
    """
    from fedge.report.closing import plan_table
    from fedge.run.planning import plan

    rows = plan(federation, set or (), progress)
    if device is not None:
        known = {row["device"] for row in rows}
        if device not in known:
            raise typer.BadParameter(f"'{device}' is none of {', '.join(sorted(known))}", param_hint="--device")
        rows = [row for row in rows if row["device"] == device]
    print_json({"plan": rows}) if as_json else plan_table(rows, all_offers=all_offers)


@app.command()
def profile(
    federation: Federation,
    set: Set = None,
    slots: Slots = None,
    best_effort: BestEffort = False,
    runs: Runs = Path("runs"),
    as_json: Json = False,
) -> None:
    """Run one measured round of every stage and set measurement beside prediction.

    Example: fedge profile federations/quickstart.yaml
    """
    from fedge.report.closing import profile_table
    from fedge.run.launcher import Options
    from fedge.run.planning import profile

    rows = profile(federation, set or (), Options(runs=runs, slots=slots, best_effort=best_effort), progress)
    print_json({"profile": rows}) if as_json else profile_table(rows)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.", autocompletion=complete.runs)],
    open: Annotated[bool, typer.Option("--open/--no-open", help="Show it in the browser.")] = False,
    tensorboard: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--tensorboard", metavar="DIR", help="Write an event file too, in a folder of the run's name."),
    ] = None,
) -> None:
    """Write a run's report.html, one page that needs nothing else, and its trace.json for Perfetto.

    Example: fedge report runs/20260131-120000-quickstart --open
    """
    from fedge.report.page import write_report

    if tensorboard is not None:
        from fedge.report.board import require_tensorboard, write_board

        require_tensorboard()
    page = write_report(run)
    print(page)
    if tensorboard is not None:
        print(write_board(run, tensorboard))
    if open:
        import webbrowser

        webbrowser.open(page.resolve().as_uri())


@app.command()
def compare(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN RUN…", help="Folders of runs.", autocompletion=complete.runs)
    ],
    as_json: Json = False,
) -> None:
    """Set runs side by side: stages, models, and the settings in which they differ.

    Example: fedge compare runs/20260131-120000-quickstart runs/20260131-130000-quickstart
    """
    from fedge.report.compare import compare, compare_tables

    if len({run.resolve() for run in runs}) < 2:
        raise typer.BadParameter("give two runs or more", param_hint="RUN")
    found = compare(runs)
    print_json(found) if as_json else compare_tables(found)


for verb in (verbs.ps, verbs.logs, verbs.stats, verbs.down):
    app.command()(verb)

for verb in (deploy.export, deploy.infer):
    app.command()(verb)


@app.command()
def schema(
    kind: Annotated[
        str, typer.Argument(metavar="[federation|device]", help="Which file the schema is for.")
    ] = "federation",
) -> None:
    """Print the JSON Schema of federation or device files, for editors.

    Example: fedge schema > federation.schema.json
    """
    from fedge.spec.schema import json_schema

    if kind not in ("federation", "device", "links"):
        raise typer.BadParameter(f"'{kind}' is none of federation, device, links", param_hint="KIND")
    print_json(json_schema(kind))


@app.command()
def methods(
    method: Annotated[
        Optional[str],  # noqa: UP045
        typer.Argument(metavar="[METHOD]", help="Show this method's card and fields.", autocompletion=complete.methods),
    ] = None,
    stage: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--stage", metavar="STAGE", help="Only those for train, customize or deploy."),
    ] = None,
    built: Annotated[bool, typer.Option("--built", help="Only those that are built.")] = False,
    as_json: Json = False,
) -> None:
    """List the methods with the survey's taxonomy and stars, or show one.

    Example: fedge methods --stage customize --built
    """
    from fedge.report.listings import method_card, methods_table

    if stage not in (None, "train", "customize", "deploy"):
        raise typer.BadParameter(f"'{stage}' is none of train, customize, deploy", param_hint="--stage")
    rows, show = method_card(method) if method else methods_table(stage, built)
    print_json(rows) if as_json else show()


@app.command()
def codecs(
    codec: Annotated[
        Optional[str],  # noqa: UP045
        typer.Argument(metavar="[CODEC]", help="Show this codec's fields."),
    ] = None,
    as_json: Json = False,
) -> None:
    """List the codecs that a stage's answers may go through, or show one.

    Example: fedge codecs topk
    """
    from fedge.report.listings import codecs_table

    rows, show = codecs_table(codec)
    print_json(rows) if as_json else show()


@app.command()
def devices(as_json: Json = False) -> None:
    """List the device profiles and link classes that come with fedge.

    Example: fedge devices
    """
    from fedge.report.listings import devices_tables

    rows, show = devices_tables()
    print_json(rows) if as_json else show()


@app.command()
def models(as_json: Json = False) -> None:
    """List the models that need no download, and what else can be named.

    Example: fedge models
    """
    from fedge.report.tables import table
    from fedge.spec.bundled import MODELS

    rows = [vars(entry) for entry in MODELS]
    print_json({"models": rows}) if as_json else table(rows, ["name", "form", "task", "summary"])


@app.command()
def datasets(as_json: Json = False) -> None:
    """List the data sets that come with fedge, and the formats that can be read.

    Example: fedge datasets
    """
    from fedge.data.bundled import ENTRIES
    from fedge.report.tables import table

    rows = [vars(entry) for entry in ENTRIES]
    print_json({"datasets": rows}) if as_json else table(rows, ["name", "form", "task", "summary"])


@app.command()
def init(
    path: Annotated[str, typer.Argument(metavar="[PATH]", help="A folder, or a .yaml file.")] = ".",
    force: Annotated[bool, typer.Option("--force", help="Overwrite what is there.")] = False,
) -> None:
    """Write a small federation that works, with comments.

    Example: fedge init mine && fedge up mine
    """
    from fedge.spec.starter import write_starter

    print(write_starter(Path(path), force=force))
