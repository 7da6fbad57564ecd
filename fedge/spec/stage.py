"""A stage: the keys that each one takes beside its method's own, and its value once read (``spec.stages`` reads it)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import model_validator

from fedge import units
from fedge.spec.codec import write_codecs
from fedge.spec.source import describe
from fedge.spec.trust import AggregateSpec, PrivacySpec, SecureSpec
from fedge.spec.values import (
    SHARE_SCHEMA,
    Check,
    Section,
    Text,
    Timeout,
    integer,
    key,
    known_keys,
    not_one_of,
    number,
    one_of,
    whole,
)

STAGES = ("train", "customize", "deploy")
PREFER = ("quality", "time", "bytes", "energy")
SAMPLING = ("uniform", "availability", "rows", "oort")
LATE = ("drop", "carry")
OPTIMIZERS = ("fedavg", "fedavgm", "nesterov", "fedadam", "fedyogi", "fedadagrad")
_ADAPTIVE = ("fedadam", "fedyogi", "fedadagrad")

Options = dict[str, Any]


class ServerSpec(Section):
    """How the server turns the devices' mean update into its next model."""

    optimizer: Annotated[str, one_of(*OPTIMIZERS)] = key("the server's optimizer", "fedavg")
    lr: Annotated[float, number(0, 1000, above=True)] = key("step size: 1.0, or 0.01 for the adaptive ones", 1.0)
    momentum: Annotated[float, number(0, 1)] = key("momentum, or beta1 of the adaptive ones", 0.9)
    beta2: Annotated[float, number(0, 1)] = key("decay of the second moment", 0.99)
    tau: Annotated[float, number(0, 1, above=True)] = key("adaptivity: added to the root of the second moment", 1e-3)

    @model_validator(mode="before")
    @classmethod
    def _own_lr(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and "lr" not in given and given.get("optimizer") in _ADAPTIVE:
            return {**given, "lr": 0.01}
        return given


#: What ``export.precision`` offers; ``fedge.export.precision`` makes them.
PRECISIONS = ("fp32", "fp16", "int8", "int4")


def _precision(given: object) -> tuple[str, ...]:
    if not isinstance(given, (list, tuple)) or not given:
        raise ValueError(f"expected a list of precisions, such as [fp32], got {describe(given)}")
    for item in given:
        if item not in PRECISIONS:
            raise ValueError(f"{item}: no such precision; there are {', '.join(PRECISIONS)}")
    return tuple(given)


class ExportSpec(Section):
    """What is written for the devices at the end."""

    precision: Annotated[
        tuple[str, ...],
        Check(_precision, {"type": "array", "items": {"enum": list(PRECISIONS)}, "minItems": 1}, list),
    ] = key("number formats of the exported models", ("fp32",))


def _prefer(given: object) -> Any:
    if not isinstance(given, Mapping):
        if isinstance(given, str) and given in PREFER:
            return given
        raise ValueError(
            not_one_of(given, PREFER) + ("" if isinstance(given, str) else "; or weights, {quality: 1, bytes: 0.5}")
        )
    if not given:
        raise ValueError("no weights; such as {quality: 1, bytes: 0.5}")
    for goal, weight in given.items():
        if goal not in PREFER:
            raise ValueError(f"no such goal: {not_one_of(goal, PREFER)}")
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight <= 1e6:
            raise ValueError(f"{goal}: a weight is a number from 0 on, got {describe(weight)}")
    if not any(given.values()):
        raise ValueError("all weights are zero")
    return {goal: float(weight) for goal, weight in given.items()}


_WEIGHTS = {name: {"type": "number", "minimum": 0} for name in PREFER}
_PREFER_SCHEMA = {
    "anyOf": [
        {"enum": list(PREFER)},
        {"type": "object", "properties": _WEIGHTS, "additionalProperties": False, "minProperties": 1},
    ]
}


def _quorum(given: object) -> int | float:
    if isinstance(given, int) and not isinstance(given, bool):
        return whole(given, least=0)
    return units.parse_share(given)


def _write_quorum(value: float) -> Any:
    return value if isinstance(value, int) else units.format_share(value)


class StageKeys(Section):
    """The keys that every stage takes beside its method's own."""

    method: Text = key("a method (see `fedge methods`), auto to let each device pick, or module:function")
    candidates: Annotated[Any, Check(lambda given: given, {"type": "array", "minItems": 1})] = key(
        "for auto: the methods on offer, plain or as {lora: {rank: 4}}", None
    )
    prefer: Annotated[Any, Check(_prefer, _PREFER_SCHEMA)] = key(
        "for auto: what a device looks for among those it affords: one, or weights as {quality: 1, bytes: 0.5}",
        "quality",
    )
    learned: Text | None = key(
        "for prefer: what methods were measured to be worth, a file that `fedge compare --learn` wrote", None
    )
    pick: Annotated[str, one_of("auto", "richest")] = key(
        "auto: a device takes the best variant that fits; richest: it takes the largest and the memory wall decides",
        "auto",
    )
    rounds: Annotated[int, integer(1, 1_000_000)] = key("rounds to run", 1)
    cohort: Annotated[int, integer(1, 100_000)] | None = key("devices asked each round; all by default", None)
    sampling: Annotated[str, one_of(*SAMPLING)] = key(
        "how the cohort is drawn: by chance; the rarely available likelier; by rows; oort: by loss, rows and speed",
        "uniform",
    )
    over: Annotated[float, number(1, 10)] = key(
        "over-selection: so many times the cohort is asked, and the first answers count, such as 1.3", 1.0
    )
    late: Annotated[str, one_of(*LATE)] = key(
        "what becomes of answers after the deadline, or beyond the cohort's: dropped, or used in a later round", "drop"
    )
    quorum: Annotated[
        float,
        Check(_quorum, {"anyOf": [{"type": "integer", "minimum": 0}, *SHARE_SCHEMA["anyOf"]]}, _write_quorum),
    ] = key("answers that a round needs: a share of those asked, or a number of devices; 0 means one device", 0)
    deadline: Timeout | None = key("time that a round waits for answers, such as 90s", None)
    server: ServerSpec = key("the server's optimizer", ServerSpec())
    codec: Annotated[Any, Check(lambda given: given, {"type": "array"})] = key(
        "how answers are made smaller, in order (see `fedge codecs`), such as [topk: 0.1, int8]", None
    )
    privacy: PrivacySpec | None = key("differential privacy, such as {epsilon: 8, delta: 1e-5, clip: 1.0}", None)
    secure_aggregation: SecureSpec | None = key(
        "sum the answers under masks, so that the server sees none of them, such as {threshold: 60%}", None
    )
    aggregate: AggregateSpec | None = key("what stands in for the mean where devices may be hostile", None)
    export: ExportSpec | None = key("for deploy: what to export", None)


@dataclass(frozen=True)
class StageSpec:
    """One stage. ``options`` are the method's fields, all of them, lists as tuples; for ``auto`` what the stage gives
    to every candidate that has the field, while ``candidates`` hold each one's full set. ``codec`` likewise holds each
    codec with all its fields."""

    stage: str
    index: int
    method: str
    candidates: tuple[tuple[str, Options], ...] = ()
    prefer: str | Mapping[str, float] = "quality"
    learned: str | None = None
    pick: str = "auto"
    rounds: int = 1
    cohort: int | None = None
    sampling: str = "uniform"
    over: float = 1.0
    late: str = "drop"
    quorum: float = 0
    deadline: float | None = None
    server: ServerSpec = field(default_factory=ServerSpec)
    codec: tuple[tuple[str, Options], ...] = ()
    privacy: PrivacySpec | None = None
    secure_aggregation: SecureSpec | None = None
    aggregate: AggregateSpec | None = None
    export: ExportSpec | None = None
    options: Options = field(default_factory=dict)

    def methods(self) -> tuple[tuple[str, Options], ...]:
        """Every method that a device may run here, with its options: the candidates, or the one method."""
        return self.candidates or ((self.method, self.options),)

    def most_asked(self, devices: int) -> int:
        """How many of so many devices a round asks at most."""
        return devices if self.cohort is None else min(devices, math.ceil(self.cohort * self.over - 1e-9))

    def needed(self, asked: int) -> int:
        """How many answers a round needs when ``asked`` devices were asked; at least one."""
        share = isinstance(self.quorum, float)
        # 80 % of 5 is 4, though 0.8 * 5 may come out a hair above
        return max(1, math.ceil(self.quorum * asked - 1e-9) if share else min(int(self.quorum), asked))


def stage_keys() -> list[str]:
    """The keys that every stage takes, which no method may call a field of its own."""
    return known_keys(StageKeys)


def write_stage(stage: StageSpec) -> dict[str, Any]:
    """The stage as a file would hold it, every default filled in."""
    body: dict[str, Any] = {"method": stage.method}
    if stage.candidates:
        body["candidates"] = [{name: _plain(options)} if options else name for name, options in stage.candidates]
    body |= {
        "prefer": _plain(stage.prefer),
        "learned": stage.learned,
        "pick": stage.pick,
        "rounds": stage.rounds,
        "cohort": stage.cohort,
    }
    body |= {"sampling": stage.sampling, "over": stage.over, "late": stage.late}
    body["quorum"] = _write_quorum(stage.quorum)
    body["deadline"] = None if stage.deadline is None else units.format_seconds(stage.deadline, exact=True)
    body["server"] = stage.server.model_dump()
    if stage.codec:
        body["codec"] = write_codecs(stage.codec)
    for name in ("privacy", "secure_aggregation", "aggregate"):
        if (section := getattr(stage, name)) is not None:
            body[name] = section.model_dump()
    if stage.export is not None:
        body["export"] = stage.export.model_dump()
    return {stage.stage: body | _plain(stage.options)}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
