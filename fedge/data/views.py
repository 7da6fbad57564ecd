"""Other views of the same images, for methods that learn without labels: cropped, turned over, lit otherwise, noisy.

After SimCLR (arXiv 2002.05709), without changes of hue and without blur, as is usual for images of few pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def view(images: Tensor, *, crop: float = 0.5, light: float = 0.4, noise: float = 0.05, flip: bool = True) -> Tensor:
    """Another view of each of ``images [n, c, h, w]``, of the same shape; drawn from torch's global state.

    crop: the least share of the area that is kept. light: by how much contrast and brightness may change, as a share of
    the image's own spread. noise: the spread of what is added, likewise. flip: whether left and right may trade places.
    """
    n = images.shape[0]

    def between(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n)

    size = between(crop, 1.0).sqrt()
    across, down = (1 - size) * between(-1, 1), (1 - size) * between(-1, 1)
    side = torch.where(torch.rand(n) < 0.5, -1.0, 1.0) if flip else torch.ones(n)
    zero = torch.zeros(n)
    place = torch.stack([torch.stack([size * side, zero, across], 1), torch.stack([zero, size, down], 1)], 1)
    grid = functional.affine_grid(place, list(images.shape), align_corners=False)
    seen = functional.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    spread = seen.std((1, 2, 3), keepdim=True)
    shift = (between(-light, light).view(-1, 1, 1, 1)) * spread
    lit = seen * between(1 - light, 1 + light).view(-1, 1, 1, 1) + shift
    return lit + noise * spread * torch.randn(images.shape)
