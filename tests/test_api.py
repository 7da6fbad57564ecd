"""fedge from Python: a run, its records, and the model that it left."""

from pathlib import Path

import pytest

import fedge
from fedge.errors import ConfigError, InfeasibleError
from fedge.run.figures import model_sha256
from tests.report.reading import points
from tests.report.tracing import check_trace

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


def test_a_run_leaves_its_trace_and_its_event_file(federation: Path, tmp_path: Path):
    pytest.importorskip("tensorboardX")
    run = fedge.up(federation, runs=tmp_path / "runs", inline=True, quiet=True, tensorboard=True)
    events = check_trace(run.folder / "trace.json")["traceEvents"]
    assert {e["args"]["name"] for e in events if e["name"] == "thread_name"} == {"server", "pi-00", "pi-01"}
    assert len([e for e in events if e["ph"] == "X"]) == 3
    found = points(run.folder / "tensorboard")
    assert found["customize/accuracy"][0][:2] == (1, pytest.approx(run.summary["stages"][0]["metrics"]["accuracy"]))
    assert {"customize-devices/bytes_up/pi-00", "customize-devices/accuracy/pi-01"} <= set(found)


def test_a_run_that_fails_leaves_its_trace(federation: Path, tmp_path: Path):
    beyond = {"devices.pi.memory": "2MiB", "stages.customize.pick": "auto"}
    with pytest.raises(InfeasibleError):
        fedge.up(federation, beyond, runs=tmp_path / "runs", inline=True, quiet=True)
    (run,) = (tmp_path / "runs").iterdir()
    assert check_trace(run / "trace.json")["otherData"]["status"] == "infeasible"


def test_a_wrong_override_is_told_before_anything_runs(federation: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match="round"):
        fedge.up(federation, {"stages.customize.round": 2}, runs=tmp_path / "runs", inline=True, quiet=True)
    assert not (tmp_path / "runs").exists()
