"""Several classifiers along one model's depth, so that a small device runs the first part alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fedge.core.rng import generator
from fedge.errors import ConfigError
from fedge.models.anatomy import Anatomy, anatomy


class Exit(nn.Module):
    """A norm and a linear classifier on what the model's own pooling makes of a block's output.

    ``seed``: a generator for the first weights (standard deviation 0.02).
    """

    def __init__(self, hidden: int, classes: int, seed: torch.Generator):
        super().__init__()
        self.norm = nn.LayerNorm(hidden)
        self.classifier = nn.Linear(hidden, classes)
        nn.init.normal_(self.classifier.weight, std=0.02, generator=seed)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Logits ``[…, classes]`` from ``[…, hidden]``."""
        logits: Tensor = self.classifier(self.norm(features))
        return logits


class MultiExit(nn.Module):
    """A model with exits after some of its blocks; the one at full depth is the model's own head.

    ``exits``: 1-based block counts, ascending; full depth is added where it is missing. New heads are drawn from the
    seed of torch's global state and their depth, so that none depends on which others there are. ``headless``: the
    base's own head is not used, and full depth gets a new head too. Tensors of the base keep their names; those of an
    exit are called ``exits.<blocks>.norm.weight`` and so on.
    """

    base: nn.Module

    def __init__(self, base: nn.Module, exits: Sequence[int], classes: int, *, headless: bool = False):
        super().__init__()
        parts = anatomy(base)
        wanted = sorted({*exits, parts.depth})
        if wanted[0] < 1 or wanted[-1] > parts.depth or list(exits) != sorted(set(exits)):
            raise ConfigError(f"exits {list(exits)} must be ascending block counts from 1 to {parts.depth}")
        # the base is kept out of the module tree and its children are put there, so that names stay the base's
        object.__setattr__(self, "base", base)
        for name, child in base.named_children():
            self.add_module(name, child)
        self.classes = classes
        self.points = tuple(wanted)
        self.headless = headless
        seed = torch.initial_seed()
        self.exits = nn.ModuleDict(
            {
                str(blocks): Exit(parts.hidden, classes, generator("exit", seed, blocks))
                for blocks in (wanted if headless else wanted[:-1])
            }
        )
        if headless:
            self._drop_head()

    @property
    def config(self) -> Any:
        """The base model's configuration."""
        return self.base.config

    @property
    def parts(self) -> Anatomy:
        """The base model's anatomy."""
        return anatomy(self.base)

    def train(self, mode: bool = True) -> MultiExit:
        """Training or evaluation mode, of the base too."""
        super().train(mode)
        self.base.train(mode)
        return self

    def forward(self, depth: int | None = None, **inputs: Tensor) -> list[Tensor]:
        """The logits of every exit at most ``depth`` blocks deep (None: all), shallowest first.

        Blocks beyond the deepest of these exits are not run.
        """
        points = [blocks for blocks in self.points if depth is None or blocks <= depth]
        if not points:
            raise ConfigError(f"no exit at or before block {depth}; there are {', '.join(map(str, self.points))}")
        state: tuple[Tensor, ...] = ()
        mask = None
        logits = []
        for blocks in points:
            state, mask, found = self.stage(blocks, state, inputs, mask)
            logits.append(found)
        return logits

    def stage(
        self, blocks: int, state: tuple[Tensor, ...], inputs: Mapping[str, Tensor], mask: Any = None
    ) -> tuple[tuple[Tensor, ...], Any, Tensor]:
        """The blocks between the exit before and the exit at ``blocks``: what the next stage takes, mask and logits.

        state: what the stage before gave; empty for the first, which embeds ``inputs``. Of ``inputs`` a later stage
        reads the attention mask alone. mask: what ``anatomy.mask`` gave before, None to make it again.
        """
        parts = self.parts
        at = self.points.index(blocks)
        hidden = parts.embed(inputs) if not at else state[0]
        if mask is None:
            mask = parts.mask(inputs, hidden)
        for index in range(self.points[at - 1] if at else 0, blocks):
            hidden = parts.block(index, hidden, mask)
        return (hidden,), mask, self._leave(parts, blocks, hidden, inputs)

    def _leave(self, parts: Anatomy, blocks: int, hidden: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        head = str(blocks)
        if head in self.exits:
            logits: Tensor = self.exits[head](parts.pool(hidden, inputs))
            return logits
        return parts.head(parts.pool(parts.finish(hidden), inputs))

    def cut(self, depth: int) -> MultiExit:
        """A copy that shares this one's memory and keeps the blocks and heads up to an exit ``depth`` blocks deep.

        Below full depth the base's own head goes, since no exit uses it.
        """
        from fedge.models.share import share

        if depth not in self.points:
            raise ConfigError(f"no exit at block {depth}; there are {', '.join(map(str, self.points))}")
        short = share(self)
        assert isinstance(short, MultiExit)
        if depth == self.points[-1]:
            return short
        del short.parts.layers[depth:]  # type: ignore[attr-defined]
        for config in {id(found): found for found in (short.parts.config, short.config)}.values():
            config.num_hidden_layers = depth
        short.points = tuple(blocks for blocks in self.points if blocks <= depth)
        for blocks in [name for name in short.exits if int(name) > depth]:
            del short.exits[blocks]
        short.headless = True
        short._drop_head()
        return short

    def _drop_head(self) -> None:
        """Remove the modules of the base that only its own head uses."""
        for prefix in self.parts.head_prefixes:
            path = prefix.rstrip(".")
            parent, _, child = path.rpartition(".")
            owner = self.base.get_submodule(parent)
            if isinstance(getattr(owner, child, None), nn.Module):
                setattr(owner, child, nn.Identity())
                if not parent:
                    self.add_module(child, getattr(owner, child))

    def own_parts(self) -> dict[str, Tensor]:
        """The tensors of the exits alone, by state-dict name."""
        return {f"exits.{name}": tensor.detach() for name, tensor in self.exits.state_dict().items()}
