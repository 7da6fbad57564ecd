"""``fedge export`` and ``fedge infer`` over a run's folder that was made by hand, without training."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
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
    words = [
        "export",
        str(folder),
        "--precision",
        "fp32,int8",
        "--for",
        "pi,dust",
        "--budget",
        "90ms",
        "--ort",
        "--json",
    ]
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
def test_no_file_of_an_export_tells_where_it_was_made(finished):
    repository = Path(__file__).resolve().parents[2]
    marks = [str(finished), str(finished.parent), str(repository), str(Path.home()) + "/", sys.prefix]
    marks += ["site-packages", "/tmp", "stack_trace", ".py\0"]
    files = [path for path in (finished / "export").rglob("*") if path.is_file()]
    assert {"model.onnx", "model.ort", "weights.bin", "required_operators_and_types.config"} <= {p.name for p in files}
    for path in files:
        held = path.read_bytes()
        assert not [mark for mark in marks if mark.encode() in held or mark.encode("utf-16-le") in held], path


@pytest.mark.slow
def test_a_card_says_how_the_model_came_to_be(finished):
    text = (finished / "export" / "adaptive" / "README.md").read_text()
    for line in (
        "| data | digits |",
        "| stages | deploy: anytime, 1 rounds |",
        "2 × pi-4b-4g of ",
        "pi-zero-2w of 1 MiB",
    ):
        assert line in text
    assert re.search(r"\| after block 2 \| 0\.\d{4} \| \d+ \|", text)


@pytest.mark.slow
def test_rows_of_a_file_are_predicted_and_a_budget_is_held_against(finished, tmp_path, capsys):
    draw = np.random.default_rng(3)
    np.savez(tmp_path / "more.npz", image=draw.random((30, 1, 8, 8), np.float32), label=np.arange(30) % 10)
    capsys.readouterr()
    words = ["infer", str(finished / "export" / "adaptive"), "--on", str(tmp_path / "more.npz"), "--queries", "30"]
    assert command([*words, "--device", "pi", "--budget", "1s", "--show", "4", "--json"]) == 0
    (found,) = said(capsys)["infer"]
    assert found["accuracy_rows"] == 30
    assert [line["row"] for line in found["predictions"]] == [0, 1, 2, 3]
    assert {line["exit"] for line in found["predictions"]} <= {2, 4}
    assert found["within_budget"] == 1.0
    assert found["memory_wall"]
    assert found["energy_j"] > 0
    assert command([*words, "--thresholds", "1e9", "--json"]) == 0
    (found,) = said(capsys)["infer"]
    assert found["exits_taken"] == {"exit-2": 0, "exit-4": 30}


@pytest.mark.slow
def test_an_adapter_that_a_later_stage_merges_is_kept_as_a_peft_folder(tmp_path, capsys):
    from peft import PeftModel

    from fedge.models.load import load

    (tmp_path / "federation.yaml").write_text(
        FEDERATION.replace(
            "stages:\n", "stages:\n  - customize: {method: lora, rounds: 1, steps: 1, rank: 2}\n"
        ).replace("  dust: {profile: pi-zero-2w, memory: 1MiB}\n", "")
    )
    words = ["up", str(tmp_path / "federation.yaml"), "--inline", "--runs", str(tmp_path / "runs"), "--json"]
    assert command(words) == 0
    run = Path(said(capsys)["run"])
    adapter = run / "export" / "adapters" / "1-lora"
    assert {"adapter_model.safetensors", "adapter_config.json", "README.md"} <= {
        path.name for path in adapter.iterdir()
    }
    base = load(str(adapter / "base"), "image-classification", classes=10).model
    assert PeftModel.from_pretrained(base, adapter).peft_config["default"].r > 0


@pytest.mark.slow
def test_what_cannot_be_exported_or_run_is_one_line(finished, tmp_path, capsys):
    plain = tmp_path / "plain"
    plain.mkdir()
    text = FEDERATION.replace(
        "deploy: {method: anytime, exits: [2, 4], rounds: 1}", "customize: {method: head, rounds: 1}"
    )
    (plain / "federation.yaml").write_text(text)
    (plain / "resolved.yaml").write_text(resolved(load_federation(plain / "federation.yaml")))
    (tmp_path / "empty").mkdir()
    uncut = tmp_path / "uncut.yaml"
    uncut.write_text(
        FEDERATION.replace("model: vit-nano", "model: {name: 'tools.bare:mlp', task: image-classification}")
    )
    mute = finished / "export" / "mute"
    shutil.copytree(finished / "export" / "exit-2", mute)
    (mute / "exits.json").write_text("{}")
    short = finished / "export" / "short"
    shutil.copytree(finished / "export" / "chain", short)
    (short / "weights.bin").write_bytes((short / "weights.bin").read_bytes()[:5000])
    cut = finished / "export" / "cut"
    shutil.copytree(finished / "export" / "exit-2", cut)
    (cut / "model.onnx").write_bytes((cut / "model.onnx").read_bytes()[:-100])
    damaged = finished / "export" / "damaged"
    shutil.copytree(finished / "export" / "exit-2", damaged)
    (damaged / "exits.json").write_text(json.dumps({"task": "image-classification", "exit": 2, "cost": []}))
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
        (["infer", str(cut)], 1, "cut/model.onnx is damaged: it is no ONNX file"),
        (["infer", str(mute)], 1, "exits.json is damaged: it says nothing of task, cost, exits"),
        (["infer", str(short), "--batch", "8"], 1, "onnxruntime cannot run export/short"),
        (["infer", str(finished / "export" / "exit-2"), "--budget", "5J"], 2, "--budget"),
        (["infer", str(finished / "export" / "exit-2"), "--on", str(tmp_path / "none.csv")], 2, "none.csv"),
        (["export", str(finished), "--for", str(tmp_path / "empty")], 2, "the folder holds no device's .yaml"),
        (["plan", str(uncut)], 2, "the parts of a Mlp are not known to fedge"),
    ):
        assert command(words) == code, words
        errors = [one for one in capsys.readouterr().err.splitlines() if one.startswith("fedge: ")]
        assert len(errors) == 1, words
        assert line in errors[0], words
