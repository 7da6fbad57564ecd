"""Running a federation, and looking at and stopping runs: ``up``, ``ps``, ``logs``, ``stats``, ``down``."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from fedge.commands import complete
from fedge.commands.parameters import BestEffort, Json, Runs, Set, Slots, print_json, progress

if TYPE_CHECKING:
    from fedge.report.snapshot import Snapshot
    from fedge.run.roster import Entry

Run = Annotated[
    Optional[str],  # noqa: UP045
    typer.Argument(
        metavar="[RUN]",
        help="A run's folder, or its name in --runs; the newest by default.",
        autocompletion=complete.runs,
    ),
]
LiveRun = Annotated[
    Optional[str],  # noqa: UP045
    typer.Argument(
        metavar="[RUN]",
        help="A run's folder, or its name in --runs; the newest under way by default.",
        autocompletion=complete.live_runs,
    ),
]
In = Annotated[Path, typer.Option("--runs", metavar="DIR", help="Where the runs are.")]


def up(
    federation: Annotated[
        Optional[str],  # noqa: UP045
        typer.Argument(
            metavar="[FEDERATION]",
            help="A YAML file, or a folder with federation.yaml.",
            autocompletion=complete.federations,
        ),
    ] = None,
    set: Set = None,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Come back when the run is under way; it goes on by itself.")
    ] = False,
    slots: Slots = None,
    clock: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--clock",
            metavar="virtual|real",
            help="The devices' clock; the file's by default.",
            autocompletion=complete.one_of("virtual", "real"),
        ),
    ] = None,
    listen: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--listen",
            metavar="ADDRESS",
            help="Where remote devices join, such as tcp://0.0.0.0:7700; the file's by default.",
        ),
    ] = None,
    inline: Annotated[bool, typer.Option("--inline", help="No processes and no walls, for debugging.")] = False,
    best_effort: BestEffort = False,
    resume: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            "--resume",
            metavar="RUN",
            help="Go on from the last checkpoint of a run's folder.",
            autocompletion=complete.runs,
        ),
    ] = None,
    runs: Runs = Path("runs"),
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write an event file in the run's folder as it goes.")
    ] = False,
    shown: Annotated[
        str,
        typer.Option(
            "--progress",
            metavar="auto|plain|live",
            help="A view that follows the run, or lines; auto: a view on a terminal.",
            autocompletion=complete.one_of("auto", "plain", "live"),
        ),
    ] = "auto",
    as_json: Json = False,
    told_to: Annotated[Optional[int], typer.Option("--told-to", hidden=True)] = None,  # noqa: UP045
) -> None:
    """Run all stages of a federation and leave a run folder.

    Example: fedge up federations/quickstart.yaml --set stages.customize.rounds=3

    Example: fedge up -d federations/quickstart.yaml && fedge logs -f

    Example: fedge up federation.yaml --listen tcp://0.0.0.0:7700
    """
    named = {"emulation.clock": clock, "remote.listen": listen}
    overrides = [*(set or ()), *(f"{name}={value}" for name, value in named.items() if value)]
    if (federation is None) == (resume is None):
        raise typer.BadParameter("give a federation, or --resume RUN", param_hint="FEDERATION")
    if resume is not None and overrides:
        raise typer.BadParameter("a resumed run keeps its own settings", param_hint="--set")
    if shown not in ("auto", "plain", "live"):
        raise typer.BadParameter(f"'{shown}' is none of auto, plain, live", param_hint="--progress")
    if detach:
        kept = {"--runs": runs, "--resume": resume, "--slots": slots}
        flags = {"--inline": inline, "--best-effort": best_effort, "--tensorboard": tensorboard}
        words = [f"{name}={value}" for name, value in kept.items() if value is not None]
        words += [name for name, wanted in flags.items() if wanted]
        _start(federation, overrides, words, as_json)
        return
    from fedge.report.closing import closing_tables

    with _following(shown, as_json, told_to) as (say, see):
        from fedge.run.launcher import Options, up  # torch takes its seconds: the view is there before

        options = Options(runs=runs, slots=slots, inline=inline, best_effort=best_effort, resume=resume)
        if tensorboard:
            from fedge.report.board import follower

            see = follower(see)
        run = up(federation or "", overrides, options, say, see)
    print_json(run.summary) if as_json else closing_tables(run.summary)


def _start(federation: str | None, overrides: list[str], words: list[str], as_json: bool) -> None:
    """The same command again, as a process that this one doesn't wait for."""
    from fedge.run.detached import start
    from fedge.spec import load_federation

    if federation is not None:
        load_federation(federation, overrides)  # mistakes in the file are told at once
        words = [federation, *words]
    started = start(["up", *words, *(f"--set={override}" for override in overrides)], progress)
    print_json(started) if as_json else print(started["run"])


