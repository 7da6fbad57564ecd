"""Devices' own models in a run: tested on the device, charged, the same bits however it is run, and kept."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fedge.core.task import Score
from fedge.errors import Interrupted, MissingError
from fedge.models.names import tensors
from fedge.run.folder import RunFolder
from fedge.run.launcher import Options, up
from fedge.run.personal import accuracy
from fedge.run.stage import Stage
from tests.run.conftest import sha

FEDERATION = """\
name: small
seed: 3
model: {{name: vit-nano, options: {{hidden: 16, layers: 2, mlp: 32}}}}
data: {{dataset: digits, partition: {{dirichlet: 0.5}}, test: 10%, rows: 300{data}}}
devices:
  phone: {{profile: android-low-3g, count: {count}, memory: {memory}}}
evaluate: {{every: 1, rows: 48}}
emulation: {{restart: 1}}
stages:
{stages}
"""
OPTIONS = "rounds: 2, steps: 3, batch: 8"


@pytest.fixture
def write(tmp_path):
    def _write(*methods, data="", count=3, memory="64MiB"):
        stages = "\n".join(
            f"  - customize: {{method: 'tests.run.methods:{method}', {OPTIONS}, pick: richest}}" for method in methods
        )
        path = tmp_path / "small.yaml"
        path.write_text(FEDERATION.format(stages=stages, data=data, count=count, memory=memory))
        return path

    return _write


def own(run):
    """What must be the same: each device's figures, and the bytes of its own model."""
    kept = {path.name: path.read_bytes() for path in sorted((run.folder / "model" / "devices").iterdir())}
    return [(d["name"], d["personal_accuracy"], d["virtual_s"], d["energy_j"]) for d in run.summary["devices"]], kept


@pytest.mark.parametrize("method", ["LonePer", "LoneDitto", "LoneSA"])
def test_what_a_device_keeps_is_tested_and_kept(method, write, inline):
    run = inline(write(method))
    (stage,) = run.summary["stages"]
    told = [device["personal_accuracy"] for device in run.summary["devices"]]
    assert stage["metrics"]["worst_personal_accuracy"] == min(told)
    assert stage["metrics"]["mean_personal_accuracy"] == pytest.approx(sum(told) / 3)
    assert {line["personal_accuracy"] for line in run.metrics if line["round"] is None} == set(told)
    common = tensors(run.model())
    for device in run.summary["devices"]:
        mine = tensors(run.model(device["name"]))
        kept = load_file(run.folder / "model" / "devices" / f"{device['name']}.safetensors")
        differing = {name for name, tensor in common.items() if not torch.equal(tensor, mine[name])}
        assert set(kept) == differing != set()
        assert (len(differing) == 2) == (method == "LonePer")  # the classifier's alone
    assert not list((run.folder / "checkpoints").glob("*.own.*"))
    with pytest.raises(MissingError, match="no device's own model"):
        run.model("phone-77")


def test_the_test_is_one_download_and_costs_time(write, inline):
    alone, twice = (inline(write(method)) for method in ("Alone", "LonePer"))
    for plain, own_too in zip(alone.summary["devices"], twice.summary["devices"], strict=True):
        assert plain["personal_accuracy"] is None
        assert own_too["rounds"] == plain["rounds"] == 2
        assert own_too["virtual_s"] > plain["virtual_s"]
    notes = [line["event"] for line in RunFolder(twice.folder).read_lines("events.jsonl")]
    assert notes.count("own-models") == 1
    assert notes.count("round") == 2


def test_own_rows_are_tested_on_where_there_are_some(write, inline):
    run = inline(write("LonePer", data=", local_test: 30%"))
    for device in run.summary["devices"]:
        assert 0 <= device["personal_accuracy"] <= 1
        shares = device["personal_accuracy"] * 100
        assert shares == pytest.approx(shares)
    assert "worst_personal_accuracy" in run.summary["stages"][0]["metrics"]


def test_a_stage_that_is_followed_tests_and_keeps_nothing(write, inline):
    run = inline(write("LonePer", "Alone"))
    first, second = run.summary["stages"]
    assert "mean_personal_accuracy" in first["metrics"]
    assert "mean_personal_accuracy" not in second["metrics"]
    assert not (run.folder / "model" / "devices").exists()
    assert not list((run.folder / "checkpoints").glob("*.own.*"))


def test_a_run_stopped_before_its_test_ends_as_one_that_was_not(write, tmp_path, monkeypatch):
    path = write("LoneDitto")
    calm = up(path, (), Options(runs=tmp_path / "calm", inline=True), lambda line: None)

    def stopped(self, engine):
        raise Interrupted("interrupted")

    with monkeypatch.context() as patched:
        patched.setattr(Stage, "_judge_own", stopped)
        with pytest.raises(Interrupted):
            up(path, (), Options(runs=tmp_path / "runs", inline=True), lambda line: None)
    folder = next((tmp_path / "runs").iterdir())
    resumed = up("", (), Options(resume=folder, inline=True), lambda line: None)
    assert sha(resumed) == sha(calm)
    assert own(resumed) == own(calm)


def test_the_figure_is_that_of_the_kept_model(write, inline):
    """The slow way round: the model as it was kept, over the same rows, under the device's mix."""
    from fedge.run.evaluate import by_device, share_of
    from fedge.run.prepare import prepare
    from fedge.spec import load_federation

    run = inline(write("LoneDitto"))
    prepared = prepare(load_federation(run.folder / "resolved.yaml"), lambda line: None)
    rows = share_of(prepared.data.test, 48, 3)
    for device in run.summary["devices"]:
        model, score = run.model(device["name"]).eval(), Score()
        batch = next(rows.chunks(48))
        with torch.no_grad():
            predicted = score.add(prepared.data.task, model(**prepared.data.task.inputs(batch)).logits, batch["labels"])
        right = (predicted == batch["labels"]).numpy()
        found = by_device(right, batch["labels"].numpy(), {"it": prepared.mixes[device["name"]]})
        assert device["personal_accuracy"] == pytest.approx(found["it"], abs=1e-9)


def test_figures_without_rows_of_a_class():
    found = {"metrics": {"accuracy": 0.5}, "hits": [1, 0, 3], "seen": [2, 0, 4]}
    assert accuracy(found, None) == 0.5
    assert accuracy(found, np.array([0.5, 0.25, 0.25])) == pytest.approx((0.5 * 0.5 + 0.25 * 0.75) / 0.75)
    assert accuracy(found, np.array([0.0, 1.0, 0.0])) is None
    assert accuracy({"metrics": {"loss": 2.0}}, None) is None


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("slots", [1, 3])
def test_processes_give_the_same_bits(slots, write, inline, tmp_path):
    path = write("LoneDitto", count=4)
    calm = inline(path)
    run = up(path, (), Options(runs=tmp_path / "processes", slots=slots), lambda line: None)
    assert sha(run) == sha(calm)
    assert own(run) == own(calm)


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_left")
def test_a_process_that_dies_in_its_test_is_started_again(write, inline, tmp_path):
    once = tmp_path / "once"
    path = write(f"Falters', once: '{once}")
    once.touch()
    calm = inline(path)
    once.unlink()
    run = up(path, (), Options(runs=tmp_path / "processes", slots=2), lambda line: None)
    assert once.exists()
    assert own(run) == own(calm)
    died = [json.loads(line) for line in (run.folder / "events.jsonl").read_text().splitlines()]
    assert [note["device"] for note in died if note["event"] == "died"] == ["phone-01"]
