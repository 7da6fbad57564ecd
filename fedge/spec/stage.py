"""Stages: what a federation trains, customizes and deploys, with a method's own fields checked by the catalogue."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import model_validator

from fedge import units
from fedge.errors import nearest
from fedge.spec.catalogue import Catalogue, MethodInfo
from fedge.spec.codec import read_codecs, write_codecs
from fedge.spec.source import Source, describe
from fedge.spec.trust import AggregateSpec, PrivacySpec, SecureSpec, check_trust
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
    read,
    unknown_key,
    whole,
)
from fedge.spec.words import guess

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
    return known_keys(StageKeys)


def reserved_keys() -> set[str]:
    """What no method may call a field of its own."""
    return set(stage_keys())


def read_stages(given: object, source: Source, catalogue: Catalogue) -> tuple[StageSpec, ...]:
    """The stages of a file; mistakes go to ``source.problems``."""
    if given is None:
        source.report("stages", "this key is needed", hint="a list of train, customize and deploy steps")
        return ()
    if not isinstance(given, list):
        tight = isinstance(given, Mapping) and any(name.startswith("-") for name in given)
        hint = "a space is missing after the '-'" if tight else "each stage begins with '- ', such as `- train: {…}`"
        source.report("stages", f"expected a list, got {describe(given)}", hint=hint)
        return ()
    if not given:
        source.report("stages", "no stages", hint="give at least one of train, customize, deploy")
    found = []
    for index, item in enumerate(given):
        stage = _read_stage(item, index, source, catalogue)
        if stage is not None:
            found.append(stage)
    _check_order(found, len(given), source, catalogue)
    return tuple(found)


def _read_stage(item: object, index: int, source: Source, catalogue: Catalogue) -> StageSpec | None:
    at = f"stages.{index}"
    if not isinstance(item, Mapping) or len(item) != 1:
        _report_shape(item, at, source)
        return None
    word, body = next(iter(item.items()))
    if word not in STAGES:
        hint = guess(word, STAGES).hint or f"known: {', '.join(STAGES)}"
        source.report(f"{at}.{word}", "unknown stage", hint=hint)
        return None
    if body is not None and not isinstance(body, Mapping):
        method = body if isinstance(body, str) and re.fullmatch(r"[\w.:-]+", body) else "…"
        hint = f"{word}: {{method: {method}}}"
        if isinstance(body, list):
            hint = "leave out the '- ' before the stage's keys"
        source.report(at, f"expected a mapping, got {describe(body)}", hint=hint)
        return None
    return _Reader(word, index, at, source, catalogue).read(dict(body or {}))


#: What a method may leave (``card.final``) for a further stage to build on.
CARRIES_ON = frozenset({"plain", "extended"})


def exits_last(word: str) -> tuple[str, str]:
    """What to say of a method whose model has exits in a stage that isn't the last: the message, and a hint."""
    message = f"'{word}' leaves a model with exits, on which no further stage can build"
    return message, "make it the last stage"


def _check_order(stages: Sequence[StageSpec], count: int, source: Source, catalogue: Catalogue) -> None:
    for stage in stages:
        finals = {info.final for name, _ in stage.methods() if (info := catalogue.find(name)) is not None}
        if stage.index < count - 1 and finals - {*CARRIES_ON, None}:
            message, hint = exits_last(stage.method)
            source.report(f"stages.{stage.index}.method", message, hint=hint)


def _report_shape(item: object, at: str, source: Source) -> None:
    stages = [word for word in item if word in STAGES] if isinstance(item, Mapping) else []
    if not isinstance(item, Mapping) or not item:
        hint = f"one of {', '.join(STAGES)}, and its keys indented below it"
        source.report(at, f"expected one stage, got {describe(item)}", hint=hint)
    elif len(stages) == 1 and item[stages[0]] is None:
        rest = ", ".join(word for word in item if word != stages[0])
        source.report(at, f"the stage's keys stand beside '{stages[0]}', not below it", hint=f"indent {rest} further")
    elif stages:
        got = ", ".join(item)
        source.report(at, f"expected one stage, got the keys {got}", hint="a '- ' for each stage")
    else:
        hint = f"one of {', '.join(STAGES)} first, such as `- train: {{{next(iter(item))}: …}}`"
        source.report(at, f"expected one stage, got the keys {', '.join(item)}", hint=hint)


