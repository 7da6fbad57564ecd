"""``fedge infer RUN --federated``: devices answer together; what is counted, held against sums written out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fedge.__main__ import run as command
from fedge.core.rng import generator
from fedge.methods.deploy.ensemble import together
from fedge.models.exits import MultiExit
from fedge.models.load import load
from fedge.models.save import save
from fedge.models.share import share
from fedge.run.evaluate import share_of
from fedge.run.federated import Question, ask, by_device, judged
from fedge.run.launcher import Options
from fedge.run.prepare import prepare
from fedge.spec import load_federation, resolved

FEDERATION = """
name: tiny
model: {name: vit-nano, options: {hidden: 32, layers: 2, mlp: 64}}
data: {dataset: digits, rows: 300}
devices:
  large: {profile: pi-4b-4g, count: 2}
  small: {profile: pi-zero-2w, compute: 2MFLOP/s}
stages:
  - deploy: {method: anytime, exits: [1], rounds: 1}
"""


def finished(folder: Path) -> Path:
    """A run's folder with a model of random exits."""
    (folder / "federation.yaml").write_text(FEDERATION)
    spec = load_federation(folder / "federation.yaml")
    (folder / "resolved.yaml").write_text(resolved(spec))
    prepared = prepare(spec, lambda line: None)
    model = MultiExit(share(prepared.loaded.model), (1,), prepared.loaded.task.classes).eval()
    for head in model.exits.values():
        head.classifier.weight.data.normal_(generator=generator("heads"))
    save(model, folder / "model", prepared.loaded)
    return folder


def test_what_is_counted():
    draw = torch.Generator().manual_seed(1)
    labels = torch.randint(3, (7,), generator=draw)
    answers = {
        "000000": {name: torch.randn(3, 3, generator=draw) for name in "ab"},
        "000001": {},
        "000002": {"b": torch.randn(3, 3, generator=draw)},  # one row is left; the others came before
    }
    found = judged(answers, labels, 3)
    assert (found["queries"], found["answered"]) == (7, 4)
    right = dict.fromkeys(("uniform", "confidence"), 0)
    for how in right:
        right[how] += int((together(answers["000000"], how).argmax(1) == labels[:3]).sum())
        right[how] += int(answers["000002"]["b"][0].argmax() == labels[6])
        assert found[f"accuracy_{how}"] == right[how] / 4
    alone = by_device(answers, labels, 3)
    assert {name: count for name, (count, _) in alone.items()} == {"a": 3, "b": 4}
    hits = (answers["000000"]["b"].argmax(1) == labels[:3]).sum() + (answers["000002"]["b"][0].argmax() == labels[6])
    assert alone["b"][1] == int(hits) / 4
    assert judged({"0": {}}, labels, 3)["accuracy_uniform"] is None


def test_devices_answer_from_their_exits_and_their_links_are_charged(tmp_path):
    torch.set_num_threads(1)
    run = finished(tmp_path)
    # 8 queries are 2.5 MFLOP up to the first exit and 5.1 to the last, which 'small' has no time for
    found = ask(run, Question(rows=20, queries=8, deadline=2.0), Options(inline=True), lambda line: None)
    (one,) = found["infer"]
    assert (one["queries"], one["answered"], one["rounds"]) == (20, 20, 3)
    spec = load_federation(run / "resolved.yaml")
    prepared = prepare(spec, lambda line: None)
    rows = share_of(prepared.data.test, 20, spec.seed)
    batch = next(rows.chunks(20))
    model = load(str(run / "model"), "image-classification").model
    with torch.no_grad():
        said = model(pixel_values=batch["pixel_values"])
    accuracies = [float((each.argmax(1) == batch["labels"]).float().mean()) for each in said]
    assert [one["accuracy_exit_1"], one["accuracy_exit_2"]] == pytest.approx(accuracies)
    at = {1: 0, 2: 1}
    exits = {line["device"]: line["exit"] for line in found["devices"]}
    assert exits == {"large-00": 2, "large-01": 2, "small": 1}
    for line in found["devices"]:
        assert line["answered"] == 20
        assert line["accuracy"] == pytest.approx(accuracies[at[line["exit"]]])
        assert line["bytes_down"] > 20 * 64 * 4  # the images themselves
        assert 20 * 10 * 4 < line["bytes_up"] < line["bytes_down"]
        assert line["virtual_s"] > 0
    average = together({name: said[at[exit]] for name, exit in exits.items()}, "uniform")
    assert one["accuracy_uniform"] == pytest.approx(float((average.argmax(1) == batch["labels"]).float().mean()))
    assert one["round_s_p50"] > 0


def test_what_cannot_be_asked_is_told(tmp_path, capsys):
    assert command(["infer", str(tmp_path), "--federated"]) != 0
    assert "is no run's folder" in capsys.readouterr().err
    (tmp_path / "resolved.yaml").write_text(FEDERATION)
    assert command(["infer", str(tmp_path), "--federated"]) != 0
    assert "holds no model" in capsys.readouterr().err
    (tmp_path / "model").mkdir()
    assert command(["infer", str(tmp_path), "--federated"]) == 2
    assert "no exits" in capsys.readouterr().err
    assert command(["infer", str(tmp_path), "--federated", "--device", "pi-4b-4g"]) == 2
    assert "--device" in capsys.readouterr().err
    assert command(["infer", str(tmp_path), "--deadline", "1s"]) == 2
    assert "--deadline" in capsys.readouterr().err


@pytest.mark.slow
def test_real_processes_say_the_same_as_one(tmp_path, capsys):
    run = finished(tmp_path)
    inline = ask(run, Question(rows=20), Options(inline=True), lambda line: None)
    capsys.readouterr()
    assert command(["infer", str(run), "--federated", "--queries", "20", "--best-effort", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    for key in ("accuracy_uniform", "accuracy_confidence", "bytes_up", "bytes_down", "virtual_s"):
        assert found["infer"][0][key] == inline["infer"][0][key]
    assert [line["exit"] for line in found["devices"]] == [line["exit"] for line in inline["devices"]]
