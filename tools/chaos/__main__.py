"""Strike a run at random moments: ``python -m tools.chaos [FEDERATION] [--quick] [--json] …``.

The federation runs once undisturbed, then again and again, and each time something happens to it: the launcher, the
zygote or a device's process gets signal 9, or signal 19, which freezes it; a device's line is cut for less or for more
than a heartbeat (partition, long-partition); a frame of a device loses a bit (corrupt); the disk under the run's folder
is full to the last byte (disk). Moments are drawn by seed, uniform over the time for which the undisturbed run had a
folder; who is struck is drawn among those alive then. Where the launcher died, or ended because the disk was full (in
one line that says so), ``fedge up --resume`` goes on. In the end the model has to be the undisturbed one, bit for bit,
and so have the stages' figures, except where a device was lost for a spoilt frame: then the run has to be done, say
who was lost, and be resumable. And no process, socket, group or unfinished file may be left.

Runs are forked from one process that has imported everything, and so are their zygotes; --cold starts interpreters.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from fedge.errors import FedgeError
from fedge.units import parse_seconds
from tools.chaos.campaign import Goal, Ledger, blows, dealt, figures, matrix, table
from tools.chaos.trial import Run, undisturbed
from tools.chaos.victims import COLD, DISK, KINDS, USUAL, WARM
from tools.chaos.warm import Warm

TINY = Path(__file__).with_name("tiny.yaml")
#: Seconds after which ``--quick`` begins no other run.
QUICK = 30.0
_EXAMPLES = """\
examples:
  python -m tools.chaos --quick
  python -m tools.chaos --runs 300 --ledger chaos.jsonl       (again: goes on where it was stopped)
  python -m tools.chaos --for 60m --ledger chaos.jsonl --json
  python -m tools.chaos --victims device,frozen-device --per-run 6 --set emulation.heartbeat=3s --runs 10
  python -m tools.chaos federations/quickstart.yaml --set stages.train.rounds=3 --set stages.customize.rounds=3 \\
      --set stages.deploy.rounds=3 --kills 20 --per-run 4 --ledger quickstart.jsonl
  python -m tools.chaos federations/agnews-lora.yaml --set data.dataset=FOLDER --set stages.0.rounds=3 \\
      --set stages.1.rounds=3 --kills 20 --per-run 4 --ledger agnews.jsonl
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m tools.chaos",
        description=__doc__,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("federation", nargs="?", help="a YAML file; by default a tiny one of a few seconds")
    made.add_argument("--quick", action="store_true", help=f"begin no other run after {QUICK:.0f} s")
    made.add_argument("--json", action="store_true", help="print one JSON document")
    ends = made.add_mutually_exclusive_group()
    ends.add_argument("--runs", type=_count, metavar="N", help="end after so many runs, the ledger's included (20)")
    ends.add_argument("--kills", type=_count, metavar="N", help="end after so many blows, the ledger's included")
    made.add_argument("--for", dest="seconds", type=_seconds, metavar="TIME", help="begin no run after 90s, 60m, 2h")
    made.add_argument("--per-run", type=_count, default=1, metavar="N", help="blows that fall into one run (1)")
    made.add_argument("--from-start", action="store_true", help="strike while a command is still being imported, too")
    made.add_argument("--seed", type=int, default=0, metavar="S", help="draws moments and victims (0)")
    made.add_argument("--set", action="append", default=[], metavar="K=V", help="override a key, as fedge up does")
    made.add_argument(
        "--victims",
        type=_victims,
        metavar="A,B",
        help=f"of {', '.join(KINDS)}, {DISK}; twice named is twice as often (with --cold the first three, else all "
        "but frozen-zygote)",
    )
    made.add_argument("--cold", action="store_true", help="start an interpreter for each launcher and each zygote")
    made.add_argument("--ledger", type=Path, metavar="FILE", help="keep a line for each run here, or go on with them")
    made.add_argument("--keep", type=Path, metavar="DIR", help="move the folders of runs that went wrong here")
    return made


def _count(text: str) -> int:
    if not text.isdigit() or text == "0":
        raise argparse.ArgumentTypeError(f"'{text}' is not a number from 1 on")
    return int(text)


