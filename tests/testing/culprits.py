"""Methods that are broken on purpose, one way each. Each is a good one but for what its docstring says."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import count
from typing import ClassVar

import torch

from fedge.core.fold import weighted_mean
from fedge.core.method import Card
from fedge.core.payload import Payload
from fedge.methods.customize.bitfit import BitFit
from fedge.methods.customize.head import Head
from fedge.methods.tuning import average, doc, enter, leave

CARD = replace(BitFit.card, name="Culprit")


@dataclass(frozen=True, kw_only=True)
class Good(BitFit):
    """Nothing is wrong with it."""

    card: ClassVar[Card] = CARD

    def personal(self, dev, down):
        enter(dev, down["weights"])
        return dev.model


@dataclass(frozen=True, kw_only=True)
class Decays(Good):
    """The server shrinks the weights at every round."""

    def update(self, srv, state, replies):
        state = average(srv, state, replies)
        return {**state, "weights": {name: tensor * 0.9 for name, tensor in state["weights"].items()}}


@dataclass(frozen=True, kw_only=True)
class Randomised(Good):
    """What is built is not the base."""

    def build(self, base):
        base.classifier.weight.data = torch.randn_like(base.classifier.weight)
        return super().build(base)


@dataclass(frozen=True, kw_only=True)
class Doubles(Good):
    """Twice the change is sent."""

    def client(self, dev, down):
        sent = super().client(dev, down)
        return Payload({"delta": {n: 2 * t for n, t in sent["delta"].items()}}, sent.weight)


@dataclass(frozen=True, kw_only=True)
class OneShape(Good):
    """Everybody is taken to have trained what the first has."""

    def update(self, srv, state, replies):
        first = next(iter(replies.values()))
        mean = {n: sum(r["delta"][n] for r in replies.values()) / len(replies) for n in first["delta"]}
        weights = {**state["weights"], **{n: state["weights"][n] + t for n, t in mean.items()}}
        return {**state, "weights": weights, "changed": sorted(mean)}


@dataclass(frozen=True, kw_only=True)
class Diverges(Good):
    """A division by nothing."""

    def update(self, srv, state, replies):
        state = average(srv, state, replies)
        return {**state, "weights": {n: t / (t * 0) for n, t in state["weights"].items()}}


@dataclass(frozen=True, kw_only=True)
class Counts(Good):
    """A number that all devices share."""

    seen: ClassVar = count()

    def client(self, dev, down):
        sent = super().client(dev, down)
        return Payload(sent.parts, weight=sent.weight + next(self.seen) % 3)


@dataclass(frozen=True, kw_only=True)
class NeedsAll(Good):
    """The whole cohort must answer."""

    def update(self, srv, state, replies):
        assert all(replies[device].weight > 0 for device in srv.cohort)
        return super().update(srv, state, replies)


@dataclass(frozen=True, kw_only=True)
class Incremental(Good):
    """What is told is what changed in the last round."""

    card: ClassVar[Card] = replace(CARD, family="own")

    def update(self, srv, state, replies):
        new = average(srv, state, replies)
        return {**new, "last": {n: t - state["weights"][n] for n, t in new["weights"].items()}}

    def down(self, srv, state, device):
        return Payload({"delta": state.get("last", {})})

    def client(self, dev, down):
        held = dev.state.get("held", dev.initial)
        held = {n: t + down["delta"][n] if n in down["delta"] else t for n, t in held.items()}
        dev.state["held"] = {n: t.clone() for n, t in held.items()}
        start = enter(dev, held)
        self.train(dev, dev.task.loss, start)
        return leave(dev, start)


@dataclass(frozen=True, kw_only=True)
class Partly(Good):
    """Devices are told half of what has changed, so they run another function than the server's."""

    def down(self, srv, state, device):
        return Payload({"weights": {n: state["weights"][n] for n in state["changed"] if ".layer" not in n}})


@dataclass(frozen=True, kw_only=True)
class Remembers(Good):
    """Momentum that lies on the method."""

    held: ClassVar[dict] = {}

    def update(self, srv, state, replies):
        state = average(srv, state, replies)
        number = self.held[id(self)] = self.held.get(id(self), 0) + 1
        return {**state, "weights": {n: t + 0.01 * number for n, t in state["weights"].items()}}


@dataclass(frozen=True, kw_only=True)
class Unsaved(Good):
    """A state that is no tensor and no JSON."""

    def update(self, srv, state, replies):
        return {**average(srv, state, replies), "who": set(replies)}


@dataclass(frozen=True, kw_only=True)
class Leftover(Good):
    """Something stays on the device's model for the next round."""

    def client(self, dev, down):
        rounds = dev.model.rounds = getattr(dev.model, "rounds", 0) + 1
        sent = super().client(dev, down)
        return Payload(sent.parts, weight=sent.weight * rounds)


@dataclass(frozen=True, kw_only=True)
class Largest(Good):
    """Not the sum: the reply with the most rows counts alone."""

    linear: ClassVar[bool] = True

    def update(self, srv, state, replies):
        most = max(replies.values(), key=lambda reply: reply.weight)
        mean = weighted_mean([(1.0, most["delta"])])
        weights = {**state["weights"], **{n: state["weights"][n] + t for n, t in mean.items()}}
        return {**state, "weights": weights, "changed": sorted(mean)}


@dataclass(frozen=True, kw_only=True)
class Undeclared(Good):
    """Statistics beside the change, of which the card says nothing."""

    def client(self, dev, down):
        sent = super().client(dev, down)
        return Payload({**sent.parts, "statistics": {"rows": torch.ones(3)}}, sent.weight)


