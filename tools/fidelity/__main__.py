"""How exactly a device is one: ``python -m tools.fidelity [SUBJECT …] [--quick] [--json]``.

Each figure says what was asked, what was measured, in how many repeats and with what spread. Without a subject all are
measured, one after another; --quick takes fewer cases and repeats. Where this user may, the processes measured are
favoured over all others of the host (``shielded``): what others take is no fault of a limit's.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from typing import Any

from fedge.errors import FedgeError
from tools.fidelity.seen import line
from tools.fidelity.shield import shielded

#: Each subject with its module and what it is about.
SUBJECTS = {
    "cpu": ("tools.fidelity.cpu", "the share of a core that each quota leaves a process"),
    "link": ("tools.fidelity.link", "the rate of a paced message, both ways"),
    "latency": ("tools.fidelity.latency", "the round trip of a paced message"),
    "trace": ("tools.fidelity.trace", "a recorded cellular link replayed: bytes in every ten seconds"),
    "memory": ("tools.fidelity.memory", "the accounted peak against the wall's"),
    "verdicts": ("tools.fidelity.verdicts", "whom each memory wall kills: 5 % under the need, and not 10 % over it"),
    "clock": ("tools.fidelity.clock", "rounds of six devices under the real clock against the virtual one"),
    "clock-error": ("tools.fidelity.clockerror", "the virtual clock against processor time on this host"),
    "accounting": ("tools.fidelity.accounting", "what the virtual clock's counting costs training"),
    "ondevice": ("tools.fidelity.ondevice", "the virtual clock against measurements on devices by others"),
    "determinism": ("tools.fidelity.determinism", "virtual times on one slot, on two, and beside a busy process"),
}


def main() -> int:
    """Measure and print; 0 when every goal holds."""
    told = "\n".join(f"  {name:12} {about}" for name, (_, about) in SUBJECTS.items())
    parser = argparse.ArgumentParser(
        prog="python -m tools.fidelity",
        description=__doc__,
        epilog=f"subjects:\n{told}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("subjects", nargs="*", metavar="SUBJECT", help="what to measure; everything by default")
    parser.add_argument("--quick", action="store_true", help="fewer cases and repeats")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args()
    for name in options.subjects:
        if name not in SUBJECTS:
            parser.error(f"there is no subject '{name}'; there are {', '.join(SUBJECTS)}")
    found: list[dict[str, Any]] = []
    try:
        with shielded() as first:
            for name in options.subjects or SUBJECTS:
                for figure in importlib.import_module(SUBJECTS[name][0]).measure(options.quick):
                    about = {"load": round(os.getloadavg()[0], 1), "shielded": first}
                    found.append({"subject": name, **figure, **about})
                    if not options.json:
                        print(line(found[-1]), flush=True)
    except FedgeError as error:
        print(f"tools.fidelity: {error}", file=sys.stderr)
        return error.exit_code
    if options.json:
        print(json.dumps({"figures": found}, indent=2))
    return 0 if all(figure.get("holds", True) for figure in found) else 1


if __name__ == "__main__":
    raise SystemExit(main())
