"""Properties of a method's rounds: what the global model and the states are after them, come what may.

Each property is a function of a ``Case`` that returns None when it holds, a reason when it does not apply, and raises
``Broken`` otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import FrozenInstanceError, fields

import torch
from torch import Tensor, nn

from fedge.core.method import Replies
from fedge.core.payload import Payload, Tree
from fedge.errors import FedgeError
from fedge.methods.make import describe, revive
from fedge.models.names import tensors, trainable
from fedge.models.variant import assemble
from fedge.plan.trace import REPEATS
from fedge.testing.case import Broken, Case, apart, bits, finite, idle
from fedge.testing.driver import Driven, Order

#: A download by role and name.
Told = dict[tuple[str, str], Tensor]
#: Differences up to this, in units of the larger number or of 1, are rounding of float32.
ROUNDING = 2e-4
#: Of how far plain training went, the part by which one device alone may end elsewhere.
ALONE = 0.02


def value(case: Case) -> str | None:
    """A variant is a frozen value that travels as JSON."""
    for variant in case.variants:
        try:
            came = revive(json.loads(json.dumps(describe(variant))))
        except (TypeError, ValueError, AttributeError) as error:
            raise Broken(
                f"{case.called(variant)} does not come back from JSON: {error}",
                "A method's fields are numbers, texts, tuples of them, or methods; the class stands at its module's "
                "top level.",
            ) from error
        if came != variant:
            raise Broken(
                f"{case.called(variant)} comes back from JSON as {came}", "Make every hyperparameter a plain field."
            )
    for f in fields(case.method)[:1]:
        try:
            setattr(case.method, f.name, getattr(case.method, f.name))
        except FrozenInstanceError:
            continue
        raise Broken("the method's fields can be changed", "Decorate it by @dataclass(frozen=True, kw_only=True).")
    return None


def still(case: Case) -> str | None:
    """A round of zero steps leaves the model as it was."""
    method = idle(case.method)
    variants = [idle(variant) for variant in case.mixed]
    if method is None or None in variants:
        return f"no field counts repetitions ({', '.join(REPEATS)})"
    driven = case.start([variant for variant in variants if variant], method=method)
    before = case.logits(driven)
    if method.card.final == "plain":
        gap = apart(before, case.logits(driven, case.tiny.model))
        if gap > ROUNDING:
            raise Broken(
                f"before the first round 'final' is not the stage's base: logits differ by {gap:.3g}",
                "Start adapters at zero, heads at the base's own, and merge without loss.",
            )
    gap = apart(case.logits(driven.go(2)), before)
    if gap > ROUNDING:
        raise Broken(
            f"after two rounds of zero local steps the model's logits differ by {gap:.3g}",
            "'client' must send no change when it took no step, and 'update' must add nothing of its own; a field "
            f"that counts repetitions is called {' or '.join(REPEATS)}.",
        )
    return None


def alone(case: Case) -> str | None:
    """One device that holds all rows ends where plain training of the same tensors ends."""
    method = case.method
    if "alone" not in method.card.claims:
        return "not claimed (card.claims)"
    tiny, rounds = case.tiny, 2
    rows = tiny.rows(4, "alone")  # as many as are in a batch, so that every step sees all of them
    begun = case.start()
    server = begun.server
    driven = Driven(server, begun.state, {"a": begun.devices["a"]}, {"a": begun.built["a"]})
    driven.devices["a"].data = rows
    driven.go(rounds)
    model = assemble(method, tiny.model, *server.seed).model.train()
    batch = next(rows.chunks(len(rows)))
    for _ in range(rounds):
        optimizer = method.local_optimizer(trainable(model).values())  # type: ignore[attr-defined]
        for _ in range(method.steps):  # type: ignore[attr-defined]
            torch.autograd.backward(tiny.task.loss(model, batch))
            optimizer.step()
            optimizer.zero_grad()
    ours, theirs, base = (case.logits(driven, m) for m in (None, model, tiny.model))
    away, went = float((ours - theirs).norm()), float((theirs - base).norm())
    if away > ALONE * went + 1e-5:
        raise Broken(
            f"one device with all rows ends {away:.3g} away from plain training, which itself moves by {went:.3g}",
            "Look for a change that is scaled, clipped or dropped on its way; or leave 'alone' out of card.claims.",
        )
    return None


def variants(case: Case) -> str | None:
    """Variants of every size finish rounds together."""
    every = case.variants
    driven = case.start(every)
    try:
        driven.go(2)
    except Exception as error:
        raise Broken(
            f"devices that run all {len(every)} variants can't finish two rounds together: {_said(error)}",
            "'update' gets replies of every variant; fold by name and by coverage (fedge.core.fold.Coverage).",
        ) from error
    if not finite(driven.state):
        raise Broken("after two rounds of all variants the state holds numbers that are not finite", _DIVERGED)
    if not bool(torch.isfinite(case.logits(driven)).all()):
        raise Broken("after two rounds of all variants the final model's logits are not finite", _DIVERGED)
    silent = set(driven.devices) - {name for sent in driven.sent for name in sent}
    if silent and not driven.hurried:
        raise Broken(f"{', '.join(sorted(silent))} were never asked", "'round' asks every device of srv.cohort.")
    return None


def order(case: Case) -> str | None:
    """The order in which devices compute and answers arrive changes no bit."""
    plain = case.trail

    def turned(round: int, turn: int, names: Sequence[str]) -> Sequence[str]:
        shift = (round + turn) % max(1, len(names))
        return [*reversed(names[shift:]), *reversed(names[:shift])]

    other: Order | None = None if plain.driven.hurried else turned
    shuffled = case.start(case.mixed).go(3, order=other, computed=turned)
    if plain.states[-1] != bits(shuffled.state):
        raise Broken(
            "the state's bits depend on the order in which devices compute or answer",
            "'client' draws from dev.generator(purpose) or torch's global state alone and shares nothing with other "
            "devices (no module variables, no caches on the class); 'update' folds replies in the order they have.",
        )
    return None


def lost(case: Case) -> str | None:
    """A round goes on without a device that is lost at any of its turns."""
    turns = max(len(payloads) for payloads in case.plain.sent[0].values())
    for turn in sorted({0, 1, turns // 2, turns - 1} & set(range(turns))):
        driven = case.start(case.mixed)
        try:
            driven.go(1, lost={(0, turn): ["b"]}).go(1)
        except Exception as error:
            if isinstance(error, FedgeError) and "quorum" in str(error):
                continue
            raise Broken(
                f"with device b lost at turn {turn} the round fails: {_said(error)}",
                "Go on with those in 'replies' (not srv.cohort), or raise a MethodError that names the quorum.",
            ) from error
        if not finite(driven.state):
            raise Broken(f"with device b lost at turn {turn} the state holds numbers that are not finite", _DIVERGED)
        if "b" not in driven.sent[1] and not driven.hurried:
            raise Broken(
                f"device b, lost at turn {turn} of round 0, is not asked in round 1", "A loss ends with its round."
            )
    return None


def absent(case: Case) -> str | None:
    """A device that missed a round starts the next one where the others do."""
    full, told_full = _starts(case, {})
    away, told = _starts(case, {1: ["b"]})
    common = [n for n in full["a"] if all(apart(full[d][n], full["a"][n]) <= ROUNDING for d in full)]
    for name in common:
        gap = apart(away["b"][name], away["a"][name])
        if gap > ROUNDING:
            raise Broken(
                f"after missing round 1, device b starts round 2 from another '{name}' than device a (by {gap:.3g})",
                _ABSOLUTE,
            )
    if not set(common) & set(trainable(case.plain.devices["a"].model)):
        same = [key for key in told_full["a"] if all(_equal(told_full[d], told_full["a"], key) for d in told_full)]
        for role, name in same:
            if not _equal(told["b"], told["a"], (role, name)):
                raise Broken(f"after missing round 1, device b is told another '{role}/{name}' than a", _ABSOLUTE)
    if case.method.card.family == "tensors":
        driven = case.start(case.mixed).go(3, absent={1: ["b"], 2: ["a", "b"]})
        for device in driven.devices:
            model = driven.synced(device)
            gap = apart(case.logits(driven, model), case.logits(driven))
            if gap > ROUNDING:
                who = f"device {device} ({case.called(driven.server.variants[device])})"
                raise Broken(
                    f"after missing rounds, {who} runs another function than 'final': logits differ by {gap:.3g}",
                    "In the family 'tensors' every device runs the whole global function and trains a part of it.",
                )
    return None


def resume(case: Case) -> str | None:
    """Saved, loaded and continued is continued; states are tensors and JSON values."""
    try:
        trail = case.trail
        resumed = trail.taken_up.again().go(2)
    except FedgeError as error:
        raise Broken(
            f"a state can't be saved: {error}", "States are nested dicts of tensors and JSON scalars."
        ) from error
    if trail.states[-1] != bits(resumed.state):
        raise Broken(
            "going on from a saved state ends in other bits than going on at once",
            "Whatever must survive a round lies in the state that 'update' returns, or in dev.state; nothing on the "
            "method, on dev.model, or in module variables.",
        )
    for name, device in trail.driven.devices.items():
        if bits(device.state) != bits(resumed.devices[name].state):
            raise Broken(f"device {name}'s own state ends in other bits after a resume", "See above.")
    return None


def replaced(case: Case) -> str | None:
    """A device whose process dies at any turn and is told again gives the same bits."""
    plain = case.trail
    sent = plain.driven.sent[1]
    turns = max(len(payloads) for payloads in sent.values()) if sent else 1
    for turn in sorted({0, turns - 1}):
        other = case.start(case.mixed).go(2, replaced={(1, turn): ["a", "b"]})
        if plain.states[1] != bits(other.state):
            raise Broken(
                f"a device whose process was replaced at turn {turn} answers otherwise than before",
                "'client' reads its arguments and dev.state alone, and dev.model at a round's start is a function of "
                "the base, 'down' and dev.state.",
            )
    return None


def linear(case: Case) -> str | None:
    """``update`` of a linear method needs its replies only through Σ w x and Σ w."""
    method = case.method
    if not type(method).linear:
        return "not claimed (linear)"
    driven = case.start()
    # who is asked once in a stage has nothing to say in a second round
    driven.go(1 if driven.again().go(2).sent[-1] else 0)
    number = len(driven.sent)
    answers = {name: payloads[-1] for name, payloads in driven.again().go(1).sent[-1].items()}
    server, state = driven.server, driven.state
    server.round = number
    asked = dict.fromkeys(answers, number)
    each = method.update(server, state, Replies(answers, asked, {}))
    total = {"a": _summed(list(answers.values()))}
    try:
        summed = method.update(server, state, Replies(total, {"a": number}, {}))
    except Exception as error:
        raise Broken(f"'update' can't take the summed reply: {_said(error)}", _LINEAR) from error
    ours, theirs = case.logits(driven, method.final(server, summed)), case.logits(driven, method.final(server, each))
    gap = max([apart(ours, theirs), *(_gaps(summed, each))])
    if gap > ROUNDING:
        raise Broken(f"'update' of the summed reply and of the replies one by one differ by {gap:.3g}", _LINEAR)
    return None


_DIVERGED = "Look at divisions by the weight of nobody, and at learning rates."
_ABSOLUTE = "'down' says where the global model is, not what changed since the last round."
_LINEAR = "Without 'linear: ClassVar[bool] = True' nothing is claimed; with it, secure aggregation sees the sum alone."


def _said(error: BaseException) -> str:
    return str(error) if isinstance(error, FedgeError) else f"{type(error).__name__}: {error}"


def _starts(case: Case, away: Mapping[int, Sequence[str]]) -> tuple[dict[str, Tree], dict[str, Told]]:
    """Each device's model when it first computes in round 2, and what it was told then by role and name."""
    driven = case.start().go(2, absent=away)
    seen: dict[str, Tree] = {}

    def watch(name: str, model: nn.Module) -> None:
        def look(module: nn.Module, given: object) -> None:
            if name not in seen:
                seen[name] = {n: t.clone() for n, t in tensors(model).items()}

        for module in model.modules():
            module.register_forward_pre_hook(look)

    for name, device in driven.devices.items():
        watch(name, device.model)
    server = driven.server
    server.round, server.cohort = 2, tuple(sorted(driven.devices))
    told = {}
    for name in server.cohort:
        down = server.method.down(server, driven.state, name)
        told[name] = {(role, n): t.clone() for role, tree in down.parts.items() for n, t in tree.items()}
    driven.go(1)
    for name, device in driven.devices.items():  # who never ran its model is where its round left it
        seen.setdefault(name, {n: t.clone() for n, t in tensors(device.model).items()})
    return seen, told


def _equal(a: Told, b: Told, key: tuple[str, str]) -> bool:
    return key in a and key in b and apart(a[key], b[key]) <= ROUNDING


def _summed(payloads: Sequence[Payload]) -> Payload:
    """One payload that holds the weighted mean of all, and their weight."""
    weight = sum(payload.weight for payload in payloads)
    parts: dict[str, Tree] = {}
    for role in payloads[0].parts:
        parts[role] = {}
        for name, first in payloads[0][role].items():
            total = torch.stack([p[role][name].double() * p.weight for p in payloads]).sum(0) / weight
            parts[role][name] = total.to(first.dtype if first.is_floating_point() else torch.float32)
    return Payload(parts, weight)


def _gaps(a: object, b: object) -> list[float]:
    """How far two states are apart, tensor by tensor (who was counted may stand beside them)."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return [apart(a, b)]
    if isinstance(a, dict) and isinstance(b, dict):
        return [gap for key in {*a, *b} for gap in _gaps(a.get(key), b.get(key))]
    return [float("inf")] if isinstance(a, Tensor) or isinstance(b, Tensor) else []
