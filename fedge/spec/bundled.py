"""What ``model:`` can name, as ``fedge models`` lists it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """A line of ``fedge models``. form: bundled, package, folder, hub or code."""

    name: str
    form: str
    task: str
    summary: str


MODELS = (
    Entry("vit-nano", "bundled", "image-classification", "4 blocks of width 64; 8×8 grey images unless told otherwise"),
    Entry("bert-nano", "bundled", "text-classification, masked-lm", "4 blocks of width 64 over bytes"),
    Entry("gpt-nano", "bundled", "causal-lm", "4 blocks of width 64 over bytes"),
    Entry(
        "sentence-transformers/all-MiniLM-L6-v2",
        "package",
        "text-classification",
        "22.7 million numbers, 6 blocks; from the Hub, or from the package of fedge[minilm]",
    ),
    Entry("FOLDER", "folder", "any", "a local Hugging Face folder with config.json and safetensors"),
    Entry("OWNER/NAME", "hub", "any", "a Hub id; safetensors only"),
    Entry("MODULE:FUNCTION", "code", "any", "a function of your own that returns a module"),
)
