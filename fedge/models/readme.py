"""The README that goes into a saved folder: what it is, and the few lines that load and run it without fedge."""

from __future__ import annotations

_TEXTS = """texts = ["one text", "another, longer text"]
inputs = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")"""

_AUTO = {
    "image-classification": "AutoModelForImageClassification",
    "text-classification": "AutoModelForSequenceClassification",
    "causal-lm": "AutoModelForCausalLM",
    "masked-lm": "AutoModelForMaskedLM",
}


def stock(task: str, channels: int, size: int) -> str:
    """The card of a stock Hugging Face model; channels and size (pixels) matter for images alone."""
    auto = _AUTO[task]
    if task == "image-classification":
        code = f"""import torch
from transformers import {auto}

folder = "."  # this folder
model = {auto}.from_pretrained(folder).eval()
pixels = torch.zeros(1, {channels}, {size}, {size})  # images, prepared as in training
with torch.no_grad():
    logits = model(pixel_values=pixels).logits"""
    else:
        code = f"""import torch
from transformers import {auto}, AutoTokenizer

folder = "."  # this folder
tokenizer = AutoTokenizer.from_pretrained(folder)
model = {auto}.from_pretrained(folder).eval()
{_TEXTS}
with torch.no_grad():
    logits = model(**inputs).logits"""
    return _card("A model trained with fedge", f"A Hugging Face model for {task}.", code)


def pooled(pooling: str) -> str:
    """The card of an encoder with a linear classifier in ``head.safetensors``."""
    code = f"""import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

folder = "."  # this folder
tokenizer = AutoTokenizer.from_pretrained(folder)
encoder = AutoModel.from_pretrained(folder).eval()
{_run_pooled("encoder", pooling)}"""
    about = (
        "A text encoder (it loads with AutoModel and with SentenceTransformer) and its classifier, head.safetensors."
    )
    return _card("A model trained with fedge", about, code)


def pooled_adapter(base: str, pooling: str) -> str:
    """The card of an adapter on an encoder, with a linear classifier in ``head.safetensors``."""
    code = f"""import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

folder = "."  # this folder
base = "{base}"
tokenizer = AutoTokenizer.from_pretrained(base)
encoder = PeftModel.from_pretrained(AutoModel.from_pretrained(base), folder).eval()
{_run_pooled("encoder", pooling)}"""
    return _card("An adapter trained with fedge", "A peft adapter for a text encoder, and its classifier.", code)


def adapter(task: str, base: str, classes: int, channels: int, size: int) -> str:
    """The card of an adapter on a stock Hugging Face model."""
    auto = _AUTO[task]
    count = f", num_labels={classes}" if task.endswith("classification") else ""
    load = f"""base = "{base}"
model = PeftModel.from_pretrained({auto}.from_pretrained(base{count}), folder).eval()"""
    if task == "image-classification":
        code = f"""import torch
from peft import PeftModel
from transformers import {auto}

folder = "."  # this folder
{load}
pixels = torch.zeros(1, {channels}, {size}, {size})  # images, prepared as in training
with torch.no_grad():
    logits = model(pixel_values=pixels).logits"""
    else:
        code = f"""import torch
from peft import PeftModel
from transformers import {auto}, AutoTokenizer

folder = "."  # this folder
{load}
tokenizer = AutoTokenizer.from_pretrained(base)
{_TEXTS}
with torch.no_grad():
    logits = model(**inputs).logits"""
    return _card("An adapter trained with fedge", f"A peft adapter for {task}.", code)


def exits(points: tuple[int, ...]) -> str:
    """The card of a model with several exits."""
    code = """from pathlib import Path

from fedge.models.load import load

folder = "."  # this folder
model = load(".", None, folder=Path(folder)).model  # model(**inputs) gives the logits of every exit"""
    about = f"A model with exits after blocks {', '.join(map(str, points))}: exits.safetensors beside the base model."
    return _card("A multi-exit model trained with fedge", about, code)


def extended(base: str) -> str:
    """The card of a model onto which modules were put; ``base`` is the card of what they were put on."""
    code = """from pathlib import Path

from fedge.models.load import load

folder = "."  # this folder
model = load(".", None, folder=Path(folder)).model  # model(**inputs).logits"""
    about = "A base model and, in extras.safetensors, the modules that were put onto it (extras.json says which)."
    return _card("A model trained with fedge", about, code) + base.replace(
        "# A model trained with fedge", "# The base alone"
    )


def custom(name: str) -> str:
    """The card of a model made by a function of the user's own."""
    code = f"""from safetensors.torch import load_model

model = ...  # what {name} returns
load_model(model, "model.safetensors")"""
    return _card("A model trained with fedge", "The weights by their state-dict names.", code)


def _run_pooled(encoder: str, pooling: str) -> str:
    if pooling == "cls":
        pool = "    vectors = hidden[:, 0]"
    else:
        pool = """    mask = inputs["attention_mask"].unsqueeze(-1).float()
    vectors = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9)"""
    return f"""head = load_file(f"{{folder}}/head.safetensors")
{_TEXTS}
with torch.no_grad():
    hidden = {encoder}(**inputs).last_hidden_state
{pool}
    logits = vectors @ head["classifier.weight"].T + head["classifier.bias"]"""


def _card(title: str, about: str, code: str) -> str:
    return f"# {title}\n\n{about}\n\n```python\n{code}\n```\n"
