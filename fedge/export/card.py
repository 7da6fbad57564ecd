"""The README of an exported folder: what the model is, how good it is, and the few lines that run it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

_TAGS = {
    "image-classification": "image-classification",
    "text-classification": "text-classification",
    "causal-lm": "text-generation",
    "masked-lm": "fill-mask",
}
_LABELLED = """
for row in logits:
    print(labels[str(row.argmax())])"""
_RUN = 'logits = session.run(["logits"], inputs)[0]'


def card(manifest: Mapping[str, Any], preprocessor: Any, place: Path) -> str:
    """The model card, in Markdown, of what ``manifest`` describes; its Python block runs in the folder itself."""
    task = manifest["task"]
    modules, code = _code(manifest, preprocessor, place)
    facts = "\n".join(f"| {name} | {value} |" for name, value in _facts(manifest))
    inputs = "\n".join(
        f"- `{one['name']}`: {one['type']} [{', '.join(map(str, one['dims']))}]" for one in manifest["inputs"]
    )
    return f"""---
library_name: onnx
pipeline_tag: {_TAGS[task]}
---

# {_title(manifest)}

Made by fedge. It needs {_listed(modules)}, and neither PyTorch nor fedge:

```python
{code}
```

The graph takes

{inputs}

and gives {_gives(manifest)}. Dimensions with a name are free.{_preparation(manifest)}{_leaving(manifest)}

