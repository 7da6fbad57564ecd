"""What the low-rank methods share whose devices hold adapters of a rank of their own: ``W + s B A`` at every rank.

The scale ``s`` is the same at all ranks, since the same factors must mean the same change everywhere. A device sends
the factors that it trained as they are (role 'weights'), and of everything else the change (role 'delta'), which is
averaged as in the 'tensors' family. What the server makes of the factors is the method.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from torch import nn

from fedge.core.fields import doc
from fedge.core.fold import Coverage, Pair, padded
from fedge.core.method import Device, Method, Server, State, Talk
from fedge.core.payload import Payload, Tree
from fedge.methods.tuning import Tuning, enter, start_of
from fedge.models.lora import absorbed, inject, named, paired, strip
from fedge.models.names import ADAPTER_PREFIX, attach, trainable


@dataclass(frozen=True, kw_only=True)
class LowRank(Tuning):
    """Adapters of a rank of its own on each device; the variants have fewer rows at once, fewer blocks, less rank."""

    rank: int = field(default=8, metadata=doc("rank of the adapters; in the variants, of the device's own"))
    scale: float = field(default=2.0, metadata=doc("s in W + s B A, alike at every rank (peft's alpha / rank)"))
    targets: tuple[str, ...] | None = field(default=None, metadata=doc("modules that get adapters (query and value)"))
    weighting: Literal["rows", "uniform"] = field(
        default="rows", metadata=doc("what a device counts by in the mean", "rows", "uniform")
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank <= 0:
            raise ValueError(f"rank must be above 0, not {self.rank}")
        if self.weighting not in ("rows", "uniform"):
            raise ValueError(f"weighting is rows or uniform, not {self.weighting!r}")

    def variants(self) -> Sequence[Method]:
        lean = replace(self, micro_batch=max(1, self.batch // 4))
        low = max(1, self.rank // 4)
        return [
            self,
            lean,
            replace(lean, checkpointing=True),
            replace(lean, depth=self.depth / 2, rank=max(1, self.rank // 2)),
            replace(lean, depth=self.depth / 6, rank=low),
        ]

    def build(self, base: nn.Module) -> nn.Module:
        targets = list(self.targets) if self.targets else None
        inject(base, rank=self.rank, alpha=self.scale * self.rank, targets=targets)
        return self.mark(base, lambda name, layer: ".lora_" in name)

    def init(self, srv: Server) -> State:
        start = start_of(srv.model())
        rest, factors = _apart(start)
        return {"weights": rest, "factors": factors, "changed": [], "moments": {}}

    def down(self, srv: Server, state: State, device: str) -> Payload:
        changed = {name: state["weights"][name] for name in state["changed"]}
        return Payload({"weights": {**changed, **named(self.share(srv, state, device))}})

    def share(self, srv: Server, state: State, device: str) -> dict[str, Pair]:
        """The factors from which a device starts, by module: the first slots, as many as its adapters have."""
        return {name: cut(pair, rank_of(srv, device)) for name, pair in paired(state["factors"]).items()}

    def client(self, dev: Device, down: Payload) -> Payload | Talk:
        start = self.enter(dev, down)
        self.train(dev, dev.task.loss, start)
        return self.answer(dev, start)

    def enter(self, dev: Device, down: Payload) -> Tree:
        # slots beyond those that were sent are zero in both factors, which no gradient moves
        pairs = {name: padded(pair, self.rank) for name, pair in paired(down["weights"]).items()}
        return enter(dev, {**down["weights"], **named(pairs)})

    def answer(self, dev: Device, start: Tree) -> Payload:
        """The trained factors as they are, the change of the rest. The model is used up by this."""
        rest, factors = _apart({name: parameter.detach() for name, parameter in trainable(dev.model).items()})
        change = {name: tensor.sub_(start[name]) for name, tensor in rest.items()}
        weight = len(dev.data) if self.weighting == "rows" else 1.0
        return Payload({"weights": factors, "delta": change}, weight=weight)

    def final(self, srv: Server, state: State) -> nn.Module:
        plain = strip(srv.model())
        pairs = {name: (a * self.scale, b) for name, (a, b) in paired(state["factors"]).items()}
        held = state.get("base", {})
        attach(plain, {**state["weights"], **held, **absorbed(plain, pairs, held)})
        return plain


def is_factor(name: str) -> bool:
    """Whether a payload name is that of an adapter's factor."""
    return name.startswith(ADAPTER_PREFIX) and ".lora_" in name


def _apart(tree: Tree) -> tuple[Tree, Tree]:
    """What is no factor, and the factors."""
    return {n: t for n, t in tree.items() if not is_factor(n)}, {n: t for n, t in tree.items() if is_factor(n)}


def rank_of(srv: Server, device: str) -> int:
    """The rank of the adapters that a device has built."""
    rank: int = srv.variants[device].rank  # type: ignore[attr-defined]
    return rank


def cut(pair: Pair, rank: int) -> Pair:
    """The first slots of a pair of factors."""
    return pair[0][:rank], pair[1][:, :rank]


def trained(replies: Iterable[Payload]) -> dict[str, list[tuple[float, Pair]]]:
    """Every module's factors with their senders' weights, of those who trained it, in the order of the replies."""
    found: dict[str, list[tuple[float, Pair]]] = {}
    for reply in replies:
        for module, pair in paired(reply["weights"]).items():
            found.setdefault(module, []).append((reply.weight, pair))
    return found


def shares(terms: Sequence[tuple[float, Pair]], scale: float = 1.0) -> list[tuple[float, Pair]]:
    """The same with weights that add up to ``scale``."""
    total = sum(weight for weight, _ in terms)
    return [(scale * weight / total, pair) for weight, pair in terms]


def covered_mean(factors: Tree, sent: Iterable[tuple[float, Tree]]) -> Tree:
    """Each slot's mean over those who sent it; a slot that nobody sent stays. Some may send only the first slots."""
    coverage = Coverage({name: tensor.shape for name, tensor in factors.items()})
    for weight, tree in sent:
        coverage.add(weight, tree)
    means, covered = coverage.mean()
    return {
        name: old if name not in means else means[name].where(covered[name], old) if name in covered else means[name]
        for name, old in factors.items()
    }
