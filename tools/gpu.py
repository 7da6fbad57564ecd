"""Shares of a GPU, measured wherever there is one: ``python -m tools.gpu [--json]``.

Two processes side by side are held to shares of its memory: one goes over and has to be lost, the other must not be.
Then, where the control daemon of MPS runs, products of matrices under shares of its multiprocessors, against all of
them. This has not run on a GPU yet.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from typing import Any

from fedge.emulation.cuda import context_bytes, hold_memory, mps_running, mps_share
from fedge.emulation.process import gpus
from fedge.errors import LimitError

SHARES = (0.25, 0.5, 1.0)
MEMORY = 2 << 30
#: Exit code of a process that went over its memory.
LOST = 3


def memory(free: int, need: int) -> None:
    """A process that is held to ``MEMORY`` and allocates ``need`` bytes."""
    import torch

    context = context_bytes(torch.cuda, 0, free)
    hold_memory(torch.cuda, 0, MEMORY, context)
    print(json.dumps({"context": context}), flush=True)
    try:
        held = [torch.ones(1 << 22, device="cuda:0") for _ in range(need >> 24)]
        torch.cuda.synchronize()
    except torch.cuda.OutOfMemoryError:
        raise SystemExit(LOST) from None
    del held


def speed(seconds: float) -> None:
    """Products of matrices a second."""
    import torch

    a = torch.randn(4096, 4096, device="cuda:0")
    a @ a
    torch.cuda.synchronize()
    begun, count = time.monotonic(), 0
    while time.monotonic() - begun < seconds:
        a @ a
        torch.cuda.synchronize()
        count += 1
    print(json.dumps({"rate": count / (time.monotonic() - begun)}), flush=True)


def _child(*words: str, **environment: str) -> subprocess.Popen[str]:
    told = [sys.executable, "-m", "tools.gpu", "--child", *words]
    return subprocess.Popen(told, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment})


def _free() -> int:
    told = ["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits", "-i", "0"]
    return int(subprocess.run(told, capture_output=True, text=True, check=True).stdout.split()[0]) << 20


def measure() -> list[dict[str, Any]]:
    """All figures; takes about a minute."""
    found: list[dict[str, Any]] = []
    # one after the other up to their contexts, for each is measured by what the GPU has less of
    over = _child("memory", str(_free()), str(2 * MEMORY))
    first = over.stdout.readline() if over.stdout else ""
    under = _child("memory", str(_free()), str(MEMORY // 2))
    second = under.stdout.readline() if under.stdout else ""
    codes = (over.wait(), under.wait())
    for name, line in (("over", first), ("under", second)):
        value = json.loads(line)["context"] >> 20 if line else None
        found.append({"name": f"context of the process that stays {name}", "value": value, "unit": "MiB", "n": 1})
    told = f"over its share: exit {codes[0]}, under: exit {codes[1]}"
    held = codes == (LOST, 0)
    found.append({"name": "memory shares side by side", "value": told, "unit": "", "goal": "holds", "holds": held})
    if mps_running():
        rates = {share: _rate(share) for share in SHARES}
        found += [
            {"name": f"MPS, {share:.0%}: products against all of the GPU", "unit": "%", "n": 1}
            | {"asked": 100 * share, "value": round(100 * rate / rates[1.0], 1)}
            for share, rate in rates.items()
        ]
    else:
        print("tools.gpu: the control daemon of MPS does not run: its shares are not measured", file=sys.stderr)
    return found


def _rate(share: float) -> float:
    child = _child("speed", "5", **mps_share(share))
    told, _ = child.communicate()
    return float(json.loads(told)["rate"])


def main() -> int:
    """Measure and print; 0 when what has to hold does."""
    parser = argparse.ArgumentParser(prog="python -m tools.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.child:
        kind, *numbers = told.child
        memory(*map(int, numbers)) if kind == "memory" else speed(float(numbers[0]))
        return 0
    if not gpus():
        error = LimitError("no NVIDIA GPU on this host: nothing is measured")
        print(f"tools.gpu: {error}", file=sys.stderr)
        return error.exit_code
    found = measure()
    if told.json:
        print(json.dumps({"figures": found}, indent=2))
    else:
        for line in found:
            print(f"{line['name']}: {line['value']} {line['unit']}")
    return 0 if all(line.get("holds", True) for line in found) else 1


if __name__ == "__main__":
    raise SystemExit(main())