@contextmanager
def _following(
    shown: str, as_json: bool, told_to: int | None
) -> Iterator[tuple[Callable[[str], None], Callable[[Snapshot], None] | None]]:
    """Who is told of a run's lines and of its snapshots."""
    from fedge.report.live import LiveView, wants_live

    if told_to is not None:
        from fedge.run.detached import Herald

        with Herald(told_to) as herald:
            yield herald.say, herald.see
    elif wants_live(shown, sys.stdout, sys.stderr, os.environ, as_json=as_json):
        if not sys.stderr.isatty():
            raise typer.BadParameter("standard error is not a terminal", param_hint="--progress live")
        with LiveView(sys.stderr) as view:
            yield view.say, view.see
    else:
        yield progress, None


def ps(
    everything: Annotated[bool, typer.Option("--all", "-a", help="Those that have ended, too.")] = False,
    runs: In = Path("runs"),
    as_json: Json = False,
) -> None:
    """List the runs that are under way, and those whose launcher was killed.

    Example: fedge ps --all
    """
    from fedge.report.standing import ps_table
    from fedge.run.roster import entries

    rows = [entry.row() for entry in entries(runs) if everything or entry.status in ("running", "killed")]
    print_json({"ps": rows}) if as_json else ps_table(rows)


def logs(
    run: Run = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes, until the run ends.")] = False,
    device: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--device",
            metavar="NAME",
            help="Only this one's: a device, launcher, or zygote.",
            autocompletion=complete.logs,
        ),
    ] = None,
    tail: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--tail", "-n", min=0, metavar="N", help="Of each log only the last N lines so far."),
    ] = None,
    runs: In = Path("runs"),
) -> None:
    """Print what a run's launcher said, and what its devices' processes printed.

    Example: fedge logs -f --tail 20

    Example: fedge logs 20260131-120000-quickstart --device phone-00
    """
    from fedge.run import logs as reading
    from fedge.run.roster import find, look, sources

    folder = find(run, runs, lambda entry: True, "run").folder
    paths = sources(folder, device)
    width = max(map(len, paths), default=0)
    lines = (
        reading.follow(lambda: sources(folder, device), tail, lambda: look(folder).live)
        if follow
        else reading.read(paths, tail)
    )
    with suppress(KeyboardInterrupt):
        for name, line in lines:
            print(f"{name:<{width}} | {line}", flush=follow)


def stats(
    run: LiveRun = None,
    stream: Annotated[bool, typer.Option("--stream/--no-stream", help="Refresh in a terminal, or print once.")] = True,
    runs: In = Path("runs"),
    as_json: Json = False,
) -> None:
    """Say of each device of a run under way what it does, what it holds, and what it has sent.

    Example: fedge stats --no-stream
    """
    from fedge.report.standing import stats_rows, stats_table
    from fedge.run.roster import find, look, require_live

    entry = find(run, runs, lambda entry: entry.live, "run under way")
    snapshot = require_live(entry)
    if as_json:
        print_json({"stats": stats_rows(snapshot)})
    elif stream and sys.stdout.isatty():
        _watch(entry, lambda: look(entry.folder))
    else:
        stats_table(snapshot)


def _watch(entry: Entry, again: Callable[[], Entry]) -> None:
    from fedge.report.live import Region
    from fedge.report.standing import stats_lines

    region = Region(sys.stdout)
    with suppress(KeyboardInterrupt):
        while entry.snapshot is not None:
            snapshot = entry.snapshot
            region.draw(lambda columns, rows: stats_lines(snapshot, columns, rows))  # noqa: B023
            if not entry.live:
                break
            time.sleep(1.0)
            entry = again()


def down(
    run: LiveRun = None,
    everything: Annotated[bool, typer.Option("--all", help="Every run under way, and every killed one.")] = False,
    patience: Annotated[
        float,
        typer.Option("--timeout", "-t", min=0, metavar="SECONDS", help="How long to wait for the round's end."),
    ] = 10.0,
    runs: In = Path("runs"),
    as_json: Json = False,
) -> None:
    """End a run and clear what it left on the host. It can be resumed.

    First the launcher is asked to end the round, as by Ctrl-C; after the timeout it is told to end at once, and at last
    killed.

    Example: fedge down

    Example: fedge down --all --timeout 60
    """
    from fedge.run.down import down
    from fedge.run.roster import entries, find

    if everything and run is not None:
        raise typer.BadParameter("give a run, or --all", param_hint="RUN")
    if everything:
        found = [entry for entry in entries(runs) if entry.endable]
    else:
        found = [find(run, runs, lambda entry: entry.endable, "run under way")]
    rows = down([entry.folder for entry in found if entry.endable], patience, progress)
    if as_json:
        print_json({"down": rows})
        return
    for row in rows:
        again = "" if row["status"] == "done" else f"; fedge up --resume {row['run']} goes on"
        print(f"{row['run']}: {row['status']}{again}")
    for entry in found:
        if not entry.endable:
            print(f"{entry.folder.path}: {entry.status} already")
