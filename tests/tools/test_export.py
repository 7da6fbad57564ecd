"""What ``tools.export`` and ``tools.optimum_check`` make of what was measured, without exporting anything."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fedge.export.criteria import scores, taken
from fedge.export.exits import Judged
from fedge.export.job import Exported
from fedge.export.measure import Measured
from fedge.export.policy import held_apart
from fedge.export.work import Leaving
from tools import export as tool
from tools import optimum_check, optimum_side
from tools.figures import figure


def test_a_figure_may_have_a_least_and_keeps_small_numbers():
    assert figure("same", [0.97, 0.99, 0.98], "of labels", least=0.98)["holds"]
    assert not figure("same", [0.97], "of labels", least=0.98)["holds"]
    assert figure("apart", [1.23456e-5], "", 1e-4) | {"spread": 0} == {
        "name": "apart",
        "value": 1.23e-05,
        "unit": "",
        "goal": "<= 0.0001",
        "holds": True,
        "spread": 0,
        "n": 1,
    }


def exported(target: str, precision: str, apart: float, same: float) -> Exported:
    return Exported(target, f"export/{target}", precision, 1, 0.9, apart, same)


def test_the_worst_target_speaks_for_a_precision():
    made = [exported("exit-2", "fp32", 1e-6, 1.0), exported("chain", "fp32", 2e-4, 1.0)]
    made += [exported("exit-2", "int8", 0.3, 0.99), exported("adaptive", "int8", 0.4, 0.91)]
    exact, eight = tool.agreement("it", made, 40)
    assert (exact["value"], exact["holds"], exact["n"], exact["targets"]) == (2e-4, False, 40, 2)
    assert (eight["value"], eight["goal"], eight["holds"]) == (0.91, ">= 0.92", False)


def test_time_and_accuracy_of_chosen_thresholds(tmp_path, monkeypatch):
    """Exits that take 1, 2 and 4 ms, each forced; the shares of the exits are those of the reported rows."""
    draw = np.random.default_rng(4)
    wanted = draw.integers(3, size=400)
    logits = [draw.normal(size=(400, 3)) + 2 * (at + 1) * np.eye(3)[wanted] for at in range(3)]
    judged = Judged((2, 4, 6), logits, wanted, [Leaving(1.0, 1.0, 1)] * 3)
    policy = {"criterion": "max_prob", "thresholds": [0.9, 0.8]}
    (tmp_path / "adaptive-int8").mkdir()
    (tmp_path / "adaptive-int8" / "exits.json").write_text(json.dumps({"policy": policy}))
    forced = []

    def measure(order, columns):
        assert order.model == tmp_path / "adaptive-int8" / "model.onnx"
        at = int(taken(np.asarray([[0.5, 0.5, 0.5]]), order.thresholds)[0])
        forced.append(at)
        return Measured(0.0, 3, 0.1, [2.0**at / 1000] * 3, [1.0] * 3, [0] * 3, [at] * 3, 0)

    monkeypatch.setattr(tool, "measure", measure)
    lines = {line["name"]: line for line in tool.leaving(tmp_path, "int8", judged, {}, 2)}
    assert forced == [0, 1, 2] * 2
    assert lines["processor time at exit 4, one thread, int8"]["value"] == 2
    assert lines["processor time at the first exit against the last, int8"]["value"] == 0.25
    rest = held_apart(400)[1]
    exits = taken(scores(logits, "max_prob")[rest], [0.9, 0.8])
    cost = lines["mean processor time with the chosen thresholds against the last exit, int8"]
    assert cost["value"] == pytest.approx((2.0**exits / 4).mean(), abs=1e-3)
    assert sum(cost["shares"].values()) == pytest.approx(1, abs=1e-3)
    right = np.stack([each[rest].argmax(-1) == wanted[rest] for each in logits])
    gained = right[exits, np.arange(len(rest))].mean() - right[-1].mean()
    lost = lines["accuracy with the chosen thresholds, less the last exit's, int8"]
    assert (lost["value"], lost["n"]) == (pytest.approx(gained, abs=1e-3), 200)


def test_the_time_of_an_export_ends_where_the_next_precision_begins():
    watch = tool.Watch()
    for line in ("data: reading", "stage 1: blocks up to 2 become an ONNX graph", "exit-2: comparing it"):
        watch(line)
    assert watch.wall == 0
    watch("exit-2-fp16: comparing it")
    first = watch.wall
    assert first > 0
    watch("exit-2-int8: comparing it")
    assert watch.wall == first


def test_labels_of_rows_and_of_token_positions(tmp_path):
    assert optimum_side.label(np.asarray([[0.1, 0.7, 0.2]])) == 1
    assert optimum_side.label(np.asarray([[[9.0, 0.0], [0.0, 1.0]]])) == 1
    (tmp_path / "exits.json").write_text(json.dumps({"exits": [2, 4]}))
    assert optimum_check.file_of(tmp_path) == "exit-4.onnx"
    (tmp_path / "model.onnx").write_bytes(b"")
    assert optimum_check.file_of(tmp_path) == "model.onnx"


def test_an_environment_that_cannot_be_made_is_one_line(tmp_path, monkeypatch, capsys):
    class Failed:
        returncode, stderr = 1, "noise\nERROR: no matching distribution"

    monkeypatch.setattr(optimum_check.venv, "create", lambda place, **options: place.mkdir())
    monkeypatch.setattr(optimum_check.subprocess, "run", lambda *words, **options: Failed())
    monkeypatch.setattr(optimum_check.sys, "argv", ["it", str(tmp_path), "--env", str(tmp_path / "env")])
    assert optimum_check.main() == 1
    assert "the environment cannot be made: ERROR: no matching distribution" in capsys.readouterr().err
