"""A stage's method out of the federation's file, and the menu of its variants with their traced costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

from fedge.core.cost import KINDS, Cost
from fedge.core.method import Method
from fedge.data.columns import GENERATIVE
from fedge.errors import ConfigError, FedgeError, MissingError
from fedge.methods.combine.mixed import Mixed, clash
from fedge.methods.combine.shell import bare
from fedge.methods.make import make
from fedge.methods.tuning import Tuning, scaled
from fedge.models.share import share
from fedge.plan.choose import Offer, quality
from fedge.plan.costs import cached
from fedge.plan.trace import Setting, Tracer
from fedge.spec.federation import FederationSpec
from fedge.spec.stage import StageSpec


@dataclass(frozen=True)
class Menu:
    """What a stage offers: the method, its variants, and beside each what it costs."""

    method: Method
    variants: tuple[Method, ...]
    offers: tuple[Offer, ...]


def method_of(spec: FederationSpec, stage: StageSpec, task: str) -> tuple[Method, list[tuple[str, Method, Method]]]:
    """The stage's method, and its variants as (key, as it was written, variant), richest first within a key.

    Raises ConfigError, with the place in the file, for methods that don't do the task and for candidates that can't
    share a round.
    """
    written = [(key, _made(spec, stage, number, key, options)) for number, (key, options) in enumerate(stage.methods())]
    for number, (key, method) in enumerate(written):
        if (found := _out_of_place(method, task)) is not None:
            option, message, hint = found
            place = _place(spec, stage, number, option)
            raise ConfigError(spec.problem(place, f"{option}: {message}", hint=f"leave it out{hint}"))
        if task not in method.card.tasks:
            others, tasks = ", ".join(method.card.alternatives), ", ".join(method.card.tasks)
            hint = f"what can: {others}" if others else f"it does {tasks}"
            place = _place(spec, stage, number, None)
            raise ConfigError(spec.problem(place, f"'{key}' can't do {task}", hint=hint))
    if stage.method != "auto":
        key, method = written[0]
        return method, [(key, method, variant) for variant in scaled(method.variants())]
    if (clashing := clash([method for _, method in written])) is not None:
        key, why = written[clashing[0]][0], clashing[1]
        message = f"'{key}' can't share a round with others: {why}"
        place = _place(spec, stage, clashing[0], None)
        raise ConfigError(spec.problem(place, message, hint=f"give it a stage of its own: method: {key}"))
    mixed = Mixed(members=tuple(method for _, method in written if isinstance(method, Tuning)))
    keys = [key for (key, _), member in zip(written, mixed.members, strict=True) for _ in scaled(member.variants())]
    first = [member for member in mixed.members for _ in scaled(member.variants())]
    return mixed, list(zip(keys, first, mixed.variants(), strict=True))


def _out_of_place(method: Method, task: str) -> tuple[str, str, str] | None:
    """An option that says nothing about this task, why, and what could be asked for beside leaving it out."""
    inner = method.working(0)
    if not isinstance(inner, Tuning):
        return None
    if task == "image-classification" and (inner.scale_length or inner.length < 1):
        option = "scale_length" if inner.scale_length else "length"
        return option, "images have no length to cut", "; depth, rows at once and steps work on images too"
    if task in GENERATIVE and inner.calibrate > 0:
        return "calibrate", "what is learnt here are tokens, and calibrated logits are for classes of rows", ""
    return None


def _made(spec: FederationSpec, stage: StageSpec, number: int, key: str, options: dict[str, Any]) -> Method:
    """One of the stage's methods; what is wrong with it is placed at the key to blame."""
    try:
        return make(key, options)
    except ConfigError as error:
        place = _place(spec, stage, number, _to_blame(key, options))
        raise ConfigError([spec.problem(place, problem.message) for problem in error.problems]) from error


