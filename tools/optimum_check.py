"""Exported folders read by others: ``python -m tools.optimum_check EXPORT … [--rows N] [--env DIR] [--json]``.

Optimum wants an older transformers than fedge, so it gets an environment of its own, made at the first call and kept in
``--env``. There a folder is run twice on the test rows of its run: by onnxruntime alone, and by Optimum's class for the
task with the tokenizer that lies in the folder; the labels must be those that fedge gets.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

import numpy as np

from fedge.errors import FedgeError
from fedge.export import verify
from fedge.run.exporting import columns_of
from fedge.run.prepare import Prepared, prepare
from fedge.spec import load_federation
from tools.figures import figure, show

#: What is installed: the newest Optimum for ONNX, the newest transformers that it takes, and fedge's own runtime.
PACKAGES = ("optimum-onnx==0.1.0", "transformers==4.57.6", "onnxruntime==1.31.1", "torch==2.13.0")
SIDE = Path(__file__).with_name("optimum_side.py")


def environment(place: Path) -> Path:
    """The environment's interpreter; makes it where it is not there. FedgeError when that fails."""
    python = place / "bin" / "python"
    done = place / ".ready"
    if done.exists() and done.read_text() == " ".join(PACKAGES):
        return python
    print(f"tools.optimum_check: installing {', '.join(PACKAGES)} into {place}", file=sys.stderr)
    venv.create(place, with_pip=True, clear=True)
    told = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PACKAGES]
    made = subprocess.run(told, capture_output=True, text=True)
    if made.returncode:
        lines = made.stderr.strip().splitlines() or ["pip failed"]
        raise FedgeError(f"the environment cannot be made: {lines[-1]}", hint="--env DIR names one that is there")
    done.write_text(" ".join(PACKAGES))
    return python


def file_of(folder: Path) -> str:
    """The graph to open: the only one, or of a chain the deepest exit's."""
    if (folder / "model.onnx").is_file():
        return "model.onnx"
    try:
        exits = json.loads((folder / "exits.json").read_text())["exits"]
    except OSError:
        raise FedgeError(f"{folder} is no exported target", hint="a folder such as RUN/export/exit-6") from None
    return f"exit-{exits[-1]}.onnx"


def check(folder: Path, prepared: Prepared, rows: int, python: Path) -> dict[str, Any]:
    """One folder: the labels of fedge, of onnxruntime alone and of Optimum, as a figure."""
    file, data = file_of(folder), prepared.data
    # texts as they are, so that the folder's own tokenizer is tried too; a language model's rows are windows of them
    texts = prepared.raw.test.text if data.task.kind == "text-classification" else None
    columns = columns_of(data.test, prepared.loaded, rows)
    session = verify.open_session(folder / file)
    mine = []
    for at in range(len(next(iter(columns.values())))):
        row = {name: column[at : at + 1] for name, column in columns.items()}
        if "attention_mask" in row:
            width = int(row["attention_mask"].sum())
            row = {name: column[:, :width] for name, column in row.items()}
        logits = session.run(["logits"], {one.name: row[one.name] for one in session.get_inputs()})[0]
        mine.append(int((logits[0] if logits.ndim == 2 else logits[0, -1]).argmax()))
    with tempfile.TemporaryDirectory(prefix="fedge-tool-") as place:
        told = {
            "task": data.task.kind,
            "length": prepared.spec.data.length,
            "file": file,
            "texts": None if texts is None else texts[: len(mine)],
        }
        (Path(place) / "rows.json").write_text(json.dumps(told))
        np.savez(Path(place) / "rows.npz", **({} if texts is not None else columns))
        command = [str(python), str(SIDE), str(folder), f"{place}/rows.json", f"{place}/rows.npz"]
        # nothing of this environment's packages, and no word to a hub
        surroundings = {"PATH": os.environ["PATH"], "HOME": place, "HF_HUB_OFFLINE": "1"}
        found = subprocess.run(command, capture_output=True, text=True, env=surroundings)
    if found.returncode:
        lines = found.stderr.strip().splitlines() or [f"status {found.returncode}"]
        raise FedgeError(f"{folder.name} cannot be run in the other environment: {lines[-1]}")
    said = json.loads(found.stdout.splitlines()[-1])
    equal = [one == alone == other for one, alone, other in zip(mine, said["alone"], said["optimum"], strict=True)]
    name = f"{folder.name}: same label by fedge, onnxruntime alone and Optimum"
    line = figure(name, [float(np.mean(equal))], "of labels", least=1.0)
    return {**line, "n": len(mine), "class": said["class"], "versions": said["versions"]}


def main() -> int:
    """Check each folder and print; 0 when all labels are equal."""
    parser = argparse.ArgumentParser(prog="python -m tools.optimum_check", description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path, metavar="EXPORT", help="folders such as RUN/export/adaptive")
    parser.add_argument("--rows", type=int, default=200, help="test rows of the run, the first ones")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    parser.add_argument("--env", type=Path, default=cache / "fedge" / "optimum", help="where the environment is kept")
    parser.add_argument("--quick", action="store_true", help="32 rows")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    told = parser.parse_args()
    lines = []
    try:
        python = environment(told.env)
        runs: dict[Path, Prepared] = {}
        for folder in (path.resolve() for path in told.folders):
            run = next((parent for parent in folder.parents if (parent / "resolved.yaml").is_file()), None)
            if run is None:
                raise FedgeError(f"{folder} does not lie in a run's folder", hint="give RUN/export/TARGET")
            if run not in runs:
                runs[run] = prepare(load_federation(run / "resolved.yaml"), lambda line: print(line, file=sys.stderr))
            lines.append(check(folder, runs[run], 32 if told.quick else told.rows, python))
    except FedgeError as error:
        print(f"tools.optimum_check: {error}", file=sys.stderr)
        return error.exit_code
    return show(lines, told.json)


if __name__ == "__main__":
    raise SystemExit(main())