| | |
|---|---|
{facts}
{_by_exit(manifest)}"""


def _title(manifest: Mapping[str, Any]) -> str:
    about, blocks = manifest["about"], manifest["exit"]
    name = about.get("name") or about.get("run") or "A model"
    titled = f"{name}, cut after block {blocks}" if blocks else str(name)
    return f"{titled}, for {manifest['device']}" if "device" in manifest else titled


def _file(manifest: Mapping[str, Any]) -> str:
    """The graph that the lines of Python open: a chain has one for each exit over its one file of weights."""
    return f"exit-{manifest['exits'][-1]}.onnx" if manifest["target"] == "chain" else "model.onnx"


def _open(manifest: Mapping[str, Any]) -> str:
    return f'session = onnxruntime.InferenceSession(f"{{folder}}/{_file(manifest)}")'


def _gives(manifest: Mapping[str, Any]) -> str:
    if manifest["target"] == "adaptive":
        return "`logits` and `exit_index`, the exit that was taken, counted from 0"
    return "`logits`"


def _leaving(manifest: Mapping[str, Any]) -> str:
    """How the exits are used, and of a language model what the graph leaves to its user."""
    parts = []
    if manifest["target"] == "adaptive":
        policy = manifest["policy"]
        bounds = ", ".join("never" if value > 1e6 else f"{value:.4g}" for value in policy["thresholds"])
        parts.append(
            f"It leaves at the first exit whose score ({policy['criterion']}) reaches its threshold ({bounds}); "
            "blocks beyond that are not run. Give `thresholds` as an input to change that; a batch leaves as a whole, "
            "with its least certain row."
        )
    if manifest["target"] == "chain":
        exits, last = manifest["exits"], len(manifest["exits"])
        parts.append(
            f"`stage-1.onnx` to `stage-{last}.onnx` are the same model in a row: each gives `logits` and, under names "
            "that begin with `next_`, what the next one takes; so a device can hand over to another, and rows that are "
            f"sure can leave a batch. `exit-{exits[0]}.onnx` and so on end at one exit. All read `weights.bin`, the "
            f"shallowest exit its first {manifest['weights']['bytes'][f'exit-{exits[0]}']} bytes."
        )
    if manifest["task"] == "causal-lm":
        parts.append(
            "It is the pass over a prompt (prefill): no keys and values are kept, so each further token takes the "
            "whole text again."
        )
    return "".join(f"\n\n{part}" for part in parts)


def _by_exit(manifest: Mapping[str, Any]) -> str:
    """A table of how good each exit is, and how many rows left there."""
    by_exit = manifest.get("accuracy_by_exit")
    if not by_exit or None in by_exit.values():
        return ""
    taken = manifest.get("exits_taken")
    rows = manifest["parity"]["rows"]
    lines = [f"\n| exit | accuracy on {rows} test rows |{' rows that left there |' if taken else ''}"]
    lines.append(f"|---|---|{'---|' if taken else ''}")
    for name, accuracy in by_exit.items():
        lines.append(
            f"| after block {name.removeprefix('exit-')} | {accuracy:.4f} |{f' {taken[name]} |' if taken else ''}"
        )
    return "\n".join(lines) + "\n"


def _listed(modules: list[str]) -> str:
    return f"{', '.join(modules[:-1])} and {modules[-1]}"


def _preparation(manifest: Mapping[str, Any]) -> str:
    pixels = manifest.get("pixels")
    if pixels is None:
        return ""
    scale = "x" if pixels["scale"] == 1 else f"x * {pixels['scale']!r}"
    if pixels["mean"]:
        scale = f"({scale} - mean) / std, channel by channel, mean {list(pixels['mean'])} and std {list(pixels['std'])}"
    return f" A pixel's value x of the training data is given as {scale}."


def _facts(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    verdict = manifest["parity"]
    facts = []
    if manifest["accuracy"] is not None:
        scored = manifest.get("policy", {}).get("reported_on_rows") if manifest["target"] == "adaptive" else None
        facts.append(("accuracy", f"{manifest['accuracy']:.4f} on {scored or verdict['rows']} test rows"))
    facts.append(("largest difference of a logit to PyTorch", f"{verdict['max_abs']:.2g}"))
    facts.append(("same label as PyTorch", f"{100 * verdict['agreement']:.2f} %"))
    facts.append(("precision", manifest["precision"]))
    if manifest["labels"]:
        facts.append(("labels", ", ".join(manifest["labels"])))
    for name, value in manifest["about"].items():
        if isinstance(value, list | tuple):
            facts.append((name, ", ".join(map(str, value))))
        elif isinstance(value, str | int | float):
            facts.append((name, str(value)))
    # a cell of a Markdown table is one line without bars
    return [(name, " ".join(value.split()).replace("|", "\\|")) for name, value in facts]


def _code(manifest: Mapping[str, Any], preprocessor: Any, place: Path) -> tuple[list[str], str]:
    """The packages that the lines import, and the lines."""
    names = [one["name"] for one in manifest["inputs"]]
    if "input_ids" in names and (place / "tokenizer.json").exists():
        return ["numpy", "onnxruntime", "tokenizers"], _text(manifest, preprocessor, names)
    return ["numpy", "onnxruntime"], _arrays(manifest)


def _arrays(manifest: Mapping[str, Any]) -> str:
    columns = []
    for one in manifest["inputs"]:
        shape = [{"batch": 1, "sequence": 8}.get(dim, dim) for dim in one["dims"]]
        fill = "zeros" if one["type"].startswith("float") else "ones"
        columns.append(f'    "{one["name"]}": np.{fill}({shape}, dtype=np.{one["type"]}),  # your own go here')
    labelled = bool(manifest["labels"])
    lines = [
        *(["import json", ""] if labelled else []),
        "import numpy as np",
        "import onnxruntime",
        "",
        'folder = "."  # this folder',
        *(['labels = json.load(open(f"{folder}/config.json"))["id2label"]'] if labelled else []),
        _open(manifest),
        "inputs = {",
        *columns,
        "}",
        _RUN,
    ]
    return "\n".join(lines) + (_LABELLED if labelled else "\nprint(logits.shape)")


def _text(manifest: Mapping[str, Any], preprocessor: Any, names: list[str]) -> str:
    labelled = bool(manifest["labels"])
    source = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
    columns = [f'    "{name}": np.array([one.{source[name]} for one in encoded], dtype=np.int64),' for name in names]
    texts = '"one text", "another, longer text"'
    if manifest["task"] == "masked-lm":
        texts = f'"one {preprocessor.mask_token} text"'
    lines = [
        *(["import json", ""] if labelled else []),
        "import numpy as np",
        "import onnxruntime",
        "from tokenizers import Tokenizer",
        "",
        'folder = "."  # this folder',
        *(['labels = json.load(open(f"{folder}/config.json"))["id2label"]'] if labelled else []),
        'tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")',
        f"tokenizer.enable_truncation({manifest['length']})",
        f"tokenizer.enable_padding(pad_id={preprocessor.pad_token_id or 0}, pad_token={preprocessor.pad_token!r})",
        _open(manifest),
        "",
        f"texts = [{texts}]",
        "encoded = tokenizer.encode_batch(texts)",
        "inputs = {",
        *columns,
        "}",
        _RUN,
    ]
    return "\n".join(lines) + (_LABELLED if labelled else _predicted(manifest, preprocessor))


def _predicted(manifest: Mapping[str, Any], preprocessor: Any) -> str:
    if manifest["task"] == "masked-lm":
        where = f"one.ids.index({preprocessor.mask_token_id})"
    else:
        where = "sum(one.attention_mask) - 1"
    return f"""
for one, row in zip(encoded, logits):
    print(tokenizer.decode([row[{where}].argmax()]))"""
