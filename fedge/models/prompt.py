"""Soft prompts: trained vectors that stand before a model's own tokens.

Before the word vectors of a text, where position embeddings are added to them as to words (as peft's prompt tuning
does), and between the class token and the patches of an image (VPT-shallow, arXiv 2203.12119). What the blocks make of
the prompt is dropped before pooling, so that a classifier reads what it read before. The vectors are called
``prompt_embeddings``, as in peft's files.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

from fedge.models import extras
from fedge.models.anatomy import Anatomy, Inputs, anatomy
from fedge.models.around import Around, Inner

#: Standard deviation of the vectors at first (CoOp).
SPREAD = 0.02
#: How a prompt's vectors begin; see ``prompted``.
STARTS = ("random", "vocabulary")


class Prompted(Around):
    """A model whose blocks read ``prompt_embeddings [tokens, hidden]`` besides the rows."""

    def __init__(self, base: nn.Module, prompt: Tensor):
        super().__init__(base)
        self.prompt_embeddings = nn.Parameter(prompt)

    @property
    def parts(self) -> Anatomy:
        """The anatomy, the prompt being part of what is embedded."""
        return _Parts(self, anatomy(self.base), self.prompt_embeddings)

    def forward(self, **inputs: Tensor) -> SequenceClassifierOutput:
        """The base's logits for rows that begin by the prompt."""
        return SequenceClassifierOutput(logits=self.parts.forward(inputs))


class _Parts(Inner):
    """A model's anatomy with the prompt put in after the embedding and taken out before pooling."""

    def __init__(self, model: nn.Module, inner: Anatomy, prompt: Tensor):
        super().__init__(model, inner)
        self.prompt = prompt

    def embed(self, inputs: Inputs) -> Tensor:
        return self.inner.prompted(inputs, self.prompt)

    def mask(self, inputs: Inputs, hidden: Tensor) -> Any:
        given: Mapping[str, Any] = inputs
        if inputs.get("attention_mask") is not None:
            shown = inputs["attention_mask"]
            prompt = shown.new_ones(shown.shape[0], self.prompt.shape[0])
            given = {**inputs, "attention_mask": torch.cat([prompt, shown], 1)}
        return self.inner.mask(given, hidden)

    def pool(self, hidden: Tensor, inputs: Inputs) -> Tensor:
        first, last = self.inner.leading, self.inner.leading + self.prompt.shape[0]
        return self.inner.pool(torch.cat([hidden[:, :first], hidden[:, last:]], 1), inputs)


def prompted(model: nn.Module, tokens: int, start: str = "random") -> nn.Module:
    """The model with a prompt of ``tokens`` vectors before each row; one that has a prompt is returned as it is.

    ``start``: 'random', drawn from N(0, 0.02²), or 'vocabulary', the vectors of words that are drawn; both from torch's
    global state. Raises MissingError for a model whose parts are not known, or that has no words.
    """
    if isinstance(model, Prompted):
        return model
    parts = anatomy(model)
    if start == "vocabulary":
        words = parts.vocabulary
        prompt = words.detach()[torch.randint(len(words), (tokens,))].clone()
    else:
        prompt = torch.randn(tokens, parts.hidden) * SPREAD
    return extras.note(Prompted(model, prompt), "prompt", of=model, tokens=tokens)
