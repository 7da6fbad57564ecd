"""The commands: each parses, calls, prints. ``fedge.__main__`` turns what they raise into exit codes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Optional, TypeVar

import typer

from fedge.commands import audit, complete, deploy, host, remote, strike
from fedge.commands import runs as verbs
from fedge.commands import sweep as grids
from fedge.commands.parameters import BestEffort, Federation, Json, Runs, Set, Slots, print_json, progress

T = TypeVar("T")

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
app.command()(grids.sweep)


@app.command()
def plan(
    federation: Federation,
    set: Set = None,
    device: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--device", metavar="DEVICE", help="Only this device.", autocompletion=complete.devices),
    ] = None,
    all_offers: Annotated[bool, typer.Option("--all", help="Every variant, not only what is picked.")] = False,
    memory: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--memory", metavar="SIZE", help="Ask for a device that grants so much, such as 512MiB."),
    ] = None,
    network: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--network", metavar="LINK", help="… with this link class (`fedge devices` lists them)."),
    ] = None,
    compute: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--compute", metavar="RATE", help="… that sustains so much, such as 9GFLOP/s."),
    ] = None,
    profile: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--profile", metavar="PROFILE", help="… of this profile; the file's first device by default."),
    ] = None,
    invert: Annotated[
        bool,
        typer.Option("--max-budget", help="The least memory, link and compute with which each method is in time."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Say what a round would cost each device, what fits, and what each device picks. Trains nothing.

    Exit code 3 when too few devices can afford a stage. A model may be a config.json alone, without weights.

    Example: fedge plan federations/quickstart.yaml --device pi-00 --all

    Example: fedge plan federations/quickstart.yaml --memory 512MiB --network lte-cat4

    Example: fedge plan federations/quickstart.yaml --max-budget
    """
    from fedge.report.closing import budget_table, plan_table
    from fedge.run.planning import WhatIf, look, max_budget
    from fedge.run.plans import require_enough

    what_if = WhatIf(profile, memory, network, compute)
    if what_if and device is not None:
        raise typer.BadParameter("a device that is not in the file has no name in it", param_hint="--device")
    if invert:
        found = max_budget(federation, set or (), progress, what_if)
        print_json({"plan": found}) if as_json else budget_table(found)
        return
    seen = look(federation, set or (), progress, what_if)
    rows = seen.rows
    if device is not None:
        known = {row["device"] for row in rows}
        if device not in known:
            raise typer.BadParameter(f"'{device}' is none of {', '.join(sorted(known))}", param_hint="--device")
        rows = [row for row in rows if row["device"] == device]
    print_json({"plan": rows}) if as_json else plan_table(rows, all_offers=all_offers)
    if not what_if:
        require_enough(seen.spec, seen.plans)


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
    target: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="METRIC=VALUE", help="Say what each stage spent until it was so good: accuracy=0.9."),
    ] = None,
    within: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="BUDGET", help="Say how good each stage was within a budget: 90s, 20MiB, or 90s,20MiB."),
    ] = None,
    learn: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            metavar="FILE", help="Write what methods are worth that ran alone; a stage reads it by learned: FILE."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Set runs side by side: stages, models, and the settings in which they differ.

    Example: fedge compare runs/20260131-120000-quickstart runs/20260131-130000-quickstart --target accuracy=0.7
    """
    from fedge.report.compare import compare, compare_tables
    from fedge.report.target import read_target, read_within

    if len({run.resolve() for run in runs}) < 2 and learn is None:
        raise typer.BadParameter("give two runs or more", param_hint="RUN")
    if learn is not None:
        from fedge.commands.learn import write

        write(learn, runs)
    found = compare(runs, _read(read_target, target, "--target"), _read(read_within, within, "--within"))
    print_json(found) if as_json else compare_tables(found)


def _read(parse: Callable[[str], T], given: str | None, option: str) -> T | None:
    try:
        return None if given is None else parse(given)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from None


for verb in (verbs.ps, verbs.logs, verbs.stats, verbs.down, strike.kill, strike.pause, strike.unpause):
    app.command()(verb)

for verb in (remote.join, remote.keys, deploy.export, deploy.infer, audit.audit, host.doctor):
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
def devices(
    device: Annotated[
        Optional[str],  # noqa: UP045
        typer.Argument(
            metavar="[DEVICE]",
            help="Show this profile (a name, or a YAML file) or link class: each figure, how it is known, its source.",
            autocompletion=complete.profiles,
        ),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where `calibrate` writes the profile.")] = Path(
        "mine.yaml"
    ),
    threads: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="How many threads `calibrate` measures; all cores by default."),
    ] = None,
    as_json: Json = False,
) -> None:
    """List the device profiles and link classes that come with fedge, or show one with its sources.

    `calibrate` in place of a name measures this machine (about a minute) and writes its profile.

    Example: fedge devices pi-4b-4g

    Example: fedge devices calibrate --out laptop.yaml
    """
    if device == "calibrate":
        from fedge.commands.host import calibrate

        calibrate(out, threads, as_json)
        return
    from fedge.report.devices import device_card, devices_tables

    rows, show = device_card(device) if device else devices_tables()
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
