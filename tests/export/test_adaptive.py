"""Graphs that leave by themselves, the chain, and their weights: held against PyTorch and against each other."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from fedge.errors import ConfigError
from fedge.export import compose, graph, verify
from fedge.export.chain import Chain
from fedge.export.criteria import CRITERIA, scores, taken
from fedge.export.exits import export_exits
from fedge.export.stages import Stage
from fedge.models.load import load
from tests.export.conftest import Case, texts, with_exits

CASES = ["vit", "bert"]
#: Never leaves, always leaves.
NEVER, ALWAYS = np.float32(1e9), np.float32(-1)


@pytest.fixture(params=CASES)
def case(request) -> Case:
    return request.getfixturevalue(request.param)


def session(case: Case, target: str = "adaptive"):
    return verify.open_session(case.folder / target / "model.onnx")


def columns(case: Case, rows: int) -> dict[str, np.ndarray]:
    batch = next(verify.chunks(case.rows, case.loaded.task, case.loaded.input_names))
    return {name: column[:rows].numpy() for name, column in batch.items() if name != "labels"}


def of_pytorch(case: Case, given: dict[str, np.ndarray]) -> list[np.ndarray]:
    with torch.no_grad():
        found = case.model(**{name: torch.from_numpy(column) for name, column in given.items()})
    return [logits.numpy() for logits in found]


def stages_of(case: Case) -> list[Stage]:
    folder = case.folder / "chain"
    points = json.loads((folder / "exits.json").read_text())["exits"]
    return [Stage(blocks, onnx.load(folder / f"stage-{at + 1}.onnx")) for at, blocks in enumerate(points)]


def opened(proto: onnx.ModelProto, path: Path):
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, str(path / "model.onnx"))
    return verify.open_session(path / "model.onnx")


def test_thresholds_have_a_default_and_can_be_given(case):
    graph_session, given = session(case), columns(case, 1)
    assert [one.name for one in graph_session.get_overridable_initializers()] == ["thresholds"]
    assert "thresholds" not in [one.name for one in graph_session.get_inputs()]
    assert [one.name for one in graph_session.get_outputs()] == ["logits", "exit_index"]
    expected = of_pytorch(case, given)
    for at, thresholds in enumerate(([ALWAYS], [NEVER])):
        logits, index = graph_session.run(None, {**given, "thresholds": np.asarray(thresholds)})
        assert index == at
        assert np.allclose(logits, expected[at], atol=1e-4)
    assert len(graph_session.run(None, given)) == 2


def test_blocks_beyond_the_exit_are_not_run(case, tmp_path):
    """The deeper stage is made to fail on every input: leaving early must not meet it."""
    stages = stages_of(case)
    deep = onnx.ModelProto()
    deep.CopyFrom(stages[1].proto)
    for node in deep.graph.node:
        node.input[:] = ["broken" if name == "hidden" else name for name in node.input]
    row = onnx.numpy_helper.from_array(np.asarray([10**6], dtype=np.int64), "row")
    deep.graph.initializer.append(row)
    deep.graph.node.insert(0, onnx.helper.make_node("Gather", ["hidden", "row"], ["broken"], axis=0))
    proto = compose.adaptive([stages[0], Stage(4, deep)], "max_prob", [0.5], tokens=False)
    onnx.save(proto, str(tmp_path / "model.onnx"))
    found, given = verify.open_session(tmp_path / "model.onnx"), columns(case, 3)
    assert found.run(["exit_index"], {**given, "thresholds": np.asarray([ALWAYS])})[0] == 0
    with pytest.raises(Exception, match="out of data bounds"):
        found.run(None, {**given, "thresholds": np.asarray([NEVER])})


@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_graph_leaves_where_numpy_says(criterion, case, tmp_path):
    found, given = (
        opened(compose.adaptive(stages_of(case), criterion, [0.5], tokens=False), tmp_path),
        columns(case, 40),
    )
    says = scores(of_pytorch(case, given), criterion)
    middle = float(np.median(says[:, 0])) if criterion != "patience" else 1.0
    wanted = taken(says, [middle])
    assert criterion == "patience" or 0 < wanted.mean() < 1
    for at in range(len(says)):
        one = {name: column[at : at + 1] for name, column in given.items()}
        index = found.run(["exit_index"], {**one, "thresholds": np.asarray([middle], dtype=np.float32)})[0]
        assert index == wanted[at] or abs(says[at, 0] - middle) < verify.NEAR


def test_a_batch_leaves_with_its_least_certain_row(case):
    found, given = session(case), columns(case, 8)
    says = scores(of_pytorch(case, given), "max_prob")[:, 0]
    least = float(says.min())
    for threshold, wanted in ((least - 1e-3, 0), (least + 1e-3, 1)):
        thresholds = np.asarray([threshold], dtype=np.float32)
        assert found.run(["exit_index"], {**given, "thresholds": thresholds})[0] == wanted


def test_the_exported_policy_is_what_the_rows_took(case):
    (one,) = (each for each in case.everything if each.target == "adaptive")
    said = graph.manifest_of(case.folder / "adaptive" / "model.onnx")
    assert said == json.loads((case.folder / "adaptive" / "exits.json").read_text())
    assert one.exits_taken is not None
    assert sum(one.exits_taken.values()) == said["policy"]["reported_on_rows"]
    assert said["policy"]["reported_on_rows"] + said["policy"]["chosen_on_rows"] == len(case.rows)
    default = onnx.load(case.folder / "adaptive" / "model.onnx").graph.initializer
    (held,) = (onnx.numpy_helper.to_array(tensor) for tensor in default if tensor.name == "thresholds")
    assert np.allclose(held, said["policy"]["thresholds"])
    costs = [cost["flops"] for cost in said["cost"]]
    assert costs == sorted(costs)
    assert costs[0] > 0


@pytest.mark.parametrize("target", ["adaptive", "chain"])
def test_the_lines_of_its_readme_run_and_its_table_says_how_good_each_exit_is(case, target, monkeypatch, capsys):
    text = (case.folder / target / "README.md").read_text()
    by_exit = json.loads((case.folder / target / "exits.json").read_text())["accuracy_by_exit"]
    assert by_exit == {one.target: one.accuracy for one in case.exported}
    for name, accuracy in by_exit.items():
        assert f"| after block {name.removeprefix('exit-')} | {accuracy:.4f} |" in text
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(case.folder / target)
    defined: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), defined)
    assert len(capsys.readouterr().out.splitlines()) == len(defined["logits"])


def test_a_chain_says_what_pytorch_says_and_lets_rows_go(case):
    chain, given = Chain(case.folder / "chain", 2, verify.open_session), columns(case, 40)
    expected = of_pytorch(case, given)
    for found, wanted in zip(chain.all_exits(given), expected, strict=True):
        assert np.allclose(found, wanted, atol=1e-4)
    for criterion in ("max_prob", "patience"):
        says = scores(expected, criterion)
        middle = float(np.median(says[:, 0]))
        logits, exits = chain.leave_early(given, criterion, [middle])
        near = np.abs(says[:, 0] - middle) < verify.NEAR
        assert ((exits == taken(says, [middle])) | near).all()
        assert np.allclose(logits, np.stack(expected)[exits, np.arange(len(says))], atol=1e-4)


def test_truncated_graphs_share_one_file_of_weights(case):
    folder = case.folder / "chain"
    said = json.loads((folder / "exits.json").read_text())
    whole, given = (folder / "weights.bin").read_bytes(), columns(case, 5)
    assert len(whole) < 1.05 * (case.folder / "exit-4" / "model.onnx").stat().st_size
    assert said["weights"]["bytes"]["exit-2"] < said["weights"]["bytes"]["exit-4"] == len(whole)
    for at, blocks in enumerate(said["exits"]):
        assert (folder / f"exit-{blocks}.onnx").stat().st_size < 2**16
        found = verify.open_session(folder / f"exit-{blocks}.onnx").run(["logits"], given)[0]
        assert np.allclose(found, of_pytorch(case, given)[at], atol=1e-4)


def test_a_shallow_graph_needs_only_the_beginning_of_the_weights(case, tmp_path):
    folder = case.folder / "chain"
    reach = json.loads((folder / "exits.json").read_text())["weights"]["bytes"]["exit-2"]
    (tmp_path / "exit-2.onnx").write_bytes((folder / "exit-2.onnx").read_bytes())
    (tmp_path / "weights.bin").write_bytes((folder / "weights.bin").read_bytes()[:reach])
    given = columns(case, 5)
    found = verify.open_session(tmp_path / "exit-2.onnx").run(["logits"], given)[0]
    assert np.allclose(found, of_pytorch(case, given)[0], atol=1e-4)


def test_exits_and_criteria_that_are_not_there(vit, tmp_path):
    with pytest.raises(ConfigError, match="no exit after block 9; the model has exits after 2, 4"):
        export_exits(vit.model, vit.loaded, vit.rows, tmp_path, about={}, exits=[2, 9])
    with pytest.raises(ConfigError, match="criterion 'luck' is none of max_prob, margin, entropy, patience"):
        export_exits(vit.model, vit.loaded, vit.rows, tmp_path, about={}, criterion="luck")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_language_model_leaves_by_its_last_token(tmp_path):
    loaded = load("gpt-nano", "causal-lm", seed=1)
    model, rows = with_exits(loaded, (2,)), texts(loaded, tmp_path, 24).take(range(12))
    found = export_exits(model, loaded, rows, tmp_path / "export", about={})
    assert [one.target for one in found] == ["exit-2", "exit-4", "adaptive", "chain"]
    assert all(one.parity_max_abs <= 1e-4 for one in found)
    graph_session = verify.open_session(tmp_path / "export" / "adaptive" / "model.onnx")
    ids = torch.randint(5, 200, (1, 9), generator=torch.Generator().manual_seed(2))
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        expected = model(**given)
    for at, threshold in enumerate((ALWAYS, NEVER)):
        inputs = {name: column.numpy() for name, column in given.items()}
        logits, index = graph_session.run(None, {**inputs, "thresholds": np.asarray([threshold])})
        assert index == at
        assert np.allclose(logits, expected[at].numpy(), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_precisions_say_nearly_the_same_and_take_less(precision, vit, tmp_path, monkeypatch):
    stages = iter(stages_of(vit))
    monkeypatch.setattr(graph, "convert", lambda model, example, outputs: next(stages).proto)
    found = export_exits(vit.model, vit.loaded, vit.rows, tmp_path, about={}, precision=(precision,))
    assert {one.precision for one in found} == {precision}
    whole = (vit.folder / "adaptive" / "model.onnx").stat().st_size
    share = {"fp16": 0.6, "int8": 0.45}[precision]
    assert (tmp_path / f"adaptive-{precision}" / "model.onnx").stat().st_size < share * whole
    for path in (path for path in tmp_path.rglob("*") if path.is_file()):
        held = path.read_bytes()
        assert not [mark for mark in (b"site-packages", b"/tmp", b".py\0", b"stack_trace") if mark in held], path


@pytest.mark.slow
def test_a_precision_that_loses_the_labels_is_an_error(vit, tmp_path, monkeypatch):
    """Heads of random numbers on features that hardly differ: four bits are too few."""
    stages = iter(stages_of(vit))
    monkeypatch.setattr(graph, "convert", lambda model, example, outputs: next(stages).proto)
    with pytest.raises(verify.ParityError, match="exit-2-int4: in int4 the graph gives PyTorch's label for "):
        export_exits(vit.model, vit.loaded, vit.rows, tmp_path, about={}, precision=("int4",))
    assert not list(tmp_path.rglob("model.onnx"))
