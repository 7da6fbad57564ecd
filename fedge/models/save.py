"""Writing a model where other programs read it, and handing its tensors to the next process."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fedge.core.payload import pack, unpack
from fedge.errors import FedgeError, MethodError
from fedge.models import lora, readme
from fedge.models.anatomy import anatomy
from fedge.models.exits import MultiExit
from fedge.models.load import EXITS_FILE, EXITS_WEIGHTS, HEAD_FILE, Loaded
from fedge.models.names import canonical
from fedge.models.pooled import PooledClassifier
from fedge.models.quiet import quiet
from fedge.models.share import persistent_buffers

WEIGHTS_FILE = "model.safetensors"
_TASK_TYPES = {"text-classification": "SEQ_CLS", "causal-lm": "CAUSAL_LM"}


def save(model: nn.Module, folder: Path, loaded: Loaded) -> Path:
    """Write a model as a Hugging Face folder with its preprocessor and a README that says how to run it.

    ``loaded``: what the model was loaded as (preprocessor, task, source). A pooled classifier becomes an encoder folder
    that AutoModel and SentenceTransformer read, with the classifier beside it; a multi-exit model its base's folder
    with the exits beside it. The folder appears whole or not at all, and replaces one that is there.
    """
    with _whole(folder) as place, quiet():
        _write(model, place, loaded)
        if loaded.preprocessor is not None:
            loaded.preprocessor.save_pretrained(place)
        _no_paths(place)
    return folder


def save_adapter(model: nn.Module, folder: Path, base: str | None, loaded: Loaded) -> Path:
    """Write the adapters of a model as a folder that ``peft.PeftModel.from_pretrained`` loads.

    ``base``: the Hub id on which the adapter was trained; None when its weights are nowhere else to be had (a bundled
    model, one that an earlier stage changed), which writes them to ``folder/base``. A pooled classifier's adapter is
    one for its encoder, with the classifier in ``head.safetensors``; the head of a stock classifier goes into the
    adapter's own file. Raises MethodError when the model has no adapter.
    """
    adapters = lora.factors(model)
    if not adapters:
        raise MethodError("the model has no adapter to save")
    with _whole(folder) as place, quiet():
        if base is None:
            plain = place / "base"
            plain.mkdir()
            _write(lora.strip(model), plain, loaded)
            if loaded.preprocessor is not None:
                loaded.preprocessor.save_pretrained(plain)
            _no_paths(plain)
        pooled = isinstance(model, PooledClassifier)
        inner = "encoder." if pooled else ""
        tensors = {}
        for name, found in adapters.items():
            for part, tensor in (("lora_A", found.a), ("lora_B", found.b)):
                tensors[f"base_model.model.{name.removeprefix(inner)}.{part}.weight"] = tensor.contiguous()
        heads = [] if pooled or loaded.task.generative else _heads(model)
        for name, tensor in state(model).items():
            if name.startswith(tuple(f"{head}." for head in heads)):
                tensors[f"base_model.model.{name}"] = tensor.contiguous()
        save_file(tensors, place / "adapter_model.safetensors", metadata={"format": "pt"})
        _write_config(place, model, adapters, [name.removeprefix(inner) for name in adapters], heads, base, loaded)
        where = base or "base"
        if pooled:
            _save_head(model, place)
            card = readme.pooled_adapter(where, str(model.pooling))
        else:
            card = readme.adapter(loaded.task.kind, where, loaded.task.classes, *_image(model))
        (place / "README.md").write_text(card)
    return folder


def state(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by state-dict name, tied weights once, detached and not copied."""
    parts = (*model.named_parameters(), *persistent_buffers(model).items())
    return {name: tensor.detach() for name, tensor in parts}


