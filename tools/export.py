"""What exports are worth: ``python -m tools.export [--data FOLDER] [--run RUN [--plain RUN]] [--quick] [--json]``.

Models with exits become ONNX as ``fedge export`` makes them, and every graph of every precision is held against PyTorch
on the whole test split: truncated at each exit, leaving by itself, and as a chain. Without more words that is a small
vision transformer on digits; with ``--data`` (a folder with cifar10_subset.npz and tiny_shakespeare/) also one on
CIFAR-10 and a small language model; with ``--run`` the model of a finished run with a deploy stage, with what it takes
to leave at each exit. The run's own export is left as it is.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedge.errors import FedgeError
from fedge.export.criteria import scores, taken
from fedge.export.exits import Judged, export_exits
from fedge.export.job import Exported
from fedge.export.measure import Order, measure
from fedge.export.policy import held_apart
from fedge.export.verify import AGREEMENT, ParityError
from fedge.report.exports import export_tables
from fedge.run.exporting import Wish, columns_of, export
from fedge.run.folder import RunFolder
from tools.exported import Case, digits, images, text
from tools.figures import figure, show

PRECISIONS = ("fp32", "fp16", "int8")
#: Answers equal to PyTorch's that the goals ask for, and what the last exit may lose or leaving early cost.
PARITY, MIB, FIRST, POLICY, MINUTES = 1e-4, 2**20, 0.35, 0.6, 180.0
ALWAYS, NEVER = -1.0, 1e9


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@dataclass
class Watch:
    """Seconds of processor time and of wall between the first stage that is traced and the end of fp32."""

    cpu: float = 0.0
    wall: float = 0.0
    _began: tuple[float, float] | None = field(default=None, repr=False)

    def __call__(self, line: str) -> None:
        say(line)
        now = (time.process_time(), time.perf_counter())
        if line.startswith("stage 1:"):
            self._began = now
        elif self._began and not self.wall and ("-fp16:" in line or "-int8:" in line or " queries in a " in line):
            self.cpu, self.wall = now[0] - self._began[0], now[1] - self._began[1]


def agreement(name: str, exported: Sequence[Exported], rows: int) -> list[dict[str, Any]]:
    """Parity of the fp32 graphs and agreement of labels of the others, each the worst over all targets."""
    exact = [one.parity_max_abs for one in exported if one.precision == "fp32"]
    lines = []
    if exact:
        worst = figure(
            f"{name}: largest difference of a logit to PyTorch, fp32, worst target", [max(exact)], "", PARITY
        )
        lines.append({**worst, "targets": len(exact), "n": rows})
    for precision in sorted({one.precision for one in exported} - {"fp32"}):
        least = min(one.agreement for one in exported if one.precision == precision)
        goal = AGREEMENT[precision]
        line = figure(f"{name}: same label as PyTorch, {precision}, worst target", [least], "of labels", least=goal)
        lines.append({**line, "n": rows})
    return lines


def small(case: Case) -> list[dict[str, Any]]:
    """A freshly trained small model, exported in every precision."""
    with tempfile.TemporaryDirectory(prefix="fedge-tool-") as place:
        try:
            exported = export_exits(
                case.model,
                case.loaded,
                case.rows,
                Path(place) / "export",
                about={"name": case.name},
                precision=PRECISIONS,
                progress=say,
            )
        except ParityError as error:
            return [_failed(case.name, error)]
        accuracy = next(one.accuracy for one in exported if one.target == f"exit-{case.model.points[-1]}")
        return [
            {**line, "accuracy": accuracy, "precisions": list(PRECISIONS)}
            for line in agreement(case.name, exported, len(case.rows))
        ]


def _failed(name: str, error: ParityError) -> dict[str, Any]:
    return {"name": f"{name}: {error.message}", "value": None, "unit": "", "goal": "parity", "holds": False, "n": 0}


@contextmanager
def beside(run: Path) -> Iterator[Path]:
    """A folder that stands for the run's and has an export of its own."""
    with tempfile.TemporaryDirectory(prefix="fedge-tool-") as place:
        for path in RunFolder.open(run).path.resolve().iterdir():
            if path.name != "export":
                (Path(place) / path.name).symlink_to(path)
        yield Path(place)