def _place(spec: FederationSpec, stage: StageSpec, number: int, option: str | None) -> str:
    """The key that holds an option of one of the stage's methods: its own, or the stage's; None: that names it."""
    at = f"stages.{stage.index}"
    offer = f"{at}.candidates.{number}"
    if option is None:
        return offer if stage.candidates else f"{at}.method"
    own = [path for path in spec.source.places if path.startswith(f"{offer}.") and path.endswith(f".{option}")]
    return own[0] if own else f"{at}.{option}"


def _to_blame(key: str, options: dict[str, Any]) -> str | None:
    """The first option without which the method can be made; None where more than one is wrong."""
    for name in options:
        with suppress(ConfigError):
            make(key, {other: value for other, value in options.items() if other != name})
            return name
    return None


def menu_of(
    method: Method,
    variants: Sequence[tuple[str, Method, Method]],
    setting: Setting,
    progress: Callable[[str], None] = lambda text: None,
) -> Menu:
    """Trace every variant; costs that were traced before are taken from the cache.

    Variants that this model can't have (less depth, where its blocks are not known) are left out. Raises MissingError
    when that is all of them.
    """
    offers: list[Offer] = []
    kept: list[Method] = []
    refused: MissingError | None = None
    tracer = Tracer(method, setting)
    for index, (key, written, variant) in enumerate(variants):
        try:
            cost = cached(tracer, variant, partial(progress, tracing(variants, index)))
        except MissingError as error:
            refused = error
            continue
        inner = bare(variant)
        if isinstance(inner, Mixed) and inner.member is not None:
            inner = inner.member
        offer = Offer(len(offers), key, _changed(inner, written), cost)
        if _is_scaled(variant) and any(spared(other, offer) for other in offers):
            continue
        offers.append(offer)
        kept.append(variant)
    if refused is not None and not offers:
        key, written, _ = variants[0]
        message = f"'{key}' can't do with this model: {refused.message}"
        others = [other for other in written.card.alternatives if _builds(other, setting)]
        hint = f"what can: {', '.join(others)}" if others else refused.hint
        raise MissingError(message, hint=hint) from refused
    return Menu(method, tuple(kept), tuple(offers))


def tracing(variants: Sequence[tuple[str, Method, Method]], place: int) -> str:
    """What to say while a variant is being traced."""
    return f"tracing {variants[place][0]} ({place + 1} of {len(variants)})"


def _is_scaled(variant: Method) -> bool:
    """Whether a variant is one of those that a method's ``scale_`` fields add to its own."""
    inner = variant.working(0)
    return isinstance(inner, Tuning) and (inner.scale_length or inner.scale_steps or inner.scale_base)


def spared(better: Offer, offer: Offer) -> bool:
    """Whether no device would take ``offer`` beside one that is preferred and costs no more of anything."""

    def costs(cost: Cost) -> tuple[float, ...]:
        slow = tuple(cost.flops * cost.kinds.get(kind, 0.0) for kind in KINDS)
        once = (cost.once_flops, cost.once_traffic)
        sizes = (cost.peak_memory, cost.bytes_down, cost.bytes_up, cost.turns)
        return (*sizes, cost.flops, cost.traffic, cost.ops, *slow, *once)

    cheaper = all(a <= b for a, b in zip(costs(better.cost), costs(offer.cost), strict=True))
    return cheaper and better.method == offer.method and quality(better) < quality(offer)


def _builds(key: str, setting: Setting) -> bool:
    """Whether a method can make a model out of the stage's base."""
    try:
        method = make(key)
        method.build(share(setting.base))
    except FedgeError:
        return False
    return setting.task.kind in method.card.tasks


def _changed(variant: Method, written: Method) -> dict[str, Any]:
    """The fields in which a variant differs from the method as it was written; of nested methods, theirs."""
    changed: dict[str, Any] = {}
    for f in fields(variant):
        new, old = getattr(variant, f.name), getattr(written, f.name)
        if new == old:
            continue
        if isinstance(new, Method):
            changed.update(_changed(new, old))
        elif isinstance(new, tuple) and new and isinstance(new[0], Method):
            for a, b in zip(new, old, strict=True):
                changed.update(_changed(a, b))
        else:
            changed[f.name] = list(new) if isinstance(new, tuple) else new
    return changed
