"""What an adversary sees of a round: one victim's answer as the server decodes it, or the sum that hides it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from fedge.codecs.chain import Chain
from fedge.core.method import Device, Method, Replies, Rows, State
from fedge.core.payload import Payload, Tree
from fedge.core.rng import generator, seed_everything
from fedge.errors import MethodError
from fedge.methods.combine.private import Private, alone
from fedge.methods.combine.secagg import SecAgg
from fedge.methods.combine.shell import Shell, bare, within
from fedge.methods.tuning import enter, start_of
from fedge.models.variant import assemble, seated
from fedge.run.server import StageServer


@dataclass(frozen=True)
class Seen:
    """change: tensors that were trained, as far as the adversary knows them; roles: of all that it sees.

    of: whose rows are in it. model: what the device trained, where it began. nbytes: of one device's answers.
    """

    change: Tree
    roles: tuple[str, ...]
    of: tuple[str, ...]
    model: nn.Module
    nbytes: int


def seen(server: StageServer, state: State, rows: dict[str, Rows], chain: Chain) -> Seen:
    """One round of the devices that ``rows`` names, all of which are victims."""
    method = server.brief.method
    inner = bare(method)
    bared = _inside(method, state)
    answers: dict[str, Payload] = {}
    size = 0
    for name, own in rows.items():
        payload = _answer(server, method, state, name, own)
        sent = chain.encode(payload, generator(*server.brief.seeds, 0, name, "codec", 0), {})
        size = size or len(sent.to_bytes())
        answers[name] = chain.decode(Payload.from_bytes(sent.to_bytes()))
    shown, of = _shown(server, method, state, answers)
    model = assemble(inner, server.base(), *server.brief.seeds).model
    down = inner.down(_server(server, method), bared, next(iter(rows)))
    begun = Device("audit", model, start_of(model), next(iter(rows.values())), server.task, server.meter)
    if "weights" in down.parts:
        enter(begun, down["weights"])
    return Seen(shown.get("delta", {}), tuple(shown), of, model, size)


def _server(server: StageServer, method: Method) -> StageServer:
    """The server as the innermost method sees it."""
    return _server(cast(StageServer, within(server)), method.inner) if isinstance(method, Shell) else server


def _inside(method: Method, state: State) -> State:
    return _inside(method.inner, state["inner"]) if isinstance(method, Shell) else state


def _answer(server: StageServer, method: Method, state: State, name: str, rows: Rows) -> Payload:
    """A device's answer of one round, without masks (which hide it until the sum)."""
    if isinstance(method, SecAgg):
        method, state, server = method.inner, state["inner"], _server(server, method)
    built = seated(method, server.base(), *server.brief.seeds)
    rows = method.reads(rows)
    task, seeds = method.learns(server.task, rows), (*server.brief.seeds, 0, name)
    device = Device(name, built.model, built.initial, rows, task, server.meter, public=server.public, seed=seeds)
    seed_everything(*seeds)
    down = Payload.from_bytes(method.down(server, state, name).to_bytes())
    try:
        return alone(method, device, down)
    except MethodError as error:
        raise MethodError(f"can't be audited: {error.message}") from error


def _shown(
    server: StageServer, method: Method, state: State, answers: dict[str, Payload]
) -> tuple[dict[str, Tree], tuple[str, ...]]:
    """What the adversary makes out: under central privacy what is released; under masks the mean; else one answer."""
    names = tuple(sorted(answers))
    if isinstance(method, SecAgg):
        return _mean([answers[name] for name in names]), names
    if isinstance(method, Private) and method.where == "central":
        replies = Replies(answers, dict.fromkeys(answers, 0), {})
        _, released = method.combine(server, state, replies)
        return dict(released[names[0]].parts), names
    return dict(answers[names[0]].parts), names[:1]


def _mean(payloads: Sequence[Payload]) -> dict[str, Tree]:
    first = payloads[0]
    return {
        role: {name: torch.stack([p[role][name].double() for p in payloads]).mean(0).float() for name in tree}
        for role, tree in first.parts.items()
    }
