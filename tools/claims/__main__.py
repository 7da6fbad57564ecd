"""Each paper's headline claim, scaled down: ``python -m tools.claims [--quick] [--json] [METHOD…]``.

A row sets the figure of a method's paper beside the same measured here, on nano models, two processors and small real
data, over three seeds or more, and says whether the claim holds at this scale. Nothing is tuned until it does.

Results are kept in ``tools/claims/results`` with a hash of the source that measured them, of the data and of the
versions of the libraries, so only stale rows run again. CI shows none and runs none: the figures are a statement about
the methods, the tests are what holds them.

    python -m tools.claims                     run what is stale, show everything
    python -m tools.claims lora fedex_lora     of these methods only
    python -m tools.claims lora/traffic        of this claim only
    python -m tools.claims --stored            show what is stored; run nothing
    python -m tools.claims --markdown          the table for the README
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections.abc import Sequence

import torch

from tools.claims.claim import Claim, Seen, chosen
from tools.claims.data import Absent, located
from tools.claims.show import Row, figures, lines, markdown
from tools.claims.source import fingerprint
from tools.claims.stored import Result, find, keep
from tools.claims.world import digits

#: Processor seconds after which ``--quick`` starts no further row.
QUICK = 40.0
_BROKEN = "broken"


def measure(claim: Claim) -> Result:
    """Run a claim's seeds, in this process and on one thread."""
    torch.set_num_threads(1)
    if "digits" in claim.data:
        for seed in claim.seeds:
            digits(seed)  # the pre-training serves all claims and is not in any one's seconds
    began = time.process_time()
    found = [dict(claim.measure(seed)) for seed in claim.seeds]
    seconds = time.process_time() - began
    by_name = Seen({name: [float(figures[name]) for figures in found] for name in found[0]})
    return Result(fingerprint(claim), dict(by_name), round(seconds, 1))


def rows_of(claims: Sequence[Claim], *, again: bool, stored: bool, quick: bool) -> list[Row]:
    """A row for each claim, running what has to be run."""
    began = time.process_time()
    rows = []
    for claim in claims:
        try:
            for name in claim.data:
                located(name)
        except Absent as absent:
            rows.append(Row(claim, None, f"not run: {absent}"))
            continue
        result, fresh = find(claim)
        late = quick and time.process_time() - began > QUICK
        if stored or late or (fresh and not again):
            why = "" if fresh else "not run yet" if result is None else "stale"
            rows.append(Row(claim, result, why))
            continue
        print(f"{claim.key} …", end=" ", flush=True, file=sys.stderr)
        try:
            result = measure(claim)
        except Exception as error:  # one broken row must not cost the night's other ones
            traceback.print_exc()
            rows.append(Row(claim, None, f"{_BROKEN}: {type(error).__name__}: {error}"))
            continue
        keep(claim, result)
        rows.append(Row(claim, result))
        print(f"{rows[-1].verdict}, {result.seconds:.0f} s", file=sys.stderr)
    return rows


def main() -> int:
    """Run what is stale and print; 1 if a row broke, 2 for a name that is not there. A claim may fail: that is 0."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.claims", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("method", nargs="*", help="methods (lora), or single claims (lora/traffic); all by default")
    parser.add_argument("--quick", action="store_true", help=f"start no row after {QUICK:.0f} processor seconds")
    parser.add_argument("--stored", action="store_true", help="run nothing")
    parser.add_argument("--again", action="store_true", help="run what is fresh too")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table")
    told = parser.parse_args()
    try:
        claims = chosen(told.method)
    except ValueError as error:
        print(f"tools.claims: {error}", file=sys.stderr)
        return 2
    rows = rows_of(claims, again=told.again, stored=told.stored, quick=told.quick)
    if told.json:
        print(json.dumps({"figures": figures(rows)}, indent=2))
        return 0
    print("\n".join(markdown(rows) if told.markdown else lines(rows)))
    known = [row for row in rows if row.holds is not None]
    print(f"{sum(bool(row.holds) for row in known)} of {len(known)} claims hold at this scale", file=sys.stderr)
    return int(any(row.why.startswith(_BROKEN) for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
