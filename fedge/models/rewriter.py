"""An autoencoder before a model: images are rewritten before the model sees them, which itself is only asked.

``x' = G(E(x), e)`` with a short code ``E(x) [latent]`` and a vector ``e [embedding]`` of whoever runs it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.modeling_outputs import SequenceClassifierOutput

from fedge.errors import MissingError
from fedge.models import extras
from fedge.models.anatomy import Anatomy, Inputs, anatomy
from fedge.models.around import Around, Inner

#: Pixels to a side that the autoencoder sees and writes at most; larger images are averaged down and drawn up again.
SIDE = 32


class Rewriter(nn.Module):
    """``encode`` and ``decode`` for images ``[n, channels, size, size]``."""

    def __init__(self, channels: int, size: int, latent: int, embedding: int, hidden: int):
        super().__init__()
        self.channels, self.size, self.side = channels, size, min(size, SIDE)
        pixels = channels * self.side**2
        self.encoder = nn.Sequential(nn.Linear(pixels, hidden), nn.ReLU(), nn.Linear(hidden, latent))
        self.decoder = nn.Sequential(nn.Linear(latent + embedding, hidden), nn.ReLU(), nn.Linear(hidden, pixels))
        self.embedding = nn.Parameter(torch.zeros(embedding))

    def encode(self, images: Tensor) -> Tensor:
        """E(x), ``[n, latent]``."""
        if self.side < self.size:
            images = functional.adaptive_avg_pool2d(images, self.side)
        code: Tensor = self.encoder(images.flatten(1))
        return code

    def decode(self, code: Tensor) -> Tensor:
        """``G(z, e)`` for codes ``[n, latent + embedding]`` that end by e."""
        images: Tensor = self.decoder(code).unflatten(1, (self.channels, self.side, self.side))
        if self.side < self.size:
            images = functional.interpolate(images, size=self.size, mode="bilinear", align_corners=False)
        return images

    def forward(self, images: Tensor) -> Tensor:
        code = self.encode(images)
        return self.decode(torch.cat([code, self.embedding.expand(code.shape[0], -1)], 1))


class Rewritten(Around):
    """A model that sees rewritten images."""

    def __init__(self, base: nn.Module, rewriter: Rewriter):
        super().__init__(base)
        self.rewriter = rewriter

    @property
    def parts(self) -> Anatomy:
        """The anatomy, rewriting being part of the embedding."""
        return _Parts(self, anatomy(self.base), self.rewriter)

    def forward(self, pixel_values: Tensor) -> SequenceClassifierOutput:
        """The base's logits for what the images are rewritten to."""
        return SequenceClassifierOutput(logits=self.base(pixel_values=self.rewriter(pixel_values)).logits)


class _Parts(Inner):
    """A model's anatomy that rewrites what it embeds."""

    def __init__(self, model: nn.Module, inner: Anatomy, rewriter: Rewriter):
        super().__init__(model, inner)
        self.rewriter = rewriter

    def embed(self, inputs: Inputs) -> Tensor:
        return self.inner.embed({**inputs, "pixel_values": self.rewriter(inputs["pixel_values"])})

    def prompted(self, inputs: Inputs, prompt: Tensor) -> Tensor:
        return self.inner.prompted({**inputs, "pixel_values": self.rewriter(inputs["pixel_values"])}, prompt)


def rewrite(model: nn.Module, latent: int, embedding: int, hidden: int) -> nn.Module:
    """The model behind an autoencoder drawn from torch's global state; one that has it is returned as it is.

    Raises MissingError for a model that sees no images, or whose parts are not known.
    """
    if isinstance(model, Rewritten):
        return model
    config = anatomy(model).config
    if not hasattr(config, "image_size"):
        raise MissingError(f"a {type(model).__name__} sees no images")
    size = int(config.image_size)
    made = Rewritten(model, Rewriter(int(config.num_channels), size, latent, embedding, hidden))
    return extras.note(made, "rewriter", of=model, latent=latent, embedding=embedding, hidden=hidden)
