"""Costs that were traced before, and costs traced ahead in several processes."""

from __future__ import annotations

import inspect
import json
import os
import signal
import struct
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from functools import cache
from hashlib import sha256
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import torch

from fedge.codecs.make import describe as described
from fedge.core.cost import Cost
from fedge.core.method import Method
from fedge.methods.make import describe
from fedge.plan.scratch import LIMIT
from fedge.plan.trace import Setting, Tracer, but_steps
from fedge.spec.cache import cache_folder, store

#: How a queued group of variants is told to a process, and how a process tells which variant it begins with.
_GROUP, _BEGUN = struct.Struct("<I"), struct.Struct("<II")
#: Groups that a process should have at least: setting a method up takes about as long as tracing one of its variants.
_LEAST = 2


@dataclass(frozen=True)
class Wanted:
    """A stage's variants; ``progress`` is told the name of each whose trace begins."""

    method: Method
    variants: Sequence[Method]
    names: Sequence[str]
    setting: Setting
    progress: Callable[[str], None]


def cached(tracer: Tracer, variant: Method, begins: Callable[[], None] = lambda: None) -> Cost:
    """``trace``, remembered by model, method, shapes, versions and source; ``begins`` is called before a trace."""
    path = _place(tracer.method, variant, tracer.setting)
    try:
        return Cost(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        pass
    begins()
    cost = tracer.trace(variant)
    store(path, json.dumps(asdict(cost)))
    return cost


def trace_ahead(wanted: Sequence[Wanted], processes: int) -> None:
    """Have the costs that the cache lacks traced by up to so many processes, which leave them in the cache.

    Says nothing of what can't be traced: whoever asks for that cost traces it again, and is told.
    """
    groups = [(at, group) for at, stage in enumerate(wanted) for group in _missing(stage)]
    count = min(processes, len(groups) // _LEAST)
    if count < 2 or not _writable():
        return
    queues = [_queue(range(len(groups) * n // count, len(groups) * (n + 1) // count)) for n in range(count)]
    hearing, telling = os.pipe()
    children: list[int] = []
    try:
        for n in range(count):
            child = os.fork()
            if child == 0:
                os.close(hearing)
                _trace_some(wanted, groups, queues[n:] + queues[:n], telling)
            children.append(child)
        os.close(telling)
        telling = -1
        while told := os.read(hearing, _BEGUN.size):
            at, place = _BEGUN.unpack(told)
            wanted[at].progress(wanted[at].names[place])
    finally:
        for child in children:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGTERM)
            os.waitpid(child, 0)
        for pipe in (*queues, hearing, telling):
            with suppress(OSError):
                os.close(pipe)


def _queue(places: Iterable[int]) -> int:
    """A pipe from which several processes can take numbers, each of which goes to one of them."""
    taking, filling = os.pipe()
    os.write(filling, b"".join(_GROUP.pack(place) for place in places))
    os.close(filling)
    return taking


def _trace_some(
    wanted: Sequence[Wanted], groups: Sequence[tuple[int, list[int]]], queues: Sequence[int], telling: int
) -> None:
    """A child's part: its own queue of groups first, neighbours of which share what is set up, then what others have
    left of theirs. Ends when nothing is left or nobody hears of it; never returns.
    """
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # through the frames that end a real run's own process
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        torch.set_num_threads(1)
        tracers: dict[int, Tracer] = {}
        for queue in queues:
            while told := os.read(queue, _GROUP.size):
                at, places = groups[_GROUP.unpack(told)[0]]
                stage = wanted[at]
                tracer = tracers.setdefault(at, Tracer(stage.method, stage.setting))
                for place in places:
                    signal.alarm(2 * LIMIT)
                    os.write(telling, _BEGUN.pack(at, place))
                    with suppress(Exception):
                        cached(tracer, stage.variants[place])
    finally:
        os._exit(0)


def _missing(stage: Wanted) -> list[list[int]]:
    """The places of variants whose costs aren't in the cache; together those that one trace tells."""
    groups: dict[str, list[int]] = {}
    for place, variant in enumerate(stage.variants):
        if not _place(stage.method, variant, stage.setting).exists():
            groups.setdefault(but_steps(variant), []).append(place)
    return list(groups.values())


def _writable() -> bool:
    folder = cache_folder() / "costs"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


def _place(method: Method, variant: Method, setting: Setting) -> Path:
    return cache_folder() / "costs" / f"{_fingerprint(method, variant, setting)}.json"


#: What a cost depends on besides the method's own file and the codecs'.
_SOURCES = tuple(
    f"fedge.{name}"
    for name in (
        *("core.cost", "core.fit", "core.personal", "core.task", "meter.work", "codecs.chain", "codecs.codec"),
        *("models.accumulator", "models.adapter", "models.anatomy", "models.around", "models.exits", "models.extras"),
        *("models.halved", "models.lora", "models.mask", "models.names", "models.narrow", "models.projected"),
        *("models.prompt", "models.rewriter", "models.variant"),
        *("plan.encoding", "plan.fake", "plan.rehearsal", "plan.shapes", "plan.trace"),
    )
)


def _fingerprint(method: Method, variant: Method, setting: Setting) -> str:
    held = (method, variant, *held_by(method), *held_by(variant))
    own = {cls.__module__ for m in held for cls in type(m).__mro__ if issubclass(cls, Method)}
    own |= {type(codec).__module__ for codec in setting.chain.codecs}
    about = {
        "versions": [_version(name) for name in ("torch", "transformers", "peft")],
        "sources": [_source(name) for name in (*sorted(own), *_SOURCES)],
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


#: Both stay as they are while a process lives, and are asked for every variant.
_version = cache(version)


@cache
def _source(module: str) -> str:
    return sha256(inspect.getsource(import_module(module)).encode()).hexdigest()


def held_by(method: Method) -> list[Method]:
    """The methods that a method holds, and those that they hold."""
    values = [getattr(method, f.name) for f in fields(method)]
    flat = [item for value in values for item in (value if isinstance(value, tuple) else (value,))]
    held = [item for item in flat if isinstance(item, Method)]
    return [*held, *(deeper for item in held for deeper in held_by(item))]
