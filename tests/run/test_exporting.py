"""``fedge export`` and ``fedge infer`` over a run's folder that was made by hand, without training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from fedge.__main__ import run as command
from fedge.core.rng import generator
from fedge.models.exits import MultiExit
from fedge.models.save import save
from fedge.models.share import share
from fedge.run.prepare import prepare
from fedge.spec import load_federation, resolved

FEDERATION = """
name: tiny
model: vit-nano
data: {dataset: digits}
devices:
  pi: {profile: pi-4b-4g, count: 2}
  dust: {profile: pi-zero-2w, memory: 1MiB}
stages:
  - deploy: {method: anytime, exits: [2, 4], rounds: 1}
"""


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """A run's folder with a model of random exits, exported once."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("run")
    (folder / "federation.yaml").write_text(FEDERATION)
    spec = load_federation(folder / "federation.yaml")
    (folder / "resolved.yaml").write_text(resolved(spec))
    prepared = prepare(spec, lambda line: None)
    model = MultiExit(share(prepared.loaded.model), (2, 4), prepared.loaded.task.classes).eval()
    draw = generator("heads")
    for head in model.exits.values():
        head.classifier.weight.data.normal_(generator=draw)
    save(model, folder / "model", prepared.loaded)
    words = ["export", str(folder), "--precision", "fp32,int8", "--for", "pi,dust", "--budget", "90ms", "--json"]
    assert command(words) == 0
    return folder


def said(capsys) -> dict:
    return json.loads(capsys.readouterr().out)


@pytest.mark.slow
def test_a_table_of_files_and_one_of_devices(finished, capsys):
    capsys.readouterr()
    assert command(["export", str(finished), "--exits", "2,4", "--for", "pi,dust", "--json"]) == 0
    found = said(capsys)
    assert [line["target"] for line in found["exports"]] == ["exit-2", "exit-4", "adaptive", "chain"]
    for line in found["exports"][:3]:
        assert line["cpu_ms"] > 0
        assert line["memory"] > 0
        assert line["parity_max_abs"] <= 1e-4
    pi, dust = found["devices"]
    assert dust["target"] is None
    assert "needs" in dust["refused"]
    assert "dust grants 1.0 MiB" in dust["refused"]
    assert (finished / pi["folder"] / "model.onnx").is_file()


@pytest.mark.slow
def test_a_device_gets_its_own_thresholds_and_infer_runs_it(finished, capsys):
    place = finished / "export" / "for" / "pi"
    assert (place / "model.onnx").is_file()
    assert not (finished / "export" / "for" / "dust").exists()
    capsys.readouterr()
    assert command(["infer", str(finished / "export" / "adaptive-int8"), "--queries", "64", "--json"]) == 0
    (found,) = said(capsys)["infer"]
    assert found["queries"] == 64
    assert sum(found["exits_taken"].values()) == 64
    assert 0 <= found["accuracy"] <= 1
    assert command(["infer", str(finished / "export" / "chain"), "--batch", "50", "--json"]) == 0
    (found,) = said(capsys)["infer"]
    manifest = json.loads((finished / "export" / "chain" / "exits.json").read_text())
    assert sum(found["exits_taken"].values()) == manifest["parity"]["rows"]


@pytest.mark.slow
def test_what_cannot_be_exported_or_run_is_one_line(finished, tmp_path, capsys):
    plain = tmp_path / "plain"
    plain.mkdir()
    text = FEDERATION.replace(
        "deploy: {method: anytime, exits: [2, 4], rounds: 1}", "customize: {method: head, rounds: 1}"
    )
    (plain / "federation.yaml").write_text(text)
    (plain / "resolved.yaml").write_text(resolved(load_federation(plain / "federation.yaml")))
    damaged = finished / "export" / "damaged"
    shutil.copytree(finished / "export" / "exit-2", damaged)
    (damaged / "exits.json").write_text(json.dumps({"exit": 2, "exits": [2], "policy": {}, "cost": []}))
    (damaged / "model.onnx").write_bytes(b"\x08\x07no model")
    capsys.readouterr()
    for words, code, line in (
        (["export", str(plain)], 2, "has no deploy stage"),
        (["export", str(tmp_path)], 2, "is not a run's folder"),
        (["export", str(finished), "--exits", "2,9"], 2, "no exit after block 9; the model has exits after 2, 4"),
        (["export", str(finished), "--precision", "int3"], 2, "precision 'int3' cannot be exported"),
        (["export", str(finished), "--for", "toaster"], 2, "there is no device 'toaster'"),
        (["export", str(finished), "--for", "pi", "--budget", "soon"], 2, "--budget"),
        (["export", str(finished), "--budget", "20ms"], 2, "--for"),
        (["infer", str(tmp_path)], 2, "does not lie in a run's folder"),
        (["infer", str(finished / "export" / "exit-7")], 2, "holds no exported model"),
        (["infer", str(finished / "export" / "chain")], 2, "--batch"),
        (["infer", str(damaged)], 1, "onnxruntime cannot run damaged/model.onnx"),
    ):
        assert command(words) == code, words
        errors = [one for one in capsys.readouterr().err.splitlines() if one.startswith("fedge: ")]
        assert len(errors) == 1, words
        assert line in errors[0], words
