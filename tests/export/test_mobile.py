"""The format of mobile builds: says what the graph says, with a list of operators, or is not there."""

from __future__ import annotations

import shutil

import numpy as np
import onnxruntime
import pytest

from fedge.export import mobile, verify
from tests.export.conftest import Case


@pytest.fixture
def folder(vit: Case, tmp_path):
    return shutil.copytree(vit.folder / "adaptive", tmp_path / "adaptive")


def rows(case: Case, count: int = 20) -> dict[str, np.ndarray]:
    return {"pixel_values": case.rows.take(range(count)).columns["pixel_values"].numpy().astype(np.float32)}


def test_it_answers_as_the_graph_does_and_lists_its_operators(vit, folder):
    given = rows(vit)
    assert mobile.mobile(folder, given, "fp32") == (folder / "model.ort").stat().st_size
    both = [verify.open_session(folder / name) for name in ("model.onnx", "model.ort")]
    assert [one.name for one in both[1].get_overridable_initializers()] == ["thresholds"]
    for bound in (-1.0, 0.5, 1e9):
        for at in range(20):
            one = {"pixel_values": given["pixel_values"][at : at + 1], "thresholds": np.asarray([bound], np.float32)}
            (logits, exit_), (theirs, taken) = (session.run(None, one) for session in both)
            assert exit_ == taken
            assert np.allclose(logits, theirs, atol=1e-4)
    operators = (folder / "required_operators_and_types.config").read_text()
    assert "If" in operators
    assert "#" not in operators
    assert not [mark for mark in (b"/tmp", b"site-packages") if mark in (folder / "model.ort").read_bytes()]
    assert (folder / "config.json").is_file()


def test_one_that_answers_otherwise_is_not_kept(vit, folder, monkeypatch):
    convert = mobile._convert

    def of_another(source, place):
        convert(vit.folder / "exit-4" / "model.onnx", place)

    monkeypatch.setattr(mobile, "_convert", of_another)
    shallow = shutil.copytree(vit.folder / "exit-2", folder.parent / "exit-2")
    with pytest.raises(verify.ParityError, match=r"exit-2/model.ort differs from model.onnx by "):
        mobile.mobile(shallow, rows(vit), "fp32")
    assert not (shallow / "model.ort").exists()
    onnxruntime.InferenceSession(str(shallow / "model.onnx"))
