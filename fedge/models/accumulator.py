"""Exits that look back: what a block says is read together with what the blocks before it said.

After block l the class token ``c_l`` joins those of the earlier blocks behind a token of the accumulator's own, and a
narrow transformer layer makes of them the features of an exit there and the class token that goes into block l + 1
(Liu et al. 2022, arXiv 2212.04084, in the form of ReeFL's release, Lee et al. 2024)::

    X_l = [t; c_1; …; c_l] + pos[0..l]      M_l = layer(X_l)      logits_l = head(norm(M_l[0] + c_l))
    modulation: the class token that enters block l + 1 is M_l[l]

Where a model has no class token, what its own pooling gives stands for it: the mean of the tokens, or, in a language
model, each token's own state, so that nothing looks ahead.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedge.models.share import own, share

#: Sizes of the release: heads, width of the attention in all, and of the feed-forward layer by the model's width.
HEADS, WIDTH, RATIO = 8, 16, 1.35


class Layer(nn.Module):
    """One pre-norm transformer layer over a short sequence, of which the first and the last place are wanted.

    Its two branches start at zero, so that it begins as the identity; the rest is drawn with standard deviation 0.02.
    """

    def __init__(self, hidden: int, seed: torch.Generator):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.query = nn.Linear(hidden, WIDTH)
        self.key_value = nn.Linear(hidden, 2 * WIDTH)
        self.out = nn.Linear(WIDTH, hidden)
        self.up = nn.Linear(hidden, int(RATIO * hidden))
        self.down = nn.Linear(int(RATIO * hidden), hidden)
        for linear in (self.query, self.key_value, self.up):
            nn.init.normal_(linear.weight, std=0.02, generator=seed)
            nn.init.zeros_(linear.bias)
        for linear in (self.out, self.down):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """``[…, n, hidden]`` to the layer's output at the first and the last place, ``[…, 2, hidden]``."""
        ends = torch.stack([tokens[..., 0, :], tokens[..., -1, :]], -2)
        query = _apart(self.query(self.norm1(ends)))
        key, value = (_apart(part) for part in self.key_value(self.norm1(tokens)).split(WIDTH, -1))
        weights = (query @ key.transpose(-1, -2) * WIDTH**-0.5).softmax(-1)
        ends = ends + self.out((weights @ value).transpose(-2, -3).flatten(-2))
        found: Tensor = ends + self.down(functional.gelu(self.up(self.norm2(ends))))
        return found


def _apart(joined: Tensor) -> Tensor:
    """``[…, n, WIDTH]`` to ``[…, HEADS, n, WIDTH / HEADS]``."""
    return joined.unflatten(-1, (HEADS, WIDTH // HEADS)).transpose(-2, -3)


class Accumulator(nn.Module):
    """The layers (one for all blocks where ``shared``), their token and positions, and the one head of every exit.

    norm, linear: what the head starts from, those of the model's own head where it has them; it has memory of its own.
    classes: None where the model's own head follows the norm (language models).
    """

    def __init__(
        self,
        depth: int,
        hidden: int,
        classes: int | None,
        seed: torch.Generator,
        *,
        shared: bool,
        norm: nn.Module | None = None,
        linear: nn.Linear | None = None,
    ):
        super().__init__()
        self.shared = shared
        self.layers = nn.ModuleList([Layer(hidden, seed) for _ in range(1 if shared else depth)])
        self.token = nn.Parameter(torch.empty(hidden))
        self.position = nn.Parameter(torch.empty(depth + 1, hidden))
        for parameter in (self.token, self.position):
            nn.init.normal_(parameter, std=0.02, generator=seed)
        self.norm = copied(norm) if norm is not None else nn.LayerNorm(hidden)
        self.classifier: nn.Module = nn.Identity()
        if linear is not None:
            self.classifier = copied(linear)
        elif classes is not None:
            self.classifier = classifier(hidden, classes, seed)

    def remember(self, memory: Tensor | None, token: Tensor) -> Tensor:
        """The class tokens so far, ``[…, l, hidden]``, with one more, ``[…, hidden]``."""
        token = token.unsqueeze(-2)
        return token if memory is None else torch.cat([memory, token], -2)

    def forward(self, block: int, memory: Tensor) -> tuple[Tensor, Tensor]:
        """After block ``block`` (from 0), of the class tokens so far: an exit's features and the next class token."""
        layer = self.layers[0 if self.shared else block]
        first = self.token.expand(*memory.shape[:-2], 1, -1)
        tokens = torch.cat([first, memory], -2) + self.position[: block + 2]
        ends = layer(tokens)
        return ends[..., 0, :] + memory[..., -1, :], ends[..., 1, :]

    def head(self, features: Tensor) -> Tensor:
        """Logits of an exit's features, or what the model's own head takes."""
        found: Tensor = self.classifier(self.norm(features))
        return found

    def cut(self, depth: int) -> None:
        """Keep, in place, what a model of the first ``depth`` blocks uses; the memory stays shared."""
        self.position = nn.Parameter(self.position.data[: depth + 1], requires_grad=self.position.requires_grad)
        del self.layers[depth:]


def classifier(hidden: int, classes: int, seed: torch.Generator) -> nn.Linear:
    """A new classifier, drawn with standard deviation 0.02."""
    made = nn.Linear(hidden, classes)
    nn.init.normal_(made.weight, std=0.02, generator=seed)
    nn.init.zeros_(made.bias)
    return made


def copied(module: nn.Module) -> nn.Module:
    """A module with memory of its own; nothing of it requires a gradient."""
    return own(share(module).requires_grad_(True)).requires_grad_(False)
