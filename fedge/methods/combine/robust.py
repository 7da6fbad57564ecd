"""A robust rule in the place of a method's mean (``fedge.core.rules`` has the rules and their papers).

The inner method sees one answer, the rule's, with the weight of all. Every rule but FLTrust takes it that fewer than
half of the answers are hostile; FLTrust that the server's public rows are clean, and trains on them itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from fedge.core import rules
from fedge.core.method import Abandon, Card, Device, Replies, Server, State
from fedge.core.payload import Tree
from fedge.core.rng import seed_everything, seed_for
from fedge.errors import MethodError
from fedge.methods.combine.private import alone
from fedge.methods.combine.shell import Shell, as_one, within
from fedge.methods.tuning import start_of


@dataclass(frozen=True, kw_only=True)
class Robust(Shell):
    """``attackers``: the share that may be hostile. ``keep``: answers that multikrum averages. ``clip``: τ."""

    rule: Literal["median", "trimmed", "krum", "multikrum", "clip", "fltrust"] = "median"
    attackers: float = 0.3
    keep: int | None = None
    clip: float | None = None

    @property
    def card(self) -> Card:  # type: ignore[override]
        inner = self.inner.card
        return replace(inner, claims=(), deviations=(*inner.deviations, f"{self.rule} in the place of the mean"))

    def combine(self, srv: Server, state: State, replies: Replies) -> tuple[State, Replies]:
        if not replies or srv.rehearsed:  # what a rule costs is the server's
            return state, replies
        answers = [reply["delta"] for reply in replies.values()]
        change = self._ruled(srv, state, answers)
        return state, as_one({"delta": change}, float(len(answers)), replies, list(replies))

    def _ruled(self, srv: Server, state: State, answers: Sequence[Tree]) -> Tree:
        count = len(answers)
        hostile = int(self.attackers * count)
        if self.rule == "median":
            return rules.median(answers)
        if self.rule == "trimmed":
            return rules.trimmed(answers, self.attackers)
        if self.rule == "clip":
            return rules.clipped(answers, self.clip)[0]
        if self.rule == "fltrust":
            found = rules.trusted(answers, self._root(srv, state))
            if found is None:
                raise Abandon("fltrust: no answer points where the public rows do")
            return found
        if count < 2 * hostile + 3:
            raise Abandon(f"{self.rule}: {count} answers, and {hostile} hostile ones need {2 * hostile + 3}")
        keep = 1 if self.rule == "krum" else min(self.keep or count - hostile, count)
        return rules.krum(answers, hostile, keep)[0]

    def _root(self, srv: Server, state: State) -> Tree:
        """What training on the public rows changes."""
        if srv.public is None:
            raise MethodError("fltrust needs rows that the server trusts", hint="data: {public: 100}")
        model = srv.model()
        seed: tuple[str | int, ...] = (seed_for("fltrust", srv.round),)
        task = self.inner.learns(srv.task, srv.public)
        root = Device("server", model, start_of(model), srv.public, task, srv.meter, srv.round, srv.public, seed=seed)
        seed_everything(*seed)
        return alone(self.inner, root, self.inner.down(within(srv), state["inner"], "server"))["delta"]
