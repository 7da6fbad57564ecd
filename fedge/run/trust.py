"""From a stage's keys of trust to the methods around its method, how its cohorts are drawn, and what privacy it has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from fedge.core import trust
from fedge.core.method import Method
from fedge.errors import ConfigError
from fedge.methods.combine.private import Private
from fedge.methods.combine.robust import Robust
from fedge.methods.combine.secagg import SecAgg
from fedge.methods.combine.shell import bare
from fedge.methods.tuning import Tuning
from fedge.privacy.account import Release, multiplier
from fedge.privacy.budget import Budgeted
from fedge.run.cohort import rounds_of_a_pass
from fedge.spec.federation import FederationSpec
from fedge.spec.stage import StageSpec
from fedge.spec.trust import AggregateSpec, PrivacySpec, SecureSpec

#: Key, method as written, variant: what ``plan.menu.method_of`` gives.
Variants = Sequence[tuple[str, Method, Method]]


@dataclass(frozen=True)
class Trusted:
    """A stage's method and variants with what is around them; sampling: how cohorts are drawn."""

    method: Method
    variants: Variants
    sampling: str = "uniform"
    budget: Budgeted | None = None


def trusted(spec: FederationSpec, stage: StageSpec, method: Method, variants: Variants, largest: int) -> Trusted:
    """Put around a stage's method what its keys ask for; ``largest``: rows of the device that has most.

    Raises ConfigError, with the place in the file, where that can't hold.
    """
    found = Trusted(method, variants, stage.sampling)
    _uneven(spec, stage, variants)
    if stage.aggregate is not None:
        found = _robust(spec, stage, stage.aggregate, found)
    if stage.privacy is not None:
        found = _private(spec, stage, stage.privacy, found)
    if stage.secure_aggregation is not None:
        found = _secure(spec, stage, stage.secure_aggregation, found, largest)
    return found


def _uneven(spec: FederationSpec, stage: StageSpec, variants: Variants) -> None:
    """Refuse steps that differ where the server is given one sum, in which nobody's answer can be weighed by them."""
    asked = [key for key in ("aggregate", "privacy", "secure_aggregation") if getattr(stage, key) is not None]
    if asked == ["privacy"] and stage.privacy is not None and stage.privacy.added(False) == "local":
        return
    inner = [variant.working(0) for _, _, variant in variants]
    if asked and any(isinstance(method, Tuning) and method.scale_steps for method in inner):
        reason = f"answers count by their steps, and under {asked[0]} the server is given only what they come to"
        problem = spec.problem(f"stages.{stage.index}.scale_steps", reason, hint="scale_length and scale_base can stay")
        raise ConfigError(problem)


def _around(found: Trusted, wrap: Callable[[Method], Method]) -> Trusted:
    variants = [(key, written, wrap(variant)) for key, written, variant in found.variants]
    return replace(found, method=wrap(found.method), variants=variants)


def _refuse(spec: FederationSpec, stage: StageSpec, key: str, reason: str | None) -> None:
    if reason is not None:
        raise ConfigError(spec.problem(f"stages.{stage.index}.{key}", reason))


def _plain(spec: FederationSpec, stage: StageSpec, key: str, why: str) -> None:
    """Refuse other cohorts than those that chance draws, and answers that count in another round."""
    for name, usual in (("sampling", "uniform"), ("over", 1.0), ("late", "drop")):
        if getattr(stage, name) != usual:
            raise ConfigError(
                spec.problem(f"stages.{stage.index}.{name}", f"not under {key}: {why}", hint=f"{name}: {usual}")
            )


