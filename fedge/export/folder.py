"""An exported folder: whole or absent, and what lies in it beside the graph, as Optimum lays it out."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from fedge.core.task import Task
from fedge.errors import ConfigError, FedgeError
from fedge.models.load import Loaded

#: Keys by which transformers notes where something was found on this machine.
_PLACES = ("_name_or_path", "name_or_path", "is_local", "local_files_only", "tokenizer_file", "vocab_file")


@contextmanager
def whole(folder: Path) -> Iterator[Path]:
    """A temporary folder beside ``folder`` that takes its place when the block ends without an error.

    FedgeError, with nothing left behind, where the disk does not take it.
    """
    place: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        for left in folder.parent.glob(f".{folder.name}-*"):  # by a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        place = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        yield place
        place.chmod(0o755)
        _swap(place, folder)
    except OSError as error:
        raise FedgeError(f"cannot write {folder}: {error.strerror or error}") from error
    finally:
        if place is not None:
            shutil.rmtree(place, ignore_errors=True)


def label_names(model: nn.Module, task: Task, labels: Sequence[str] | None) -> list[str]:
    """The names of a classifier's classes: those given, or the model's own, or LABEL_0 and so on; none for text."""
    if task.generative:
        return []
    if labels is None:
        own: Any = getattr(getattr(model, "config", None), "id2label", None) or {}
        labels = [own[at] for at in sorted(own)]
    if len(labels) > task.classes:
        raise ConfigError(f"{len(labels)} labels for a model of {task.classes} classes")
    return [*map(str, labels), *(f"LABEL_{at}" for at in range(len(labels), task.classes))]


def describe(place: Path, model: nn.Module, loaded: Loaded, labels: Sequence[str]) -> None:
    """Write config.json and the tokenizer's or image processor's files, without a path of this machine."""
    config: Any = getattr(model, "config", None)
    if hasattr(config, "save_pretrained"):
        config.save_pretrained(place)
    if loaded.preprocessor is not None:
        loaded.preprocessor.save_pretrained(place)
    for path in place.glob("*config.json"):
        write_json(path, {key: value for key, value in _read(path).items() if key not in _PLACES})
    _name_labels(place / "config.json", loaded.task, labels)
    _name_tokenizer(place / "tokenizer_config.json")


def write_json(path: Path, value: Any) -> None:
    """A JSON file as people read it."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def _swap(place: Path, folder: Path) -> None:
    if not folder.exists():
        place.rename(folder)
        return
    old = place.with_name(f"{place.name}-old")
    folder.rename(old)
    place.rename(folder)
    if old.is_dir():
        shutil.rmtree(old)
    else:
        old.unlink()


def _name_labels(path: Path, task: Task, labels: Sequence[str]) -> None:
    said = _read(path)
    if labels:
        said["id2label"] = {str(at): name for at, name in enumerate(labels)}
        said["label2id"] = {name: at for at, name in enumerate(labels)}
    architecture = _architecture(said.get("model_type"), task)
    if architecture:
        said["architectures"] = [architecture]
    write_json(path, said)


def _architecture(model_type: str | None, task: Task) -> str | None:
    """The class of transformers whose inputs and outputs the graph has."""
    from transformers.models.auto import modeling_auto as auto

    known: dict[str, Any] = {
        "image-classification": auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
        "text-classification": auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        "causal-lm": auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        "masked-lm": auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    }
    found = known[task.kind].get(model_type or "")
    return found if isinstance(found, str) else (found[0] if found else None)


def _name_tokenizer(path: Path) -> None:
    """A class that transformers 4, which Optimum needs, knows too."""
    said = _read(path)
    if said.get("tokenizer_class") == "TokenizersBackend":
        said["tokenizer_class"] = "PreTrainedTokenizerFast"
        write_json(path, said)
