"""Loading a foundation model: a bundled name, a Hugging Face folder, a Hub id, or a function of the user's own."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fedge.core.rng import seed_everything
from fedge.core.task import TASKS, Task
from fedge.errors import ConfigError, FedgeError, MissingError, Problem, nearest
from fedge.models import nano
from fedge.models.anatomy import anatomy
from fedge.models.place import MINILM, Kind, Place, find
from fedge.models.pooled import POOLINGS, PooledClassifier
from fedge.models.quiet import quiet

__all__ = ["MINILM", "Loaded", "load"]

#: Bytes of weights up to which planning reads them all the same.
LIGHT = 1 << 30
#: The head that a fedge folder keeps beside an encoder.
HEAD_FILE = "head.safetensors"
#: What a fedge folder says of a multi-exit model, and the weights of its exits.
EXITS_FILE = "exits.json"
EXITS_WEIGHTS = "exits.safetensors"
#: What a fedge folder says of the modules that were put onto the base, and their weights.
EXTRAS_FILE = "extras.json"
EXTRAS_WEIGHTS = "extras.safetensors"


@dataclass
class Loaded:
    """A foundation model as it was found.

    model: float32, eval mode, nothing requires a gradient. preprocessor: tokenizer or image processor, None where
    there is none. source: what a peft adapter's ``base_model_name_or_path`` says. input_names: the columns that the
    model takes, in order.
    """

    model: nn.Module
    preprocessor: Any
    task: Task
    source: str
    kind: Kind
    config: dict[str, Any] = field(default_factory=dict)
    input_names: tuple[str, ...] = ()


def load(
    name: str,
    task: str | None,
    *,
    classes: int | None = None,
    labels: list[str] | None = None,
    options: dict[str, Any] | None = None,
    seed: int = 0,
    revision: str | None = None,
    trust_remote_code: bool = False,
    folder: Path | None = None,
    weights: bool = True,
) -> Loaded:
    """Load a model for a task, with a new head drawn from ``seed`` where it has none that fits.

    ``task``: one of ``core.task.TASKS`` or None (told from the model). ``options``: sizes of a bundled model, fields of
    a Hugging Face configuration, or the arguments of a function of the user's own. ``folder``: what relative paths
    start from. ``weights=False``: shapes are enough, so a Hugging Face model whose weights are missing or beyond
    ``LIGHT`` comes without storage (on torch's meta device). The same arguments give the same bits in every process.
    Raises MissingError for what isn't there and
    ConfigError for what doesn't fit.
    """
    if task is not None and task not in TASKS:
        raise ConfigError(f"task '{task}' is not one of {', '.join(TASKS)}")
    options = dict(options or {})
    classes = classes if classes is not None else (len(labels) if labels else None)
    # a new head does not depend on where a checkpoint lies, a bundled model does on its name
    seed_everything(seed, "model", name if name in nano.TASKS else "head")
    try:
        with quiet():
            if name in nano.TASKS:
                loaded = _bundled(name, task, classes, labels, options)
            elif _is_function(name):
                loaded = _custom(name, task, classes, options, folder)
            else:
                place = find(name, folder, revision, trust_remote_code, weights=weights)
                loaded = _pretrained(place, task, classes, labels, options, weights)
    except FedgeError:
        raise
    except Exception as error:  # damaged files, wrong sizes, a module of the user's own: many libraries, many classes
        message = f"model {name} can't be loaded: {type(error).__name__}: {_first(error)}"
        raise ConfigError(Problem(message, hint=_pointer(name, folder))) from error
    loaded.model = loaded.model.float().eval().requires_grad_(False)
    config = getattr(loaded.model, "config", None)
    if config is not None and hasattr(config, "to_dict"):
        config._name_or_path = loaded.source if loaded.kind == "hub" else ""
        loaded.config = config.to_dict()
    loaded.input_names = loaded.input_names or _input_names(loaded.model, loaded.preprocessor)
    return loaded


def _bundled(
    name: str, task: str | None, classes: int | None, labels: list[str] | None, options: dict[str, Any]
) -> Loaded:
    task = task or nano.TASKS[name][0]
    if task not in nano.TASKS[name]:
        raise ConfigError(f"model {name} can't do {task}; it does {' and '.join(nano.TASKS[name])}")
    if classes is None:
        classes = 10 if name == "vit-nano" else 2
    built = nano.build(name, task, classes, labels, options)
    return Loaded(built.model, built.tokenizer, _task(task, built.model, classes), name, "bundled")


def _is_function(name: str) -> bool:
    module, colon, function = name.partition(":")
    return bool(colon) and function.isidentifier() and all(part.isidentifier() for part in module.split("."))


def _custom(name: str, task: str | None, classes: int | None, options: dict[str, Any], folder: Path | None) -> Loaded:
    module_name, _, function_name = name.partition(":")
    with _importable(folder):
        try:
            function = getattr(importlib.import_module(module_name), function_name)
        except ModuleNotFoundError as error:
            raise MissingError(
                f"model {name}: {error}", hint="the module is looked for beside the YAML file"
            ) from error
        except AttributeError as error:
            raise MissingError(f"model {name}: module {module_name} has no '{function_name}'") from error
    try:
        made = function(**options)
    except Exception as error:
        raise ConfigError(f"model {name}: the function failed: {type(error).__name__}: {error}") from error
    model, preprocessor = made if isinstance(made, tuple) else (made, None)
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model {name} returned {type(model).__name__}, not a torch.nn.Module")
    if task is None:
        raise ConfigError(f"model {name} needs a task: one of {', '.join(TASKS)}")
    return Loaded(model, preprocessor, _task(task, model, classes), name, "custom")


@contextmanager
def _importable(folder: Path | None) -> Iterator[None]:
    path = str(Path(folder or ".").resolve())
    sys.path.insert(0, path)
    try:
        yield
    finally:
        sys.path.remove(path)


def _pretrained(
    place: Place,
    task: str | None,
    classes: int | None,
    labels: list[str] | None,
    options: dict[str, Any],
    weights: bool,
) -> Loaded:
    from transformers import AutoConfig

    if weights and not place.weighty:
        message = f"the weights of model {place.source} are missing: no model.safetensors beside its config.json"
        raise MissingError(message, hint="fedge plan works without them")
    shapes = not weights and (not place.weighty or place.size > LIGHT)

    try:
        config = AutoConfig.from_pretrained(place.where, **place.common)
        for key, value in options.items():
            if not hasattr(config, key):
                known = config.to_dict()
                raise ConfigError(
                    f"model {place.source} has no option '{key}'; {nearest(key, known) or ''}".rstrip("; ")
                )
            setattr(config, key, value)
        task = task or _told(place, config)
        if task in ("image-classification", "text-classification"):
            classes = classes if classes is not None else config.num_labels
            _name_labels(config, classes, labels)
        if task == "text-classification" and _headless(place, config):
            model = _pooled(place, config, classes or config.num_labels, labels, shapes)
        elif shapes:
            model = _outlined(_auto(task), config)
        else:
            model = _read(place, _auto(task), config)
    except (OSError, ImportError) as error:
        raise MissingError(f"model {place.source} can't be loaded: {_first(error)}") from error
    except (KeyError, ValueError) as error:
        raise ConfigError(f"model {place.source} can't be loaded for {task or 'its task'}: {_first(error)}") from error
    model = _with_exits(place, _with_extras(place, model))
    return Loaded(model, _preprocessor(place, task), _task(task, model, classes), place.source, place.kind)


def _outlined(auto: Any, config: Any) -> Any:
    """A model of a configuration's shapes, without storage."""
    with torch.device("meta"):
        return auto.from_config(config, dtype=torch.float32)


def _read(place: Place, auto: Any, config: Any) -> Any:
    """A model with the checkpoint's weights; only a head may be new."""
    model, report = auto.from_pretrained(
        place.where,
        config=config,
        dtype=torch.float32,
        use_safetensors=True,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
        **place.common,
    )
    try:
        parts = anatomy(model)
        # a multi-exit model without its base's way out has no norm after its last block either
        heads = (*parts.head_prefixes, "pooler.", *(parts.norm_prefix if place.file(EXITS_FILE) else ()))
    except MissingError:
        return model
    new = {*report["missing_keys"], *(key[0] for key in report["mismatched_keys"])}
    lost = sorted(name for name in new if not name.startswith(heads))
    if lost:
        raise ConfigError(
            f"the checkpoint of {place.source} does not fit its configuration: no '{lost[0]}' of its size"
        )
    return model


def _first(error: Exception) -> str:
    """What the error says, its first line; a heading goes on to the next."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]


def _pointer(name: str, folder: Path | None) -> str | None:
    """What to do about weights that git-lfs has not brought."""
    path = Path(folder or ".") / name / "model.safetensors"
    try:
        with path.open("rb") as file:
            left = file.read(20) == b"version https://git-"
    except OSError:
        return None
    return "model.safetensors is a pointer of git-lfs; `git lfs pull` brings the weights" if left else None


def _told(place: Place, config: Any) -> str:
    classes = " ".join(getattr(config, "architectures", None) or [])
    for mark, task in (
        ("ForImageClassification", "image-classification"),
        ("ForSequenceClassification", "text-classification"),
        ("ForCausalLM", "causal-lm"),
        ("LMHeadModel", "causal-lm"),
        ("ForMaskedLM", "masked-lm"),
    ):
        if mark in classes:
            return task
    if place.file("modules.json"):
        return "text-classification"
    raise ConfigError(f"model {place.source} does not tell its task; say one of {', '.join(TASKS)}")


def _headless(place: Place, config: Any) -> bool:
    """Whether the checkpoint is an encoder without a classification head."""
    if place.file("modules.json"):
        return True
    return not any("ForSequenceClassification" in name for name in getattr(config, "architectures", None) or [])


def _auto(task: str) -> Any:
    import transformers

    return {
        "image-classification": transformers.AutoModelForImageClassification,
        "text-classification": transformers.AutoModelForSequenceClassification,
        "causal-lm": transformers.AutoModelForCausalLM,
        "masked-lm": transformers.AutoModelForMaskedLM,
    }[task]


def _name_labels(config: Any, classes: int, labels: list[str] | None) -> None:
    if labels:
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: index for index, label in enumerate(labels)}
    elif config.num_labels != classes:
        config.num_labels = classes


def _pooled(place: Place, config: Any, classes: int, labels: list[str] | None, shapes: bool) -> nn.Module:
    from transformers import AutoModel

    if shapes:
        encoder = _outlined(AutoModel, config)
        with torch.device("meta"):
            return PooledClassifier(encoder, classes, pooling=_pooling(place), labels=labels)
    # the head is drawn before the encoder is read, so that it does not depend on what transformers draws while loading
    state = torch.get_rng_state()
    encoder = _read(place, AutoModel, config)
    torch.set_rng_state(state)
    model = PooledClassifier(encoder, classes, pooling=_pooling(place), labels=labels or list(config.id2label.values()))
    head = place.file(HEAD_FILE)
    if head:
        from safetensors.torch import load_file

        saved = load_file(head)
        if saved["classifier.weight"].shape == model.classifier.weight.shape:
            model.load_state_dict(saved, strict=False)
    return model


def _with_extras(place: Place, model: nn.Module) -> nn.Module:
    """The model with the modules that fedge saved beside it, or as it is."""
    path, weights = place.file(EXTRAS_FILE), place.file(EXTRAS_WEIGHTS)
    if path is None or weights is None:
        return model
    from safetensors.torch import load_file

    from fedge.models import extras, names

    model = extras.extend(model, json.loads(path.read_text()))
    names.load(model, load_file(weights))
    return model


def _with_exits(place: Place, model: nn.Module) -> nn.Module:
    """The multi-exit model that fedge saved, or the model as it is."""
    path, weights = place.file(EXITS_FILE), place.file(EXITS_WEIGHTS)
    if path is None or weights is None:
        return model
    from safetensors.torch import load_file

    from fedge.models.exits import Form, MultiExit

    said = json.loads(path.read_text())
    form = Form(**said.get("form", {}))
    found = MultiExit(model, said["exits"], said["classes"], headless=said["headless"], form=form)
    found.load_own_parts(load_file(weights))
    return found


def _pooling(place: Place) -> str:
    path = place.file("1_Pooling/config.json")
    if path is None:
        return "mean"
    said = json.loads(path.read_text())
    modes = [mode for mode, on in said.items() if mode.startswith("pooling_mode_") and on]
    known = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
    if not modes and said.get("pooling_mode") in POOLINGS:
        return str(said["pooling_mode"])
    if len(modes) != 1 or modes[0] not in known:
        raise ConfigError(
            f"model {place.source} pools by {', '.join(modes) or 'nothing known'}; fedge knows mean and cls"
        )
    return known[modes[0]]


def _preprocessor(place: Place, task: str) -> Any:
    """The tokenizer or image processor that lies beside the weights, or None."""
    if task == "image-classification":
        if not place.file("preprocessor_config.json"):
            return None
        from transformers import AutoImageProcessor

        return AutoImageProcessor.from_pretrained(place.where, **place.common)
    if not place.file("tokenizer_config.json"):
        return None
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(place.where, **place.common)
    if tokenizer.pad_token is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _task(task: str, model: nn.Module, classes: int | None) -> Task:
    config = getattr(model, "config", None)
    if task in ("causal-lm", "masked-lm"):
        classes = getattr(config, "vocab_size", classes)
    elif config is not None:
        classes = getattr(config, "num_labels", classes)
    if classes is None:
        raise ConfigError("the number of classes is not known: the data must tell it, or the model's config")
    return Task(task, int(classes))


def _input_names(model: nn.Module, preprocessor: Any) -> tuple[str, ...]:
    """The columns that forward takes; token types are left out, since one text has but one of them."""
    taken = list(signature(getattr(model, "base", model).forward).parameters)
    if "pixel_values" in taken:
        return ("pixel_values",)
    offered = getattr(preprocessor, "model_input_names", None) or ("input_ids", "attention_mask")
    names = tuple(name for name in taken if name in offered and name != "token_type_ids")
    return names or tuple(taken[:1])
