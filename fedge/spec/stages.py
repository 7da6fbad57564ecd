"""The stages of a file, read and checked: what each step is called, its method, its candidates, their fields."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from fedge.errors import nearest
from fedge.spec.catalogue import Catalogue, MethodInfo
from fedge.spec.codec import read_codecs
from fedge.spec.source import Source, describe
from fedge.spec.stage import STAGES, ExportSpec, Options, StageKeys, StageSpec, stage_keys
from fedge.spec.trust import check_trust
from fedge.spec.values import read, unknown_key
from fedge.spec.words import guess


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
