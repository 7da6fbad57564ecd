"""fedge from Python: a run, its records, and the model that it left."""

from pathlib import Path

import pytest

import fedge
from fedge.errors import ConfigError
from fedge.run.figures import model_sha256

FEDERATION = """
model: vit-nano
data: {dataset: digits, rows: 200}
devices:
  pi: {profile: pi-4b-4g, count: 2}
evaluate: {rows: 64}
stages:
  - customize: {method: METHOD, rounds: 1, steps: 2}
"""


@pytest.fixture(params=["fedavg", "lora"])
def federation(request, tmp_path: Path) -> Path:
    path = tmp_path / "federation.yaml"
    path.write_text(FEDERATION.replace("METHOD", request.param))
    return path


def test_a_run_hands_back_the_model_that_its_digest_names(federation: Path, tmp_path: Path):
    run = fedge.up(federation, {"stages.customize.rounds": 2}, runs=tmp_path / "runs", inline=True, quiet=True)
    assert run.summary["status"] == "done"
    assert run.summary["stages"][0]["rounds"] == 2
    assert {line["device"] for line in run.metrics} == {"pi-00", "pi-01", None}
    assert model_sha256(run.model()) == run.summary["model_sha256"]


def test_a_wrong_override_is_told_before_anything_runs(federation: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match="round"):
        fedge.up(federation, {"stages.customize.round": 2}, runs=tmp_path / "runs", inline=True, quiet=True)
    assert not (tmp_path / "runs").exists()
