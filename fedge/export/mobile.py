"""The ORT format of an exported graph, for a runtime built with the operators of one model alone (phones, boards).

Beside ``model.onnx`` lie ``model.ort`` and a list of the operators and types that it needs, which onnxruntime's build
takes as ``--include_ops_by_config``. The graph is optimised while it is converted, without what holds for this host's
processor alone, and held against ``model.onnx`` before it is kept.
"""

from __future__ import annotations

import io
import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import numpy as np
import onnxruntime

from fedge.errors import FedgeError
from fedge.export.folder import whole
from fedge.export.verify import AGREEMENT, MODEL_FILE, TOLERANCE, USUAL, ParityError, open_session

ORT_FILE = "model.ort"
OPERATORS_FILE = "required_operators_and_types.config"
#: Rows on which the two are held against each other.
_ROWS = 64


def mobile(folder: Path, columns: Mapping[str, np.ndarray], precision: str) -> int:
    """Put ``model.ort`` and its operator list into the folder of an exported graph; returns the bytes of the first.

    columns: rows of inputs by name. ParityError when the two do not say the same on them, FedgeError when onnxruntime's
    tool fails; the folder stays as it was then.
    """
    with tempfile.TemporaryDirectory(prefix="fedge-export-") as made:
        _convert(folder / MODEL_FILE, Path(made))
        _compare(folder, Path(made) / ORT_FILE, columns, precision)
        with whole(folder) as place:
            shutil.copytree(folder, place, dirs_exist_ok=True)
            shutil.copyfile(Path(made) / ORT_FILE, place / ORT_FILE)
            told = (Path(made) / f"{Path(MODEL_FILE).stem}.{OPERATORS_FILE}").read_text(encoding="utf-8")
            # the tool's own comments say where it found the model
            lines = [line for line in told.splitlines() if line.strip() and not line.startswith("#")]
            (place / OPERATORS_FILE).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return (folder / ORT_FILE).stat().st_size


def _convert(source: Path, place: Path) -> None:
    from onnxruntime.tools.convert_onnx_models_to_ort import OptimizationStyle, convert_onnx_models_to_ort

    try:
        with redirect_stdout(io.StringIO()), _quiet():
            convert_onnx_models_to_ort(
                source,
                output_dir=place,
                optimization_styles=[OptimizationStyle.Fixed],
                target_platform="arm",
                enable_type_reduction=True,
            )
    except Exception as error:
        lines = str(error).splitlines() or [type(error).__name__]
        raise FedgeError(f"onnxruntime's tool cannot bring {source.parent.name} into its format: {lines[0]}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Neither the tool's log nor the runtime's warning that thresholds can be given."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    onnxruntime.set_default_logger_severity(3)
    try:
        yield
    finally:
        onnxruntime.set_default_logger_severity(2)
        logging.disable(before)


def _compare(folder: Path, path: Path, columns: Mapping[str, np.ndarray], precision: str) -> None:
    """Row by row, since a graph that decides itself does so for a row."""
    sessions = [open_session(folder / MODEL_FILE), open_session(path)]
    names = [one.name for one in sessions[0].get_inputs()]
    apart, largest, same = 0.0, 0.0, 0
    rows = min(_ROWS, len(columns[names[0]]))
    for at in range(rows):
        row = {name: columns[name][at : at + 1] for name in names}
        wanted, found = (session.run(None, row) for session in sessions)
        apart = max(apart, float(np.abs(wanted[0] - found[0]).max()))
        largest = max(largest, float(np.abs(wanted[0]).max()))
        same += int(
            (wanted[0].argmax(-1) == found[0].argmax(-1)).all()
            and all((one == other).all() for one, other in zip(wanted[1:], found[1:], strict=True))
        )
    if precision in TOLERANCE:
        kept = apart <= TOLERANCE[precision] * max(1.0, largest / USUAL)
    else:
        kept = same >= AGREEMENT[precision] * rows
    if not kept:
        raise ParityError(f"{folder.name}/{ORT_FILE} differs from {MODEL_FILE} by {apart:.3g}; it was not kept")
