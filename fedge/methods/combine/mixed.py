"""Several methods side by side in one federation that learn one model (``method: auto``).

Every participant runs the whole current global function and trains a part of it; a tensor becomes the mean over those
who trained it, what nobody trained stays. So methods mix when each of them trains tensors of that one function: members
of the 'tensors' family, and FLoRA, whose adapters are no part of the function but a way of moving the weights that they
stand on. What such a device sends, ``s B_k A_k`` of its own rank and in the layers of its own depth, is exactly the
change of those weights, and counts in their mean beside the change of a device that trained them whole::

    ``ΔW = Σ_{k trained W} n_k ΔW_k / Σ_{k trained W} n_k``,  ``ΔW_k = s B_k A_k`` or ``W_k − W``

A device downloads all that has changed since the stage began. Sending what it lacks since it last took part would spare
it tensors that nobody has trained meanwhile, and cost a second copy of all the others in the state that every device
saves each round; where every tier takes part in every round, nothing is spared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import nn

from fedge.core.method import Card, Device, Method, Replies, Server, State, Talk
from fedge.core.payload import Payload, Tree
from fedge.methods.customize.flora import FLoRA
from fedge.methods.lowrank import is_factor
from fedge.methods.tuning import Tuning, average, scaled, start_of
from fedge.models.lora import adapted, merge, paired, products
from fedge.models.names import attach, tensors


@dataclass(frozen=True, kw_only=True)
class Mixed(Method):
    """``members`` are the candidates; ``member`` is the one (in which variant) that this device trains."""

    members: tuple[Tuning, ...]
    member: Tuning | None = None

    card: ClassVar[Card] = Card(
        name="Mixed cohort",
        summary="devices train what they can afford of one global function",
        paper="coverage averaging over the members' tensors, with FLoRA's exact rule; fedge's own combination",
        stages=("customize", "train"),
        path="combine",
        leaves=("what the members' cards say",),
        deviations=("not a published method", "FLoRA's stack comes down as the weights that it has changed"),
        roles=("delta", "weights"),
        family="tensors",
    )
    linear: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "members", tuple(member.among_others() for member in self.members))
        if any(member.card.final != "plain" for member in self.members):
            object.__setattr__(self, "card", replace(type(self).card, final="extended"))
        if self.member is not None:
            object.__setattr__(self, "member", self.member.among_others())

    def variants(self) -> Sequence[Method]:
        return [replace(self, member=v) for m in self.members for v in scaled(m.variants()) if isinstance(v, Tuning)]

    @property
    def trains(self) -> Tuning:
        """The member that is trained here: the chosen one, or the first candidate as it was written."""
        return self.member or self.members[0]

    def working(self, round: int) -> Method:
        return self.trains

    def everyone(self) -> Sequence[Method]:
        return [replace(self, member=member) for member in self.members]

    def build(self, base: nn.Module) -> nn.Module:
        # what any member trains is run here; the chosen one comes last, since its build says what is trained
        others = [m for m in self.members if type(m) is not type(self.trains) and not isinstance(m, FLoRA)]
        for member in (*others, self.trains):
            base = member.build(base)
        return base

    def init(self, srv: Server) -> State:
        weights: Tree = {}
        for member in self.members:
            model = srv.model(replace(self, member=member))
            weights.update({name: tensor for name, tensor in start_of(model).items() if not _own(member, name)})
            if isinstance(member, FLoRA):
                base = tensors(srv.base())
                weights.update({name: base[name].detach().clone() for name in _stood_on(model) if name not in weights})
        return {"weights": weights, "changed": [], "moments": {}}

    def down(self, srv: Server, state: State, device: str) -> Payload:
        return Payload({"weights": {name: state["weights"][name] for name in state["changed"]}})

    def client(self, dev: Device, down: Payload) -> Payload | Talk:
        return self.trains.client(dev, down)

    def update(self, srv: Server, state: State, replies: Replies) -> State:
        scale = next((member.scale for member in self.members if isinstance(member, FLoRA)), 1.0)

        def change_of(reply: Payload) -> Tree:
            pairs = {name: (a * scale, b) for name, (a, b) in paired(reply.parts.get("weights", {})).items()}
            return {**reply.parts.get("delta", {}), **products(srv.base(), pairs)}

        return average(srv, state, replies, change_of=change_of)

    def final(self, srv: Server, state: State) -> nn.Module:
        model = srv.model()
        attach(model, state["weights"])
        return merge(model)  # an adapter that is no part of the function stands at nothing


def clash(methods: Sequence[Method]) -> tuple[int, str] | None:
    """The first of ``methods`` that can't share a round with those before it, and why; None when all can."""
    adapters: str | None = None
    for index, method in enumerate(methods):
        exact = isinstance(method, FLoRA)
        if not isinstance(method, Tuning) or (method.card.family != "tensors" and not exact):
            return index, "it does not train tensors of one model"
        if not exact and not hasattr(method, "rank"):
            continue
        if adapters is not None and (exact or adapters == FLoRA.card.name):
            return index, f"it and {adapters} both put adapters on the same weights, and average them differently"
        adapters = method.card.name
    return None


def _own(member: Tuning, name: str) -> bool:
    """Whether a tensor is a member's way of training rather than a part of the global function."""
    return isinstance(member, FLoRA) and is_factor(name)


def _stood_on(model: nn.Module) -> list[str]:
    """The payload names of the weights that carry adapters."""
    return [f"{module}.weight" for module in adapted(model)]
