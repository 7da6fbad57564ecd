"""The other side of ``tools.optimum_check``: runs in an environment of its own, without fedge.

``python optimum_side.py FOLDER ROWS.json ROWS.npz`` prints one JSON object: labels by onnxruntime alone (numpy and, for
texts, tokenizers besides), labels by Optimum's class, and versions. ROWS.json: the task, tokens at most, and the texts;
ROWS.npz: the inputs of a model that takes none.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

CLASSES = {
    "text-classification": "ORTModelForSequenceClassification",
    "image-classification": "ORTModelForImageClassification",
    "causal-lm": "ORTModelForCausalLM",
    "masked-lm": "ORTModelForMaskedLM",
}


def label(logits: np.ndarray) -> int:
    """What a row's logits say, of token positions the last."""
    return int((logits[0] if logits.ndim == 2 else logits[0, -1]).argmax())


def alone(folder: Path, file: str, told: dict[str, Any], columns: dict[str, np.ndarray]) -> list[int]:
    """onnxruntime, and the tokenizer's file."""
    session = onnxruntime.InferenceSession(str(folder / file), providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    found = []
    if told["texts"] is None:
        rows = [{name: columns[name][at : at + 1] for name in names} for at in range(len(columns[names[0]]))]
    else:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.enable_truncation(told["length"])
        tokenizer.no_padding()
        source = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
        coded = tokenizer.encode_batch(told["texts"])
        rows = [{name: np.array([getattr(one, source[name])], dtype=np.int64) for name in names} for one in coded]
    for row in rows:
        found.append(label(session.run(["logits"], row)[0]))
    assert "torch" not in sys.modules
    return found


def by_optimum(folder: Path, file: str, told: dict[str, Any], columns: dict[str, np.ndarray]) -> list[int]:
    """The class that stands for the task, with transformers' own tokenizer for texts."""
    import optimum.onnxruntime
    import torch
    from transformers import AutoTokenizer

    options = {"use_cache": False, "use_io_binding": False} if told["task"] == "causal-lm" else {}
    model = getattr(optimum.onnxruntime, CLASSES[told["task"]]).from_pretrained(folder, file_name=file, **options)
    found = []
    if told["texts"] is not None:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        for text in told["texts"]:
            given = tokenizer(text, truncation=True, max_length=told["length"], return_tensors="pt")
            found.append(label(model(**given).logits.numpy()))
        return found
    for at in range(len(next(iter(columns.values())))):
        given = {name: torch.from_numpy(column[at : at + 1]) for name, column in columns.items()}
        found.append(label(model(**given).logits.numpy()))
    return found


def main() -> None:
    folder, told = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())
    with np.load(sys.argv[3]) as held:
        columns = {name: held[name] for name in held.files}
    file = told["file"]
    answers = {"alone": alone(folder, file, told, columns), "optimum": by_optimum(folder, file, told, columns)}
    from importlib.metadata import version

    names = ("optimum", "optimum-onnx", "transformers", "onnxruntime", "torch")
    print(json.dumps({**answers, "class": CLASSES[told["task"]], "versions": {name: version(name) for name in names}}))


if __name__ == "__main__":
    main()