class _Reader:
    """One stage's body, read in the order: keys, method, candidates, options."""

    def __init__(self, stage: str, index: int, at: str, source: Source, catalogue: Catalogue):
        self.stage, self.index, self.at, self.source, self.catalogue = stage, index, at, source, catalogue

    def read(self, body: dict[str, Any]) -> StageSpec | None:
        before = len(self.source.problems)
        own = stage_keys()
        rest = {name: value for name, value in body.items() if name not in own}
        if isinstance(body.get("method"), list):
            self.source.told.add(f"{self.at}.method")
            hint = "to let each device pick: {method: auto, candidates: [lora, head]}"
            self.source.problems.append(self.source.problem(f"{self.at}.method", "expected one method", hint=hint))
        for name, value in rest.items():
            if (meant := guess(name, own, value).key) is not None and meant not in body:
                self.source.told.add(f"{self.at}.{meant}")
        keys = read(StageKeys, {name: value for name, value in body.items() if name in own}, self.at, self.source)
        method = keys.method if keys else body.get("method")
        if not isinstance(method, str):
            if len(self.source.problems) == before:  # what is missing may be here under a wrong name
                for name, value in rest.items():
                    unknown_key(f"{self.at}.{name}", value, list(own), self.source)
            return None
        if method == "auto":
            return self._auto(keys, body.get("candidates"), rest, before)
        if body.get("candidates") is not None:
            self.source.report(
                f"{self.at}.candidates", f"only `method: auto` picks among candidates, here it is {method}"
            )
        name, info = self._method(method, f"{self.at}.method")
        options = self._options(info, rest, self.at, name)
        if keys is None or len(self.source.problems) > before:
            return None
        return self._stage(keys, name, (), {**(info.defaults() if info else {}), **options})

    def _auto(self, keys: StageKeys | None, given: Any, rest: Options, before: int) -> StageSpec | None:
        at = f"{self.at}.candidates"
        if not isinstance(given, list) or not given:
            got = "no list of candidates" if given is None else f"{describe(given)}" if given else "an empty list"
            hint = "candidates: [lora, head]"
            self.source.report(
                at if given is not None else self.at, f"`method: auto` needs candidates, got {got}", hint=hint
            )
            return None
        offers: list[tuple[str, MethodInfo | None, Options]] = []
        known = True
        for place, item in enumerate(given):
            offer = self._candidate(item, f"{at}.{place}")
            known = known and offer is not None
            if offer is not None:
                offers.append(offer)
        shared: Options = {}
        for name, value in rest.items():
            takers = [info for _, info, _ in offers if info is not None and name in info.fields]
            free = any(info is None for _, info, _ in offers)
            if takers:
                shared |= self._options(takers[0], {name: value}, self.at, takers[0].key)
            elif free:
                shared[name] = value
            elif known:
                fields = {field for _, info, _ in offers if info for field in info.fields}
                self._unknown(name, value, fields, self.at, "no candidate has such a field")
        names = [name for name, _, _ in offers]
        for name in dict.fromkeys(names):
            if names.count(name) > 1:
                self.source.report(at, f"'{name}' is offered twice")
        if keys is None or len(self.source.problems) > before:
            return None
        candidates = tuple(
            (
                name,
                {**info.defaults(), **{k: v for k, v in shared.items() if k in info.fields}, **options}
                if info
                else {**shared, **options},
            )
            for name, info, options in offers
        )
        return self._stage(keys, "auto", candidates, shared)

    def _candidate(self, item: object, at: str) -> tuple[str, MethodInfo | None, Options] | None:
        options: Any = {}
        if isinstance(item, Mapping) and len(item) == 1:
            item, options = next(iter(item.items()))
            at = f"{at}.{item}"
            if options is not None and not isinstance(options, Mapping):
                self.source.report(at, f"expected the method's fields, got {describe(options)}")
                return None
        if not isinstance(item, str) or item == "auto":
            self.source.report(at, f"expected a method or {{method: {{field: value}}}}, got {describe(item)}")
            return None
        before = len(self.source.problems)
        name, info = self._method(item, at)
        if len(self.source.problems) > before:
            return None
        return name, info, self._options(info, dict(options or {}), at, name)

    def _method(self, word: str, at: str) -> tuple[str, MethodInfo | None]:
        if ":" in word:
            if not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", word):
                self.source.report(at, f"expected module:function, got '{word}'")
            return word, None
        info = self.catalogue.find(word)
        here = self.catalogue.built(self.stage)
        if info is None:
            every = [name for known in self.catalogue.methods for name in (known.key, *known.aliases)]
            mine = [name for known in here for name in (known.key, *known.aliases)]
            hint = nearest(word, mine) or nearest(word, every) or f"`fedge methods --stage {self.stage}` lists them"
            if call := re.fullmatch(r"([\w-]+)\((\w+)\s*=\s*(.+)\)", word):
                hint = f"fields stand in braces: {{{call[1]}: {{{call[2]}: {call[3]}}}}}"
            self.source.report(at, f"no method '{word}'", hint=hint)
            return word, None
        if info.refused is not None:
            self.source.report(at, f"'{word}' of the package {info.package} can't be used: {info.refused}")
        elif not info.built:
            near = f"the nearest one built is '{info.nearest}'" if info.nearest else None
            self.source.report(at, f"'{word}' ({info.name}) is known but not built", hint=near)
        elif self.stage not in info.stages:
            stages = " or ".join(info.stages)
            usable = ", ".join(known.key for known in here)
            self.source.report(
                at,
                f"'{word}' is a method for {stages}, not for {self.stage}",
                hint=f"here: {usable}" if usable else None,
            )
        return info.key, info

    def _options(self, info: MethodInfo | None, given: Options, at: str, method: str) -> Options:
        if info is None or not info.built:
            return {name: _frozen(value) for name, value in given.items()}
        options = {}
        for name, value in given.items():
            option = info.fields.get(name)
            if option is None:
                self._unknown(name, value, set(info.fields), at, f"{method} has no such field")
                continue
            try:
                options[name] = option.read(value)
            except ValueError as error:
                self.source.report(f"{at}.{name}", str(error), hint=option.doc or None)
        for name, option in info.fields.items():
            if option.required and name not in given:
                self.source.report(at, f"{method} needs '{name}'", hint=option.doc or None)
        return options

    def _unknown(self, name: str, value: object, fields: set[str], at: str, why: str) -> None:
        words = sorted(fields) if at != self.at else [*stage_keys(), *sorted(fields)]
        hint = guess(name, words, value).hint or (f"its fields: {', '.join(sorted(fields))}" if fields else None)
        self.source.report(f"{at}.{name}", f"unknown key; {why}", hint=hint)

    def _stage(
        self, keys: StageKeys, method: str, candidates: tuple[tuple[str, Options], ...], options: Options
    ) -> StageSpec | None:
        export = keys.export
        if self.stage == "deploy":
            export = export or ExportSpec()
        elif export is not None:
            self.source.report(f"{self.at}.export", f"only deploy exports, this is {self.stage}")
            return None
        before = len(self.source.problems)
        codec = read_codecs(keys.codec, f"{self.at}.codec", self.source, self.catalogue)
        offered = [name for name, _ in candidates] or [method]
        infos = [(name, self.catalogue.find(name)) for name in offered]
        check_trust(keys, infos, keys.codec, self.at, self.source)
        if len(self.source.problems) > before:
            return None
        return StageSpec(
            stage=self.stage,
            index=self.index,
            method=method,
            candidates=candidates,
            prefer=keys.prefer,
            learned=keys.learned,
            pick=keys.pick,
            rounds=keys.rounds,
            cohort=keys.cohort,
            sampling=keys.sampling,
            over=keys.over,
            late=keys.late,
            quorum=keys.quorum,
            deadline=keys.deadline,
            server=keys.server,
            codec=codec,
            privacy=keys.privacy,
            secure_aggregation=keys.secure_aggregation,
            aggregate=keys.aggregate,
            export=export,
            options=options,
        )


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value


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
