"""Grids of runs: what a grid is, that nothing runs twice, and what goes on after an interruption."""

import json

import pytest

from fedge.commands.sweep import _table
from fedge.errors import ConfigError, Interrupted
from fedge.run import sweep as module
from fedge.run.launcher import Options, Run
from fedge.run.sweep import Axis, cells, read_axis, sweep

FILE = """\
model: vit-nano
data: digits
devices: {pi: {profile: pi-4b-4g, count: 2}}
stages:
  - train: {method: fedavg, rounds: 1}
"""


def test_axes():
    assert read_axis("seed=0..3") == Axis("seed", ("0", "1", "2", "3"))
    assert read_axis("a.b=x, y") == Axis("a.b", ("x", "y"))
    assert read_axis("codec=[topk: 0.1, int8],null").values == ("[topk: 0.1, int8]", "null")
    mistakes = {"seed": "KEY=VALUES", "a=": "missing", "a=1,,2": "missing", "a=1,1": "twice", "s=3..1": "empty"}
    for wrong, said in mistakes.items():
        with pytest.raises(ConfigError, match=said):
            read_axis(wrong)


def test_cells_are_all_combinations():
    found = list(cells([Axis("a", ("1", "2")), Axis("seed", ("0", "1"))]))
    assert found == [{"a": "1", "seed": "0"}, {"a": "1", "seed": "1"}, {"a": "2", "seed": "0"}, {"a": "2", "seed": "1"}]


@pytest.fixture
def played(monkeypatch, tmp_path):
    """A federation whose runs are made up: accuracy 0.1 · seed + 0.01 · rounds; returns what was really run."""
    path = tmp_path / "federation.yaml"
    path.write_text(FILE)
    ran = []

    def up(federation, told, options, say):
        values = dict(text.split("=") for text in told)
        folder = options.resume or options.runs / f"run-{len(ran):02d}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "resolved.yaml").write_text("")
        ran.append((values, options.resume))
        say("begun")
        if values.get("stages.train.rounds") == "13" and len(ran) == 1:
            raise Interrupted("interrupted")
        accuracy = 0.1 * int(values["seed"]) + 0.01 * int(values.get("stages.train.rounds", 1))
        stage = {"stage": "train", "method": "fedavg", "rounds": 1, "metrics": {"accuracy": accuracy}, "lost": 0}
        stage |= {"virtual_s": 2.0, "bytes_up": 10, "bytes_down": 20, "peak_memory": 5, "energy_j": 1.0}
        summary = {"run": str(folder), "status": "done", "stages": [stage]}
        (folder / "summary.json").write_text(json.dumps(summary))
        return Run(folder, summary)

    monkeypatch.setattr(module, "up", up)

    def go(*over):
        axes = [read_axis(text) for text in over]
        return sweep(path, axes, [], Options(runs=tmp_path / "runs"), lambda line: None), ran

    return go


def test_a_cell_is_the_mean_over_its_seeds_and_nothing_runs_twice(played):
    rows, ran = played("seed=0..2", "stages.train.rounds=5,10")
    assert len(ran) == 6
    assert [row["cell"] for row in rows] == [{"stages.train.rounds": "5"}, {"stages.train.rounds": "10"}]
    assert [row["accuracy"] for row in rows] == pytest.approx([0.15, 0.2])
    assert [row["accuracy_sd"] for row in rows] == pytest.approx([0.1, 0.1])
    assert [row["n"] for row in rows] == [3, 3]
    again, ran = played("seed=0..3", "stages.train.rounds=5,10")
    assert len(ran) == 8, "only the new seed"
    assert [row["n"] for row in again] == [4, 4]


def test_an_interrupted_run_goes_on_where_it_was(played):
    with pytest.raises(Interrupted):
        played("seed=0,1", "stages.train.rounds=13")
    rows, ran = played("seed=0,1", "stages.train.rounds=13")
    assert ran[1][1] is not None, "resumed"
    assert ran[1][1].name == "run-00"
    assert rows[0]["n"] == 2


def test_every_combination_is_checked_before_the_first_runs(played):
    with pytest.raises(ConfigError):
        played("seed=0", "stages.train.method=fedavg,nonsense")
    with pytest.raises(ConfigError, match="twice"):
        played("seed=0", "seed=1")


def test_the_table_has_the_devices_own_figures_and_the_worst_ones(played, capsys):
    rows, _ = played("seed=0,1", "stages.train.rounds=1,2")
    _table(rows)
    assert "worst" not in capsys.readouterr().out, "nothing where nobody took any"
    rows[1] |= {"mean_device_accuracy": 0.25, "worst_device_accuracy": 0.125}
    rows[1] |= {"mean_personal_accuracy": 0.5, "worst_personal_accuracy": 0.375}
    _table(rows)
    title, heads, first, second = capsys.readouterr().out.splitlines()
    assert (title, heads.split()[0]) == ("sweep", "stages.train.rounds")
    assert "on devices" in heads
    assert "own models" in heads
    assert "worst" not in first
    assert "0.2500, worst 0.1250" in second
    assert "0.5000, worst 0.3750" in second