def load_state(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy what ``state`` gave into a model of the same structure.

    Raises MethodError, before anything is written, when a name is missing, unknown, or of another shape.
    """
    own = state(model)
    wrong = sorted(own.keys() ^ tensors.keys())
    wrong += [name for name in own if name in tensors and own[name].shape != tensors[name].shape]
    if wrong:
        raise MethodError(f"the saved state is that of another model: {', '.join(wrong[:3])}")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])


def pack_state(model: nn.Module) -> bytearray:
    """``state`` as safetensors bytes."""
    return pack(state(model))


def restore(model: nn.Module, source: Path | bytes | bytearray) -> nn.Module:
    """Load into the model what ``pack_state`` gave, or a safetensors file of the same; returns the model."""
    tensors = load_file(source) if isinstance(source, Path) else unpack(bytearray(source))[0]
    load_state(model, tensors)
    return model


def _write(model: nn.Module, place: Path, loaded: Loaded) -> None:
    if isinstance(model, MultiExit):
        _write(model.base, place, loaded)
        said = {"exits": model.points, "classes": model.classes, "headless": model.headless}
        (place / EXITS_FILE).write_text(json.dumps(said, indent=2) + "\n")
        save_file(model.own_parts(), place / EXITS_WEIGHTS, metadata={"format": "pt"})
        card = readme.exits(model.points)
    elif isinstance(model, PooledClassifier):
        _write_pooled(model, place)
        card = readme.pooled(model.pooling)
    elif hasattr(model, "save_pretrained"):
        model.save_pretrained(place)
        card = readme.stock(loaded.task.kind, *_image(model))
    else:
        save_file({name: tensor.contiguous() for name, tensor in state(model).items()}, place / WEIGHTS_FILE)
        card = readme.custom(loaded.source)
    (place / "README.md").write_text(card)


def _write_pooled(model: PooledClassifier, place: Path) -> None:
    encoder: Any = model.encoder
    encoder.save_pretrained(place)
    if isinstance(model.classifier, nn.Linear):  # a cut multi-exit model has none
        _save_head(model, place)
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling")]
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (path, kind) in enumerate(kinds)
    ]
    pooling = {
        "word_embedding_dimension": model.config.hidden_size,
        "pooling_mode_cls_token": model.pooling == "cls",
        "pooling_mode_mean_tokens": model.pooling == "mean",
    }
    (place / "1_Pooling").mkdir()
    _dump(place / "1_Pooling" / "config.json", pooling)
    _dump(place / "modules.json", modules)
    length = getattr(model.config, "max_position_embeddings", 512)
    _dump(place / "sentence_bert_config.json", {"max_seq_length": length, "do_lower_case": False})


def _save_head(model: nn.Module, place: Path) -> None:
    head = {name: tensor.contiguous() for name, tensor in state(model).items() if name.startswith("classifier.")}
    labels: Any = getattr(model.config, "id2label", {})
    save_file(head, place / HEAD_FILE, metadata={"labels": json.dumps([labels[at] for at in sorted(labels)])})


def _write_config(
    place: Path,
    model: nn.Module,
    adapters: Mapping[str, lora.Factors],
    modules: list[str],
    heads: list[str],
    base: str | None,
    loaded: Loaded,
) -> None:
    from peft import LoraConfig

    one = next(iter(adapters.values()))
    alpha = one.scale * len(one.a)
    layer = next(iter(lora.adapted(model).values()))
    config = LoraConfig(
        r=len(one.a),
        lora_alpha=round(alpha) if abs(alpha - round(alpha)) < 1e-9 else alpha,  # type: ignore[arg-type]
        target_modules=modules,
        fan_in_fan_out=bool(getattr(layer, "fan_in_fan_out", False)),
        modules_to_save=heads or None,
        task_type=None if isinstance(model, PooledClassifier) else _TASK_TYPES.get(loaded.task.kind),
        base_model_name_or_path=base or "base",
        inference_mode=True,
    )
    config.save_pretrained(str(place))
    path = place / "adapter_config.json"
    said = json.loads(path.read_text())
    said["target_modules"] = sorted(modules)  # peft keeps a set, whose order changes from process to process
    _dump(path, said)


def _heads(model: nn.Module) -> list[str]:
    """The modules of a stock classifier's head, by name."""
    return [canonical(prefix.rstrip(".")) for prefix in anatomy(model).head_prefixes]


def _image(model: nn.Module) -> tuple[int, int]:
    config = getattr(model, "config", None)
    return int(getattr(config, "num_channels", 3)), int(getattr(config, "image_size", 224))


def _no_paths(place: Path) -> None:
    """Take the place where a model was found on this machine out of the files that describe it."""
    for path in place.glob("*.json"):
        said = json.loads(path.read_text())
        if isinstance(said, dict) and {"_name_or_path", "name_or_path"} & said.keys():
            for key in ("_name_or_path", "name_or_path"):
                said.pop(key, None)
            _dump(path, said)


def _dump(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


@contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    """A temporary folder beside ``folder`` that takes its place when the block ends without an error.

    Raises FedgeError, naming the folder, when the disk is full or the place can't be written to.
    """
    folder = Path(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        place = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise FedgeError(f"{folder} can't be written: {error.strerror}") from error
    try:
        yield place
        place.chmod(0o755)
        if folder.exists():
            old = place.with_name(place.name + "-old")
            folder.rename(old)
            place.rename(folder)
            shutil.rmtree(old)
        else:
            place.rename(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(place, ignore_errors=True)
        said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise FedgeError(f"{folder} can't be written: {said}") from error
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise
