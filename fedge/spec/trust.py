"""What a stage asks for against curious or hostile parties: ``privacy``, ``secure_aggregation``, ``aggregate``.

What needs no more than the catalogue to be refused is refused here; the words and reasons are ``fedge.core.trust``'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import model_validator

from fedge.core import trust
from fedge.spec.catalogue import MethodInfo
from fedge.spec.source import Source
from fedge.spec.values import Check, NonzeroShare, Section, integer, key, number, one_of, whole

_BITS = (16, 32, 64)


def _bits(given: object) -> int:
    if whole(given) not in _BITS:
        raise ValueError(f"expected one of {', '.join(map(str, _BITS))}, got {given}")
    return int(str(given))


class PrivacySpec(Section):
    """Differential privacy for devices: what one of them holds hardly shows in anything that is released."""

    clip: Annotated[float, number(0, 1e9, above=True)] = key(
        "the norm to which each device's answer is cut down; with adaptive, where it begins", 1.0
    )
    epsilon: Annotated[float, number(0, 1e6, above=True)] | None = key(
        "the budget for all rounds of the stage; the noise follows from it", None
    )
    noise: Annotated[float, number(0, 1e6, above=True)] | None = key(
        "instead of epsilon: the noise's standard deviation in units of clip; epsilon is told", None
    )
    delta: Annotated[float, number(0, 0.1, above=True)] = key(
        "probability with which the budget may not hold; well below one in the number of devices", 1e-5
    )
    where: Annotated[str, one_of("auto", *trust.WHERE)] = key(
        "who adds the noise: the server (central), each device for itself (local), all devices together (distributed); "
        "auto is distributed under secure_aggregation, central without it",
        "auto",
    )
    mechanism: Annotated[str, one_of(*trust.MECHANISMS)] = key(
        "gaussian: fresh noise each round; ftrl: a tree of noise for each pass over the devices (DP-FTRL)", "gaussian"
    )
    adaptive: NonzeroShare | None = key("let clip move to this quantile of the answers' norms, such as 50%", None)
    randomness: Annotated[str, one_of("run", "system")] = key(
        "where noise comes from: the run's seed, so that runs repeat bit for bit, or the operating system", "run"
    )

    @model_validator(mode="after")
    def _one_of_two(self) -> PrivacySpec:
        if (self.epsilon is None) == (self.noise is None):
            raise ValueError("give epsilon, from which the noise follows, or noise, of which epsilon is told; not both")
        return self

    def added(self, secure: bool) -> str:
        """Where noise is added, one of ``trust.WHERE``; ``secure``: whether answers are summed under masks."""
        if self.where != "auto":
            return self.where
        return "distributed" if secure else "central"


class SecureSpec(Section):
    """Answers are summed under masks: the server sees their sum and no one's own."""

    threshold: NonzeroShare = key("share of those asked, and of each one's neighbours, that must stay; above half", 0.6)
    bits: Annotated[int, Check(_bits, {"enum": list(_BITS)})] = key("size of the ring's numbers: 16, 32 or 64", 32)
    range: Annotated[float, number(0, 1e9, above=True)] | None = key(
        "numbers beyond this are cut off before they are rounded; 1 for changes, by which a coordinate moves", None
    )
    neighbours: Annotated[int, integer(2, 10_000)] | None = key(
        "with how many others a device shares its secrets; by default all of up to 8, else about 3 log2 of them", None
    )

    @model_validator(mode="after")
    def _majority(self) -> SecureSpec:
        if self.threshold <= 0.5:
            raise ValueError("threshold must be above 50%: a server could unmask two halves otherwise")
        return self


class AggregateSpec(Section):
    """How the server aggregates where some devices may be hostile."""

    rule: Annotated[str, one_of(*trust.RULES)] = key("what stands in for the mean: " + ", ".join(trust.RULES))
    attackers: NonzeroShare = key("share of the answers that may be hostile", 0.3)
    keep: Annotated[int, integer(1, 100_000)] | None = key("for multikrum: answers that are averaged", None)
    clip: Annotated[float, number(0, 1e9, above=True)] | None = key(
        "for clip: the norm to which answers are cut down; the median of their norms by default", None
    )

    @model_validator(mode="after")
    def _minority(self) -> AggregateSpec:
        if self.attackers >= 0.5 and self.rule != "fltrust":
            raise ValueError(f"no rule of this kind stands against a majority: attackers below 50% for {self.rule}")
        return self


def check_trust(
    keys: Any, methods: Sequence[tuple[str, MethodInfo | None]], codec: object, at: str, source: Source
) -> None:
    """Report what the stage's methods and its other keys don't go with. Methods of the user's own are checked later."""
    known = [(word, info) for word, info in methods if info is not None and info.built]
    privacy, secure, aggregate = keys.privacy, keys.secure_aggregation, keys.aggregate

    def refuse(name: str, reasons: Sequence[str | None], hint: str) -> None:
        for reason in dict.fromkeys(reason for reason in reasons if reason):
            source.report(f"{at}.{name}", reason, hint=hint)

    if privacy is not None:
        where = privacy.added(secure is not None)
        hint = "lora, head and other methods that average changes can be private" + (
            "" if where == "local" else "; where: local holds for more"
        )
        refuse("privacy", [trust.private_refusal(word, i.linear, i.roles, where) for word, i in known], hint)
        _check_privacy(privacy, where, secure is not None, aggregate is not None, at, source)
    if secure is not None:
        ranged = secure.range is not None
        reasons = [trust.secure_refusal(word, i.linear, i.roles, ranged) for word, i in known]
        refuse("secure_aggregation", reasons, "methods that average changes can be summed under masks: fedavg, lora")
        if codec is not None:
            message = "codecs make each answer smaller in a way of its own, and masked answers must add up"
            source.report(
                f"{at}.codec", message, hint="leave codec out; secure_aggregation.bits says how large they are"
            )
    if aggregate is not None:
        refuse("aggregate", [trust.robust_refusal(word, i.linear, i.roles) for word, i in known], "fedavg, lora, head")
        if secure is not None:
            message = f"'{aggregate.rule}' compares answers, and under secure_aggregation nobody sees one"
            source.report(f"{at}.aggregate", message, hint="leave one of them out")


def _check_privacy(privacy: PrivacySpec, where: str, secure: bool, robust: bool, at: str, source: Source) -> None:
    if where == "distributed" and not secure:
        message = "a device's share of the noise protects nothing alone"
        source.report(f"{at}.privacy.where", message, hint="add secure_aggregation: {threshold: 60%}, or where: local")
    if where == "central" and secure:
        message = "under secure_aggregation the server sees no answer that it could cut down"
        source.report(f"{at}.privacy.where", message, hint="where: distributed")
    if where == "central" and robust:
        message = "the noise is made for a mean, and a rule can let one device count for more"
        source.report(f"{at}.privacy", message, hint="where: local, or leave aggregate out")
    if where != "central":
        for name, given in (("mechanism", privacy.mechanism == "ftrl"), ("adaptive", privacy.adaptive is not None)):
            if given:
                source.report(f"{at}.privacy.{name}", f"needs a server that adds the noise, here it is {where}")
    if privacy.mechanism == "ftrl" and privacy.adaptive is not None:
        message = "a tree of noise is made for one clip, and this one moves"
        source.report(f"{at}.privacy.adaptive", message, hint="leave it out, or mechanism: gaussian")
