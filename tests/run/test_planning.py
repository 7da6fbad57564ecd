"""``fedge plan``: what it foretells, from what little, how fast again, and what it leaves in a run's folder."""

import json
import os
import subprocess
import sys

import pytest

from fedge.errors import ConfigError, InfeasibleError, MissingError
from fedge.run.launcher import Options, up
from fedge.run.planning import WhatIf, max_budget, plan
from tests.run.conftest import stage

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "max_position_embeddings": 256,
}
TEXTS = "text\n" + "the ship and the sail and the tide in the harbour of the bay\n" * 40


def quiet(line):
    pass


@pytest.fixture
def configuration(tmp_path):
    """A federation whose model is a config.json alone."""
    (tmp_path / "llama").mkdir()
    (tmp_path / "llama" / "config.json").write_text(json.dumps(LLAMA))
    (tmp_path / "texts.csv").write_text(TEXTS)
    path = tmp_path / "federation.yaml"
    path.write_text(
        "model: ./llama\n"
        "data: {dataset: texts.csv, length: 32}\n"
        "devices:\n  pi: {profile: pi-4b-4g, count: 2}\n"
        "stages:\n  - customize: {method: lora, rounds: 2, steps: 1, batch: 4}\n"
    )
    return path


def test_a_configuration_is_planned_without_its_weights(configuration):
    said = []
    rows = plan(configuration, (), said.append)
    weights = 4 * (2 * 512 * 64 + 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128 + 2 * 64) + 64)
    assert all(row["peak_memory"] > weights for row in rows)
    assert all(row["fits"] for row in rows)
    assert any("assumed" in line for line in said)
    assert rows[0]["assumed"][0].endswith("by the configuration alone")
    with pytest.raises(
        (MissingError, ConfigError), match=r"the weights of model .* are missing.*fedge plan works without"
    ):
        up(configuration, (), Options(runs=configuration.parent / "runs", inline=True), quiet)


def test_a_plan_made_before_is_found_again_without_torch(federation, tmp_path):
    path = federation(stage("head"))
    first = plan(path, (), quiet)
    code = (
        "import json, sys\nfrom fedge.run.planning import plan\n"
        f"rows = plan({str(path)!r}, (), lambda line: None)\n"
        "print(json.dumps(rows))\nassert 'torch' not in sys.modules, 'torch was imported'\n"
    )
    again = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ), check=False
    )
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout) == json.loads(json.dumps(first))
    said = []
    plan(path, ["devices.phone.memory=6MiB"], said.append)  # a budget changes no cost
    assert said == ["plan: costs as traced before"]
    said = []
    plan(path, ["stages.0.steps=3"], said.append)
    assert "plan: costs as traced before" not in said


def test_what_if(federation):
    path = federation(stage("head"))
    rows = plan(path, (), quiet, WhatIf(memory="3MiB", network="lte-cat4"))
    assert {row["device"] for row in rows} == {"what-if"}
    assert not any(row["fits"] for row in rows)
    assert rows[0]["left_out"].startswith("nothing on the menu fits 3 MiB")
    assert rows[0]["could"].startswith("not even inference fits")
    slow = plan(path, (), quiet, WhatIf(profile="pi-zero-2w"))[0]["virtual_s"]
    assert slow > plan(path, (), quiet, WhatIf(profile="pi-zero-2w", compute="100GFLOP/s"))[0]["virtual_s"]
    for wrong, words in (
        (WhatIf(memory="3"), "--memory: 3: a unit is missing"),
        (WhatIf(network="lte"), "--network: no link class 'lte'"),
        (WhatIf(profile="pi-44b"), "--profile: no device profile"),
        (WhatIf(compute="0GFLOP/s"), "--compute: .*can't be zero"),
    ):
        with pytest.raises(ConfigError, match=words):
            plan(path, (), quiet, wrong)


def test_the_least_budget(federation):
    (row,) = max_budget(federation(stage("head", deadline="5s")), (), quiet)
    assert row["memory"] < 64 << 20
    fits = plan(federation(stage("head", deadline="5s")), (), quiet, WhatIf(memory=f"{row['memory']}B"))
    assert any(found["fits"] for found in fits)
    assert not any(
        found["fits"]
        for found in plan(federation(stage("head", deadline="5s")), (), quiet, WhatIf(memory=f"{row['memory'] - 1}B"))
    )


def test_a_run_keeps_its_plan_and_a_plan_that_fails_has_a_place(federation, tmp_path):
    options = Options(runs=tmp_path / "runs", inline=True)
    run = up(federation(stage("head", rounds=1)), (), options, quiet)
    kept = json.loads((run.folder / "plan.json").read_text())["plan"]
    assert kept == json.loads(json.dumps(plan(federation(stage("head", rounds=1)), (), quiet)))
    for change, place in (
        ({"deadline": "1ms"}, r"small.yaml:\d+:\d+: stages.0.deadline: 0 of 4"),
        ({}, "stages.0.method"),
    ):
        path = federation(stage("head", **change), memory="64MiB" if change else "1MiB")
        with pytest.raises(InfeasibleError, match=place):
            up(path, (), options, quiet)
