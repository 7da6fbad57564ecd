"""FedPrompt: prompt tuning of a language model, the prompt alone is averaged (Zhao et al. 2023, arXiv 2208.12268)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from fedge.core.method import Card
from fedge.methods.prompts import Prompts
from fedge.methods.tuning import doc


@dataclass(frozen=True, kw_only=True)
class FedPrompt(Prompts):
    """p vectors that begin as words of the vocabulary, trained by AdamW and averaged by rows."""

    tokens: int = field(default=20, metadata=doc("p: vectors in the prompt"))
    start: str = field(
        default="vocabulary",
        metadata=doc("how the vectors begin: drawn, or as words that are drawn", "random", "vocabulary"),
    )
    lr: float = field(default=3e-2, metadata=doc("learning rate on the device"))

    card: ClassVar[Card] = Card(
        name="FedPrompt",
        summary="a frozen language model; soft prompt vectors (and a new classifier) are trained and averaged",
        paper="Zhao et al. 2023, arXiv 2208.12268; prompt tuning: Lester et al. 2021, arXiv 2104.08691",
        stages=("train", "customize"),
        path="train/test-time-adaptation",
        leaves=("the change of the prompt and of the classifier", "number of rows"),
        stars=(2, 1, 2),
        deviations=(
            "prompt tuning alone of the paper's three (the others: prefix and P-tuning)",
            "a classifier where the paper has a verbaliser; it is averaged with the prompt ('head: false' keeps it)",
            "a fixed number of local steps rather than epochs",
            "no backdoor experiment; the survey reads the paper's as a statement on privacy, which it is not",
        ),
        tasks=("text-classification", "causal-lm", "masked-lm"),
        alternatives=("promptfl", "lora", "bitfit", "fedavg"),
        family="tensors",
        final="extended",
        claims=("alone",),
    )
    linear: ClassVar[bool] = True
