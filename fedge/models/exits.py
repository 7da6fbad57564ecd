"""Several classifiers along one model's depth, so that a small device runs the first part alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fedge.core.payload import Tree
from fedge.core.rng import generator
from fedge.errors import ConfigError
from fedge.models.accumulator import Accumulator, classifier, copied
from fedge.models.anatomy import Anatomy, anatomy
from fedge.models.share import share


@dataclass(frozen=True)
class Form:
    """What an exit is made of.

    heads: a norm and a classifier on what the block gives. blocks: the same behind a block of the exit's own, which
    stands for the last of those before it (InclusiveFL). accumulator: one head for all exits, on what a narrow
    transformer layer makes of the class tokens so far (``models.accumulator``); ``shared``: one such layer for all
    blocks; ``modulate``: it also changes the class token that enters the next block.
    """

    kind: Literal["heads", "blocks", "accumulator"] = "heads"
    shared: bool = True
    modulate: bool = True


HEADS = Form()


class Exit(nn.Module):
    """A norm and a linear classifier on what the model's own pooling makes of a block's output.

    classes: None where the model's own head follows the norm. seed: a generator for the first weights (standard
    deviation 0.02). norm: what the norm starts from; block: what stands for the last block before the exit.
    """

    def __init__(
        self,
        hidden: int,
        classes: int | None,
        seed: torch.Generator,
        norm: nn.Module | None = None,
        block: nn.Module | None = None,
    ):
        super().__init__()
        self.block = None if block is None else copied(block)
        self.norm = nn.LayerNorm(hidden) if norm is None else copied(norm)
        self.classifier: nn.Module = nn.Identity() if classes is None else classifier(hidden, classes, seed)

    def forward(self, features: Tensor) -> Tensor:
        """Logits ``[…, classes]`` from ``[…, hidden]``, or what the model's own head takes."""
        logits: Tensor = self.classifier(self.norm(features))
        return logits