def _seconds(text: str) -> float:
    for short, unit in (("m", "min"), ("h", "h")):
        if text.endswith(short) and text[: -len(short)].replace(".", "", 1).isdigit():
            text = text[: -len(short)] + unit
    try:
        return parse_seconds(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _victims(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    for name in names:
        if name not in (*KINDS, DISK):
            raise argparse.ArgumentTypeError(f"'{name}' is none of {', '.join(KINDS)}, {DISK}")
    return names


def campaign(told: argparse.Namespace, place: Path, began: float) -> Ledger:
    """Run until the goal is reached or Ctrl-C; ``place`` is an empty folder with a short path."""
    warm = None if told.cold else Warm()
    try:
        return _campaign(told, place, began, warm)
    finally:
        if warm is not None:
            warm.close()


def _campaign(told: argparse.Namespace, place: Path, began: float, warm: Warm | None) -> Ledger:
    federation = str(told.federation or TINY)
    # the host's blows must not run out of restarts: a device that is struck too often is lost by design
    settings = [f"emulation.restart={told.per_run + 1}", *told.set]
    _say("undisturbed")
    if warm is not None:  # what is planned once is kept, and must not count as the run's own time
        undisturbed(federation, settings, place / "first", 3600.0, told.from_start, warm)
        shutil.rmtree(place / "first")
    calm = undisturbed(federation, settings, place / "calm", 3600.0, told.from_start, warm)
    shutil.rmtree(place / "calm")
    _say(f"undisturbed: {calm.seconds:.1f} s, {calm.own:.1f} s of them with a run's folder, model {calm.model_sha256}")
    about = {"federation": Path(federation).name, "model_sha256": calm.model_sha256, "seed": told.seed}
    ledger = Ledger.open(told.ledger, {**about, "victims": list(told.victims), "per_run": told.per_run})
    endless = told.runs is None and told.kills is None and told.seconds is None and not told.quick
    goal = Goal(20 if endless else told.runs, told.kills, QUICK if told.quick else told.seconds)
    limit = 3.0 * (told.per_run + 2) * calm.seconds + 180.0
    while not goal.reached(len(ledger.rows), ledger.kills, time.monotonic() - began) or not ledger.rows:
        number = ledger.next_run
        count = told.per_run if goal.kills is None else min(told.per_run, goal.kills - ledger.kills)
        dealing = blows(told.seed, number, count, calm.own, told.victims)
        run = Run(federation, settings, place / str(number), warm=warm, disk=DISK in told.victims)
        chance = random.Random(f"{told.seed}/{number}/who")
        trial = run.undergo(dealing, chance, limit, like=calm, from_start=told.from_start)
        ledger.add(number, trial)
        words = f": {trial.detail}" if trial.detail else ""
        _say(f"run {number}: {trial.outcome}{words}, {trial.seconds:.1f} s ({dealt(ledger.rows[-1]['struck'])})")
        if trial.outcome in ("same", "lost"):
            shutil.rmtree(place / str(number))
        elif told.keep is not None:
            shutil.move(place / str(number), told.keep / f"seed-{told.seed}-run-{number}")
    return ledger


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main(words: list[str] | None = None) -> int:
    """Strike, compare and print; 0 when every run ended as the undisturbed one."""
    began = time.monotonic()
    line = parser()
    told = line.parse_args(words)
    told.victims = told.victims or (COLD if told.cold else USUAL)
    if told.cold and (unknown := [name for name in told.victims if name in WARM]):
        line.error(f"--victims {unknown[0]} doesn't go with --cold")
    if told.keep is not None:
        told.keep.mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(prefix="chaos-"))
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a disk that was made for a run would stay mounted
    try:
        ledger = campaign(told, place, began)
    except FedgeError as error:
        _say(f"tools.chaos: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        _say("interrupted" + (f"; the same command goes on from {told.ledger}" if told.ledger else ""))
        return 130
    finally:
        if not any(place.iterdir()):
            place.rmdir()
    found: list[dict[str, Any]] = figures(ledger)
    if told.json:
        print(json.dumps({"figures": found}, indent=2))
    else:
        print("\n".join([*matrix(ledger), "", *table(ledger)]))
        for line in found:
            goal = f" (goal {line['goal']})" if "goal" in line else ""
            print(f"{line['name']}: {line['value']} {line['unit']}{goal}")
    if place.is_dir():
        _say(f"the folders of runs that went wrong: {place}")
    return 0 if all(line.get("holds", True) for line in found) else 1


if __name__ == "__main__":
    raise SystemExit(main())
