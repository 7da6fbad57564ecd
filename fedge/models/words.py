"""Word vectors: an input and an output vector for every token, and nothing between."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class WordVectors(nn.Module):
    """``u [vocabulary, width]`` and ``o [vocabulary, width]``; the score of o after c is ``⟨o_o, u_c⟩``.

    As a language model it scores, at each position, what may stand next by the token there alone. ``u`` is drawn from
    torch's global state, uniformly within ``1 / (2 width)``; ``o`` begins at zero, as in the first release of word2vec.
    """

    def __init__(self, vocabulary: int, width: int):
        super().__init__()
        self.u = nn.Parameter((torch.rand(vocabulary, width) - 0.5) / width)
        self.o = nn.Parameter(torch.zeros(vocabulary, width))

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Scores ``[rows, tokens, vocabulary]`` for token ids ``[rows, tokens]``."""
        return self.u[input_ids] @ self.o.T
