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
_OPEN = 'session = onnxruntime.InferenceSession(f"{folder}/model.onnx")'
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

and gives `logits`. Dimensions with a name are free.{_preparation(manifest)}

| | |
|---|---|
{facts}
"""


def _title(manifest: Mapping[str, Any]) -> str:
    about, blocks = manifest["about"], manifest["exit"]
    name = about.get("name") or about.get("run") or "A model"
    return f"{name}, cut after block {blocks}" if blocks else str(name)


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
        facts.append(("accuracy", f"{manifest['accuracy']:.4f} on {verdict['rows']} test rows"))
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
        _OPEN,
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
        _OPEN,
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