class MultiExit(nn.Module):
    """A model with exits after some of its blocks; the one at full depth is the model's own head.

    ``exits``: 1-based block counts, ascending; full depth is added where it is missing. New heads are drawn from the
    seed of torch's global state and their depth, so that none depends on which others there are. A language model's
    exits have a norm of their own and share the model's head. ``headless``: the base's own head is not used, and full
    depth gets an exit too (with an accumulator it always does). Tensors of the base keep their names; those of an exit
    are called ``exits.<blocks>.norm.weight`` and so on, those of an accumulator ``accumulator.token`` and so on.
    """

    base: nn.Module

    def __init__(
        self, base: nn.Module, exits: Sequence[int], classes: int, *, headless: bool = False, form: Form = HEADS
    ):
        super().__init__()
        parts = anatomy(base)
        wanted = sorted({*exits, parts.depth})
        if wanted[0] < 1 or wanted[-1] > parts.depth or list(exits) != sorted(set(exits)):
            raise ConfigError(f"exits {list(exits)} must be ascending block counts from 1 to {parts.depth}")
        # the base is kept out of the module tree and its children are put there, so that names stay the base's
        object.__setattr__(self, "base", base)
        for name, child in base.named_children():
            self.add_module(name, child)
        for name, parameter in base.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        self.classes = classes
        self.points = tuple(wanted)
        self.form = form
        self.headless = headless or form.kind == "accumulator"
        self.own_blocks = tuple(wanted[:-1]) if form.kind == "blocks" else ()
        heads = None if parts.per_token else classes
        self.exits = nn.ModuleDict()
        self.accumulator: Accumulator | None = None
        if form.kind == "accumulator":
            self._accumulator(parts, heads)
        else:
            for blocks in wanted if headless else wanted[:-1]:
                self.exits[str(blocks)] = self._exit(parts, blocks, heads)
        if self.headless:
            self._drop_head()

    def _exit(self, parts: Anatomy, blocks: int, classes: int | None) -> Exit:
        seed = generator("exit", torch.initial_seed(), blocks)
        block = parts.layers[blocks - 1] if blocks in self.own_blocks else None
        return Exit(parts.hidden, classes, seed, parts.norm if parts.per_token else None, block)

    def _accumulator(self, parts: Anatomy, classes: int | None) -> None:
        seed = generator("accumulator", torch.initial_seed())
        self.accumulator = Accumulator(
            parts.depth,
            parts.hidden,
            classes,
            seed,
            shared=self.form.shared,
            norm=parts.norm,
            linear=None if parts.per_token else parts.linear,
        )

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

    def span(self, at: int) -> range:
        """The blocks (from 0) that the way from the exit before to exit ``at`` (from 0) runs, its own one left out."""
        reach = [blocks - (blocks in self.own_blocks) for blocks in self.points[: at + 1]]
        return range(reach[at - 1] if at else 0, reach[at])

    def stage(
        self, blocks: int, state: tuple[Tensor, ...], inputs: Mapping[str, Tensor], mask: Any = None
    ) -> tuple[tuple[Tensor, ...], Any, Tensor]:
        """The blocks between the exit before and the exit at ``blocks``: what the next stage takes, mask and logits.

        state: what the stage before gave, the hidden state and, with an accumulator, the class tokens so far; empty for
        the first, which embeds ``inputs``. Of ``inputs`` a later stage reads the attention mask alone. mask: what
        ``anatomy.mask`` gave before, None to make it again.
        """
        parts = self.parts
        at = self.points.index(blocks)
        hidden = parts.embed(inputs) if not at else state[0]
        memory = state[1] if len(state) > 1 else None
        if mask is None:
            mask = parts.mask(inputs, hidden)
        if self.accumulator is None:
            for index in self.span(at):
                hidden = parts.block(index, hidden, mask)
            return (hidden,), mask, self._leave(parts, blocks, hidden, inputs, mask)
        for index in self.span(at):
            hidden = parts.block(index, hidden, mask)
            token = parts.pool(hidden, inputs)
            memory = self.accumulator.remember(memory, token)
            onward = self.form.modulate and index + 1 < self.points[-1]
            if onward or index + 1 == blocks:
                features, following = self.accumulator(index, memory)
            if onward:
                hidden = parts.pushed(hidden, following - token)
        assert memory is not None
        logits = self.accumulator.head(features)
        return (hidden, memory), mask, parts.head(logits) if parts.per_token else logits

    def _leave(self, parts: Anatomy, blocks: int, hidden: Tensor, inputs: Mapping[str, Tensor], mask: Any) -> Tensor:
        head = str(blocks)
        if head not in self.exits:
            return parts.head(parts.pool(parts.finish(hidden), inputs))
        leaving: Any = self.exits[head]
        if leaving.block is not None:
            hidden = parts.through(leaving.block, hidden, mask)
        logits: Tensor = leaving(parts.pool(hidden, inputs))
        return parts.head(logits) if parts.per_token else logits

    def modules_of(self, at: int) -> list[nn.Module]:
        """What the way from the exit before to exit ``at`` reads of the model's weights, embeddings left out."""
        layers = self.parts.layers
        found: list[nn.Module] = [layers[index] for index in self.span(at)]
        head = str(self.points[at])
        if head in self.exits:
            found.append(self.exits[head])
        if self.accumulator is not None:
            steps = self.accumulator.layers
            found += [*(steps if self.form.shared else [steps[index] for index in self.span(at)])]
            found += [self.accumulator.norm, self.accumulator.classifier]
        return found

    def cut(self, depth: int) -> MultiExit:
        """A copy that shares this one's memory and keeps the blocks and heads up to an exit ``depth`` blocks deep.

        Below full depth the base's own head goes, since no exit uses it (a language model's exits do), and a block that
        was the exit's own takes its place among the others.
        """
        if depth not in self.points:
            raise ConfigError(f"no exit at block {depth}; there are {', '.join(map(str, self.points))}")
        short = share(self)
        assert isinstance(short, MultiExit)
        if depth == self.points[-1]:
            return short
        if depth in self.own_blocks:
            leaving: Any = short.exits[str(depth)]
            short.parts.layers[depth - 1], leaving.block = leaving.block, None  # type: ignore[index]
        del short.parts.layers[depth:]  # type: ignore[attr-defined]
        for config in {id(found): found for found in (short.parts.config, short.config)}.values():
            config.num_hidden_layers = depth
        short.points = tuple(blocks for blocks in self.points if blocks <= depth)
        short.own_blocks = tuple(blocks for blocks in self.own_blocks if blocks < depth)
        for blocks in [name for name in short.exits if int(name) > depth]:
            del short.exits[blocks]
        if short.accumulator is not None:
            short.accumulator.cut(depth)
        short.headless = True
        short._drop_head()
        return short

    def _drop_head(self) -> None:
        """Remove the modules of the base that only its own way out at full depth uses."""
        parts = self.parts
        for prefix in (*(() if parts.per_token else parts.head_prefixes), *parts.norm_prefix):
            path = prefix.rstrip(".")
            parent, _, child = path.rpartition(".")
            owner = self.base.get_submodule(parent)
            if isinstance(getattr(owner, child, None), nn.Module):
                setattr(owner, child, nn.Identity())
                if not parent:
                    self.add_module(child, getattr(owner, child))

    def own_parts(self) -> dict[str, Tensor]:
        """The tensors of the exits alone, by state-dict name."""
        own = {f"exits.{name}": tensor.detach() for name, tensor in self.exits.state_dict().items()}
        if self.accumulator is not None:
            held = self.accumulator.state_dict()
            own |= {f"accumulator.{name}": tensor.detach().contiguous() for name, tensor in held.items()}
        return own

    def load_own_parts(self, tensors: Mapping[str, Tensor]) -> None:
        """Take what ``own_parts`` gave."""
        for name, module in (("exits", self.exits), ("accumulator", self.accumulator)):
            if module is not None:
                held = {key.removeprefix(f"{name}."): one for key, one in tensors.items() if key.startswith(f"{name}.")}
                module.load_state_dict(held)


def held(weights: Tree, base: nn.Module, depth: int | None) -> Tree:
    """Of a multi-exit model's trained tensors by name, what its copy cut at ``depth`` holds (None: all of them).

    base: the model without exits. Of an accumulator's positions it holds the first ``depth + 1``.
    """
    parts = anatomy(base)
    if depth is None or depth == parts.depth:
        return dict(weights)
    found: Tree = {}
    own = tuple(parts.layer_prefixes[:depth])
    for name, tensor in weights.items():
        if name == "accumulator.position":
            found[name] = tensor[: depth + 1]
        elif name.startswith(("exits.", "accumulator.layers.")):
            number = int(name.split(".")[1 if name.startswith("exits.") else 2])
            if number <= depth if name.startswith("exits.") else number < depth:
                found[name] = tensor
        elif name.startswith(("accumulator.", *own)):
            found[name] = tensor
    return found
