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
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fedge.core.payload import pack, unpack
from fedge.errors import FedgeError, MethodError, MissingError
from fedge.models import extras, lora, readme
from fedge.models.anatomy import anatomy
from fedge.models.exits import MultiExit
from fedge.models.load import EXITS_FILE, EXITS_WEIGHTS, EXTRAS_FILE, EXTRAS_WEIGHTS, HEAD_FILE, Loaded
from fedge.models.names import canonical
from fedge.models.pooled import PooledClassifier
from fedge.models.quiet import quiet
from fedge.models.share import persistent_buffers

WEIGHTS_FILE = "model.safetensors"
#: In the metadata of a packed state, the description of what was put onto the base.
EXTRAS_KEY = "extras"
_TASK_TYPES = {"text-classification": "SEQ_CLS", "causal-lm": "CAUSAL_LM"}


def save(model: nn.Module, folder: Path, loaded: Loaded, said: str | None = None) -> Path:
    """Write a model as a Hugging Face folder with its preprocessor and a README that says how to run it.

    ``loaded``: what the model was loaded as (preprocessor, task, source). ``said``: a last paragraph of the README. A
    pooled classifier becomes an encoder folder that AutoModel and SentenceTransformer read, with the classifier beside
    it; a multi-exit model its base's folder with the exits beside it, and what else was put onto a base lies beside it
    too. The folder appears whole or not at all, and replaces one that is there.
    """
    with _whole(folder) as place, quiet():
        _write(model, place, loaded)
        if loaded.preprocessor is not None:
            loaded.preprocessor.save_pretrained(place)
        _say(place, said)
        _no_paths(place)
    return folder


def save_adapter(model: nn.Module, folder: Path, base: str | None, loaded: Loaded, said: str | None = None) -> Path:
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
        _say(place, said)
    return folder


def _say(place: Path, said: str | None) -> None:
    """Add a paragraph to a folder's card."""
    if said is not None:
        card = place / "README.md"
        card.write_text(f"{card.read_text()}\n{said}\n")


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


def own_part(model: nn.Module, common: nn.Module) -> dict[str, Tensor]:
    """The tensors of ``model`` by name that are not those of ``common``, which has the same structure."""
    held = state(common)
    return {n: t for n, t in state(model).items() if n not in held or not _same(t, held[n])}


def load_own(model: nn.Module, file: Path) -> nn.Module:
    """Bring a stage's common model to a device's own: load what ``own_part`` gave and the run kept; returns the model.

    MissingError where there is no such file, MethodError where it is another model's.
    """
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise MissingError(f"{file} holds no device's own model") from error
    load_state(model, {**state(model), **tensors})
    return model


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and (a.data_ptr() == b.data_ptr() or torch.equal(a, b))


def pack_state(model: nn.Module) -> bytearray:
    """``state`` as safetensors bytes, with what was put onto the base."""
    return pack(state(model), {EXTRAS_KEY: extras.to_json(model)})


def restore(model: nn.Module, source: Path | bytes | bytearray) -> nn.Module:
    """A model of the base's structure with what ``pack_state`` gave, or a safetensors file of the same.

    What was put onto the base is put onto ``model``, which is changed, and which is returned where nothing wraps it.
    """
    if isinstance(source, Path):
        tensors, said = load_file(source), _metadata(source)
    else:
        tensors, said = unpack(bytearray(source))
    model = extras.extend(model, json.loads(said.get(EXTRAS_KEY, "[]")))
    load_state(model, tensors)
    return model


def _metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return dict(file.metadata() or {})


def _write(model: nn.Module, place: Path, loaded: Loaded) -> None:
    if isinstance(model, MultiExit):
        _write(model.base, place, loaded)
        said = {"exits": model.points, "classes": model.classes, "headless": model.headless, "form": vars(model.form)}
        (place / EXITS_FILE).write_text(json.dumps(said, indent=2) + "\n")
        save_file(model.own_parts(), place / EXITS_WEIGHTS, metadata={"format": "pt"})
        card = readme.exits(model.points)
    elif extras.described(model):
        card = readme.extended(_write_plain(model, place, loaded))
        (place / EXTRAS_FILE).write_text(extras.to_json(model) + "\n")
        own = {name: tensor.contiguous() for name, tensor in state(model).items() if extras.is_extra(name)}
        save_file(own, place / EXTRAS_WEIGHTS, metadata={"format": "pt"})
    else:
        card = _write_plain(model, place, loaded)
    (place / "README.md").write_text(card)


def _write_plain(model: nn.Module, place: Path, loaded: Loaded) -> str:
    """The base's own tensors as other programs read them; returns what the README says of them."""
    model = extras.unwrapped(model)
    if isinstance(model, PooledClassifier):
        _write_pooled(model, place)
        return readme.pooled(model.pooling)
    if hasattr(model, "save_pretrained"):
        model.save_pretrained(place, **_bare(model))
        return readme.stock(loaded.task.kind, *_image(model))
    own = {name: tensor.contiguous() for name, tensor in state(model).items() if not extras.is_extra(name)}
    save_file(own, place / WEIGHTS_FILE)
    return readme.custom(loaded.source)


def _bare(model: Any) -> dict[str, Any]:
    """What keeps ``save_pretrained`` from writing tensors that are none of the base's."""
    held = model.state_dict()
    own = {name: tensor for name, tensor in held.items() if not extras.is_extra(name)}
    return {} if len(own) == len(held) else {"state_dict": own}


def _write_pooled(model: PooledClassifier, place: Path) -> None:
    encoder: Any = model.encoder
    encoder.save_pretrained(place, **_bare(encoder))
    if hasattr(model.classifier, "weight"):  # a cut multi-exit model has none, a projected head keeps its own beside
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
    held = state(model).items()
    head = {n: t.contiguous() for n, t in held if n.startswith("classifier.") and not extras.is_extra(n)}
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
