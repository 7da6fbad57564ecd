"""Damage what comes from outside and see that fedge stands it: ``python -m tools.fuzz TARGET… [--count N] [--json]``.

    frames        messages of a real run through the sans-I/O decoder, exchange, session and codecs
    socket        the same through live sockets, ipc and tcp with CURVE, beside an honest device
    yaml          federations and device profiles
    checkpoints   checkpoints, states and the other files of a run's folder, half of them sealed anew

Each case is drawn from the seed and its number, and may end in one of fedge's errors or in nothing. Anything else (any
other exception, more than a second of processor time, more than ten seconds, memory that grows) is a finding: a line in
the ledger, from which ``--only CASE`` plays it again.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from tools.figures import show
from tools.fuzz.campaign import Target, figures, run
from tools.fuzz.corpus import Recording, record

#: Damaged things in full, and with ``--quick``.
FULL = {"frames": 1_000_000, "socket": 20_000, "yaml": 20_000, "checkpoints": 20_000}
QUICK = {"frames": 100_000, "socket": 1_000, "yaml": 1_500, "checkpoints": 2_000}
_EXAMPLES = """\
examples:
  python -m tools.fuzz --quick
  python -m tools.fuzz frames --count 1000000 --seed 1 --ledger fuzz.jsonl
  python -m tools.fuzz yaml --only 1234
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m tools.fuzz",
        description=__doc__,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("targets", nargs="*", metavar="TARGET", help=f"{', '.join(FULL)}; all by default")
    made.add_argument("--count", type=int, metavar="N", help="damaged things to give each target")
    made.add_argument("--seed", type=int, default=0, metavar="N", help="what everything is drawn from (0)")
    made.add_argument("--only", type=int, metavar="CASE", help="play one case again, and show what it raises")
    made.add_argument("--ledger", type=Path, metavar="FILE", help="a line for each finding, added to what is there")
    made.add_argument("--quick", action="store_true", help="within a minute")
    made.add_argument("--json", action="store_true", help="print one JSON document")
    return made


def main(words: Sequence[str] | None = None) -> int:
    """Run the targets; 0 when nothing was found."""
    made = parser()
    told = made.parse_args(words)
    for name in told.targets:
        if name not in FULL:
            made.error(f"'{name}' is none of {', '.join(FULL)}")
    torch.set_num_threads(1)
    found = []
    with tempfile.TemporaryDirectory(prefix="fedge-fuzz-") as place:
        recorded: list[Recording] = []
        for name in told.targets or list(FULL):
            target = _target(name, Path(place), recorded)
            count = told.count or (QUICK if told.quick else FULL)[name]
            try:
                out = run(target, 1 if told.only is not None else count, told.seed, told.ledger, _say, told.only)
            finally:
                target.close()
            for line in out.findings[:20]:
                _say(f"{name}: case {line['case']}: {line['error']} at {' < '.join(reversed(line['at']))}")
            met = ", ".join(f"{way} {times}" for way, times in sorted(out.met.items()))
            _say(f"{name}: {out.counted} damaged in {out.cases} cases, {out.seconds:.0f} s; met by: {met}")
            found += figures(name, out)
    return show(found, told.json)


def _target(name: str, place: Path, recorded: list[Recording]) -> Target:
    if name == "yaml":
        from tools.fuzz.texts import TextTarget

        return TextTarget(place)
    if not recorded:
        _say("recording the messages and files of a real run")
        recorded.append(record(place))
    if name == "frames":
        from tools.fuzz.frames import FrameTarget

        return FrameTarget(recorded[0])
    if name == "socket":
        from tools.fuzz.live import LiveTarget

        return LiveTarget(recorded[0], place)
    from tools.fuzz.folders import FolderTarget

    return FolderTarget(recorded[0], place)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