def _private(spec: FederationSpec, stage: StageSpec, asked: PrivacySpec, found: Trusted) -> Trusted:
    secure = stage.secure_aggregation is not None
    where = asked.added(secure)
    roles = found.method.card.roles
    _refuse(spec, stage, "privacy", trust.private_refusal(stage.method, found.method.linear, roles, where))
    if where != "central" and spec.elsewhere and asked.randomness == "run":
        # whoever knows the run's seed could take the noise off again
        message = f"'{spec.elsewhere[0].name}' is on another machine: noise from the run's seed would hide nothing"
        raise ConfigError(spec.problem(f"stages.{stage.index}.privacy.randomness", message, hint="randomness: system"))
    if where == "central":
        _plain(spec, stage, "privacy", "its accounts take it that chance alone decides who counts, and in which round")
    devices = len(spec.devices)
    cohort = min(stage.cohort or devices, devices)
    tree = rounds_of_a_pass(devices, cohort) if asked.mechanism == "ftrl" else 0
    # who takes part is a secret where the server keeps it, and then counts for something
    share = cohort / devices if where == "central" and not tree else 1.0
    release = Release(asked.noise or 1.0, share, tree)
    if asked.noise is None:
        assert asked.epsilon is not None
        try:
            release = replace(release, noise=multiplier(release, stage.rounds, asked.epsilon, asked.delta))
        except ValueError as error:
            raise ConfigError(spec.problem(f"stages.{stage.index}.privacy.epsilon", str(error))) from error
    budget = Budgeted(where, asked.clip, asked.delta, release)
    if where == "distributed":  # what is around it for secure aggregation adds the noise
        return replace(found, budget=budget)

    def wrap(inner: Method) -> Method:
        return Private(
            inner=inner,
            where="local" if where == "local" else "central",
            clip=asked.clip,
            noise=release.noise,
            expected=float(cohort),
            epoch=tree,
            quantile=asked.adaptive,
            system=asked.randomness == "system",
        )

    sampling = "passes" if tree else "poisson" if share < 1 else found.sampling
    return replace(_around(found, wrap), sampling=sampling, budget=budget)


def _secure(spec: FederationSpec, stage: StageSpec, asked: SecureSpec, found: Trusted, largest: int) -> Trusted:
    roles, linear = bare(found.method).card.roles, bare(found.method).linear
    reason = trust.secure_refusal(stage.method, linear, roles, asked.range is not None)
    _refuse(spec, stage, "secure_aggregation", reason)
    if stage.codec:
        _refuse(
            spec, stage, "codec", "codecs make each answer smaller in a way of its own, and masked ones must add up"
        )
    if len(spec.devices) < 2 or stage.cohort == 1:
        _refuse(spec, stage, "secure_aggregation", "a sum of one hides nothing: two devices at least")
    _plain(spec, stage, "secure_aggregation", "a round's masks are made for those who are asked in it")
    private = found.budget is not None and found.budget.where == "distributed"

    def wrap(inner: Method) -> Method:
        return SecAgg(
            inner=inner,
            threshold=asked.threshold,
            bits=asked.bits,
            range=asked.range or 1.0,
            neighbours=asked.neighbours,
            largest=float(1 << max(0, largest - 1).bit_length()),
            noise=found.budget.release.noise if private and found.budget else 0.0,
            clip=found.budget.clip if private and found.budget else 1.0,
            system=stage.privacy is not None and stage.privacy.randomness == "system",
        )

    return _around(found, wrap)


def _robust(spec: FederationSpec, stage: StageSpec, asked: AggregateSpec, found: Trusted) -> Trusted:
    reason = trust.robust_refusal(stage.method, found.method.linear, found.method.card.roles)
    _refuse(spec, stage, "aggregate", reason)
    if asked.rule == "fltrust" and not spec.data.public:
        _refuse(spec, stage, "aggregate.rule", "fltrust needs rows that the server trusts: data: {public: 100}")
    if asked.rule in ("krum", "multikrum"):
        count = min(stage.cohort or len(spec.devices), len(spec.devices))
        hostile = int(asked.attackers * count)
        if count < 2 * hostile + 3:
            reason = (
                f"{asked.rule} needs {2 * hostile + 3} answers against {hostile} hostile ones, and {count} are asked"
            )
            _refuse(spec, stage, "aggregate", reason)

    def wrap(inner: Method) -> Method:
        rule = cast(Any, asked.rule)
        return Robust(inner=inner, rule=rule, attackers=asked.attackers, keep=asked.keep, clip=asked.clip)

    return _around(found, wrap)