@dataclass(frozen=True, kw_only=True)
class Talkative(Good):
    """Numbers in bulk as JSON."""

    def client(self, dev, down):
        sent = super().client(dev, down)
        return Payload(sent.parts, sent.weight, {"numbers": list(range(2000))})


@dataclass(frozen=True, kw_only=True)
class SendsRows(Good):
    """Inputs leave under a declared role, as half precision."""

    card: ClassVar[Card] = replace(CARD, roles=("delta", "activations"))

    def client(self, dev, down):
        sent = super().client(dev, down)
        first = next(iter(dev.task.inputs(next(dev.data.chunks(2))).values()))
        return Payload({**sent.parts, "activations": {"x": first.half().flatten(1)}}, sent.weight)


@dataclass(frozen=True, kw_only=True)
class WritesRows(Good):
    """Inputs leave as JSON."""

    def client(self, dev, down):
        sent = super().client(dev, down)
        first = next(iter(dev.task.inputs(next(dev.data.chunks(1))).values()))
        return Payload(sent.parts, sent.weight, {"seen": first.flatten()[:8].tolist()})


@dataclass(frozen=True, kw_only=True)
class Swells(Good):
    """A message whose size depends on what was learnt."""

    def client(self, dev, down):
        sent = super().client(dev, down)
        few = {n: t for n, t in sent["delta"].items() if dev.round == 0 or "classifier" in n}
        return Payload({"delta": few}, sent.weight)


@dataclass(frozen=True, kw_only=True)
class Unexportable(Good):
    """The final model looks at values while it runs."""

    def final(self, srv, state):
        model = super().final(srv, state)
        inner = model.forward

        def forward(*given, **named):
            output = inner(*given, **named)
            return output if float(output.logits.sum()) > -1e9 else inner(*given, **named)

        model.forward = forward
        return model


@dataclass(frozen=True, kw_only=True)
class Wrapped(Good):
    """The final model is not of the base's architecture."""

    def final(self, srv, state):
        return torch.nn.Sequential(super().final(srv, state))

    def predict(self, model, inputs):
        return model[0](**inputs).logits


@dataclass(frozen=True, kw_only=True)
class NoPaper(Good):
    """A card without a paper, with a role and a task that are none, and a field without a word."""

    card: ClassVar[Card] = replace(CARD, paper="", roles=("deltas",), tasks=("sorting",), waives=(("lost", ""),))
    strange: float = 0.5


@dataclass(frozen=True, kw_only=True)
class HidesKey(Good):
    """A field that every stage has as a key."""

    rounds: int = field(default=3, metadata=doc("no"))


@dataclass(frozen=True, kw_only=True)
class NotJson(Good):
    """A field that JSON can't carry."""

    when: object = field(default_factory=object, metadata=doc("no"))


@dataclass(frozen=True, kw_only=True)
class WritesBase(Head):
    """The frozen weights, which all share, are written to on the device."""

    card: ClassVar[Card] = CARD

    def client(self, dev, down):
        for parameter in dev.model.parameters():
            if not parameter.requires_grad:
                parameter.data.mul_(0.99)
        return super().client(dev, down)


@dataclass(frozen=True, kw_only=True)
class Waits(Good):
    """A round that asks until everybody has answered."""

    def round(self, srv, state):
        from fedge.core.method import Ask

        replies = {}
        while set(replies) != set(srv.cohort):
            replies = yield Ask({device: self.down(srv, state, device) for device in srv.cohort})
        return self.update(srv, state, replies)


@dataclass(frozen=True, kw_only=True)
class Forgets(Good):
    """Taking its own model, a device changes its state."""

    def personal(self, dev, down):
        dev.state["taken"] = dev.state.get("taken", 0) + 1
        return super().personal(dev, down)


@dataclass(frozen=True, kw_only=True)
class Dices(Good):
    """A device's own model is another one each time."""

    drawn: ClassVar[count] = count()

    def personal(self, dev, down):
        model = super().personal(dev, down)
        model.classifier.bias.data = model.classifier.bias.data + next(self.drawn)
        return model


#: The property that catches each, and words of what is said.
CAUGHT = [
    (Decays, "still", "two rounds of zero local steps"),
    (Randomised, "still", "'final' is not the stage's base"),
    (Doubles, "alone", "away from plain training"),
    (OneShape, "variants", "can't finish two rounds together: KeyError"),
    (Diverges, "variants", "not finite"),
    (Counts, "order", "order in which devices compute"),
    (NeedsAll, "lost", "with device b lost at turn 0"),
    (Waits, "lost", "did not end within"),
    (Incremental, "absent", "after missing round 1, device b starts round 2 from another"),
    (Partly, "absent", "runs another function than 'final'"),
    (Remembers, "resume", "going on from a saved state ends in other bits"),
    (Unsaved, "resume", "a state holds a set"),
    (Leftover, "replaced", "process was replaced at turn 0"),
    (Largest, "linear", "the summed reply and of the replies one by one differ"),
    (Undeclared, "roles", "sends 'statistics', which the card does not declare"),
    (Talkative, "roles", "bytes of meta"),
    (SendsRows, "raw", "sends rows of its"),
    (WritesRows, "raw", "sends rows of its"),
    (Forgets, "personal", "changes its state"),
    (Dices, "personal", "differently a second time"),
    (Swells, "bytes", "were counted"),
    (Unexportable, "export", "can't be exported"),
    (Wrapped, "export", "not of the base's architecture"),
    (NoPaper, "card", "card.paper is empty"),
    (HidesKey, "card", "rounds are keys of every stage"),
    (NotJson, "value", "does not come back from JSON"),
    (WritesBase, "variants", "the stage's base was written to"),
]
