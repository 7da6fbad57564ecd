"""A stage's method out of the federation's file, and the menu of its variants with their traced costs."""

from __future__ import annotations

import inspect
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from hashlib import sha256
from importlib.metadata import version
from typing import Any

from fedge.codecs.make import describe as described
from fedge.core.cost import Cost
from fedge.core.method import Method
from fedge.errors import ConfigError, MissingError
from fedge.methods.combine.mixed import Mixed
from fedge.methods.make import describe, make
from fedge.methods.tuning import Tuning
from fedge.plan.choose import Offer
from fedge.plan.trace import Setting, trace
from fedge.spec.cache import cache_folder
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
    at = f"stages.{stage.index}"
    written = [(key, _made(spec, at, key, options)) for key, options in stage.methods()]
    for key, method in written:
        if task not in method.card.tasks:
            others = ", ".join(method.card.alternatives) or ", ".join(method.card.tasks)
            raise ConfigError(spec.problem(f"{at}.method", f"'{key}' can't do {task}", hint=f"what can: {others}"))
    if stage.method != "auto":
        key, method = written[0]
        return method, [(key, method, variant) for variant in method.variants()]
    members: list[Tuning] = []
    for key, method in written:
        if not isinstance(method, Tuning) or method.card.family != "tensors":
            raise ConfigError(
                spec.problem(
                    f"{at}.candidates",
                    f"'{key}' can't share a round with others: it does not train tensors of one model",
                    hint="give it a stage of its own: method: " + key,
                )
            )
        members.append(method)
    mixed = Mixed(members=tuple(members))
    keys = [key for (key, _), member in zip(written, members, strict=True) for _ in member.variants()]
    first = [member for member in mixed.members for _ in member.variants()]
    return mixed, list(zip(keys, first, mixed.variants(), strict=True))


def _made(spec: FederationSpec, at: str, key: str, options: dict[str, Any]) -> Method:
    try:
        return make(key, dict(options))
    except ConfigError as error:
        raise ConfigError([spec.problem(f"{at}.method", problem.message) for problem in error.problems]) from error


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
    for index, (key, written, variant) in enumerate(variants):
        progress(f"tracing {key} ({index + 1} of {len(variants)})")
        try:
            cost = cached(method, variant, setting)
        except MissingError as error:
            refused = error
            continue
        inner = variant.member if isinstance(variant, Mixed) and variant.member is not None else variant
        offers.append(Offer(len(offers), key, _changed(inner, written), cost))
        kept.append(variant)
    if refused is not None and not offers:
        raise refused
    return Menu(method, tuple(kept), tuple(offers))


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


def cached(method: Method, variant: Method, setting: Setting) -> Cost:
    """``trace``, remembered by model, method, shapes, versions and source."""
    path = cache_folder() / "costs" / f"{_fingerprint(method, variant, setting)}.json"
    try:
        return Cost(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        pass
    cost = trace(method, variant, setting)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(f".{os.getpid()}")
        beside.write_text(json.dumps(asdict(cost)))
        beside.replace(path)
    except OSError:
        pass  # a cache that can't be written costs time and nothing else
    return cost


def _fingerprint(method: Method, variant: Method, setting: Setting) -> str:
    import fedge.codecs.chain
    import fedge.codecs.codec
    import fedge.core.cost
    import fedge.core.fit
    import fedge.meter.work
    import fedge.methods.tuning
    import fedge.models.exits
    import fedge.models.lora
    import fedge.models.names
    import fedge.models.variant
    import fedge.plan.encoding
    import fedge.plan.rehearsal
    import fedge.plan.trace

    modules = {type(m).__module__ for m in (method, variant, *_inner(method), *_inner(variant))}
    sources = [sys.modules[name] for name in sorted(modules)]
    sources += [fedge.core.cost, fedge.core.fit, fedge.meter.work, fedge.methods.tuning, fedge.plan.trace]
    sources += [sys.modules[type(codec).__module__] for codec in setting.chain.codecs]
    sources += [fedge.codecs.chain, fedge.codecs.codec, fedge.plan.encoding]
    sources += [fedge.models.lora, fedge.models.exits, fedge.models.names, fedge.models.variant, fedge.plan.rehearsal]
    about = {
        "versions": [version(name) for name in ("torch", "transformers", "peft")],
        "sources": [sha256(inspect.getsource(module).encode()).hexdigest() for module in sources],
        "model": [type(setting.base).__name__]
        + [[name, list(p.shape), str(p.dtype)] for name, p in setting.base.named_parameters()],
        "config": str(getattr(setting.base, "config", "")),
        "task": [setting.task.kind, setting.task.classes],
        "rows": [len(setting.rows), str(setting.rows.spec(len(setting.rows)))],
        "public": len(setting.public) if setting.public is not None else 0,
        "cohort": setting.cohort if method.gathers else 1,
        "method": describe(method),
        "variant": describe(variant),
        "chain": described(setting.chain),
    }
    return sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _inner(method: Method) -> list[Method]:
    values = [getattr(method, f.name) for f in fields(method)]
    flat = [item for value in values for item in (value if isinstance(value, tuple) else (value,))]
    return [item for item in flat if isinstance(item, Method)]