def of_run(run: Path, plain: Path | None, precisions: Sequence[str], repeats: int) -> list[dict[str, Any]]:
    """Every figure of a finished run's export; prints the table of exits and precisions."""
    watch = Watch()
    with beside(run) as place:
        try:
            outcome = export(place, Wish(precision=tuple(precisions)), watch)
        except ParityError as error:
            return [_failed(run.name, error)]
        exported = [Exported(**{name: line[name] for name in Exported.__annotations__}) for line in outcome.exports]
        rows = len(next(iter(outcome.judged.values())).wanted)
        with _to_stderr():
            export_tables(outcome.exports, [])
        lines = agreement(run.name, exported, rows)
        lines.append(figure("exporting all targets in fp32, elapsed (a free host's time)", [watch.wall], "s", MINUTES))
        lines.append(figure("the same in processor time, of all cores together", [watch.cpu], "s"))
        for line in outcome.exports:
            if (line["target"], line["precision"]) == ("adaptive", "int8"):
                lines.append(figure("graph that decides itself, int8", [line["bytes"] / MIB], "MiB", 24e6 / MIB))
        columns = columns_of(*outcome.test, 200)
        for precision, judged in outcome.judged.items():
            lines += leaving(place / "export", precision, judged, columns, repeats)
    if plain is not None:
        without = RunFolder.open(plain).read_json("summary.json")["stages"][-1]["metrics"]["accuracy"]
        judged = outcome.judged["fp32"]
        deepest = float((judged.logits[-1].argmax(-1) == judged.wanted).mean())
        lines.append(figure("accuracy without exits, less the deepest exit's", [without - deepest], "", 0.015))
    return [*lines, {"name": "table", "value": len(exported), "unit": "files", "n": rows, "rows": outcome.exports}]


def leaving(
    export: Path, precision: str, judged: Judged, columns: dict[str, np.ndarray], repeats: int
) -> list[dict[str, Any]]:
    """What leaving at each exit takes of one thread, and what the thresholds that were chosen save at which accuracy.

    The exits of the graph that decides itself are taken by force, in turn, so that each ratio is of times side by side.
    """
    folder = export / ("adaptive" if precision == "fp32" else f"adaptive-{precision}")
    free = len(judged.points) - 1
    times = []
    for _ in range(repeats):
        once = []
        for at in range(free + 1):
            bounds = [NEVER] * at + [ALWAYS] * (free - at)
            found = measure(Order(folder / "model.onnx", queries=60, thresholds=bounds), columns)
            assert set(found.exits[: found.queries]) == {at}
            once.append(1000 * statistics.median(found.cpu_s))
        times.append(once)
    policy = _policy(folder)
    _, rest = held_apart(len(judged.wanted))
    exits = taken(scores(judged.logits, policy["criterion"])[rest], policy["thresholds"])
    right = np.stack([each[rest].argmax(-1) == judged.wanted[rest] for each in judged.logits])
    gained = float(right[exits, np.arange(len(rest))].mean() - right[-1].mean())
    shares = np.bincount(exits, minlength=free + 1) / len(exits)
    first, costs = [once[0] / once[-1] for once in times], [float(shares @ once) / once[-1] for once in times]
    lines = [
        figure(f"processor time at exit {point}, one thread, {precision}", [once[at] for once in times], "ms")
        for at, point in enumerate(judged.points)
    ]
    lines.append(figure(f"processor time at the first exit against the last, {precision}", first, "×", FIRST))
    cost = figure(
        f"mean processor time with the chosen thresholds against the last exit, {precision}", costs, "×", POLICY
    )
    named = {f"exit-{point}": round(float(share), 4) for point, share in zip(judged.points, shares, strict=True)}
    lines.append({**cost, "shares": named})
    accuracy = figure(
        f"accuracy with the chosen thresholds, less the last exit's, {precision}", [gained], "", least=-0.005
    )
    lines.append({**accuracy, "n": len(rest), "last": round(float(right[-1].mean()), 4)})
    return lines


def _policy(folder: Path) -> dict[str, Any]:
    import json

    found: dict[str, Any] = json.loads((folder / "exits.json").read_text())["policy"]
    return found


@contextmanager
def _to_stderr() -> Iterator[None]:
    out, sys.stdout = sys.stdout, sys.stderr
    try:
        yield
    finally:
        sys.stdout = out


def main() -> int:
    """Measure and print; 0 when the goals hold."""
    parser = argparse.ArgumentParser(prog="python -m tools.export", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", type=Path, metavar="FOLDER", help="where cifar10_subset.npz and tiny_shakespeare/ lie"
    )
    parser.add_argument("--run", type=Path, metavar="RUN", help="a finished run with a deploy stage")
    parser.add_argument("--plain", type=Path, metavar="RUN", help="the run of the same model without exits")
    parser.add_argument("--precision", default="fp32,fp16,int8,int4", metavar="P,P", help="of the run's export")
    parser.add_argument("--repeats", type=int, default=5, help="times that every exit is measured, in turn")
    parser.add_argument("--quick", action="store_true", help="the model on digits alone")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    told = parser.parse_args()
    torch.set_num_threads(min(2, len(os.sched_getaffinity(0))))
    cases: list[Callable[[], Case]] = [digits]
    if told.data and not told.quick:
        cases += [lambda: images(told.data), lambda: text(told.data)]
    lines: list[dict[str, Any]] = []
    try:
        if told.run is None:
            for make in cases:
                lines += small(make())
        else:
            lines += of_run(told.run, told.plain, told.precision.split(","), 2 if told.quick else told.repeats)
    except FedgeError as error:
        print(f"tools.export: {error}", file=sys.stderr)
        return error.exit_code
    return show(lines, told.json)


if __name__ == "__main__":
    raise SystemExit(main())
