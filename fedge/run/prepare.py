"""From a federation's file to what a run needs: data, model, each device's rows and budget, each stage's menu."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from torch import nn

from fedge.codecs.chain import Chain
from fedge.codecs.make import chain
from fedge.core.method import Rows
from fedge.core.server import ServerOptimizer
from fedge.data.encode import Data, encode, split_public
from fedge.data.partition import hold_out, label_mix, partition
from fedge.data.raw import Raw
from fedge.data.source import read
from fedge.emulation.process import cores
from fedge.errors import ConfigError, FedgeError, InfeasibleError, LimitError, Problem, nearest
from fedge.methods.make import difference, make
from fedge.methods.table import LAST_RESORTS
from fedge.models.load import Loaded, load
from fedge.models.nano import bert_tokenizer, gpt_tokenizer
from fedge.models.variant import assemble
from fedge.plan.choose import Offer
from fedge.plan.costs import Wanted, cached, trace_ahead
from fedge.plan.menu import Menu, menu_of, method_of, tracing
from fedge.plan.trace import Setting, Tracer, inference
from fedge.run import together
from fedge.run.brief import Brief
from fedge.run.evaluate import share_of
from fedge.run.plans import menu_in
from fedge.run.trust import Trusted, trusted
from fedge.spec import catalogue as catalogues
from fedge.spec.federation import FederationSpec
from fedge.spec.stage import StageSpec
from fedge.spec.stages import CARRIES_ON, exits_last

Say = Callable[[str], None]


@dataclass
class Prepared:
    """A federation ready to run. ``rows[device]``: indices into ``data.train``; ``own_test``: rows held out of them.

    assumed: what a plan takes for granted, in words, where model or data are not all there.
    """

    spec: FederationSpec
    raw: Raw
    data: Data
    loaded: Loaded
    rows: dict[str, np.ndarray]
    own_test: dict[str, np.ndarray]
    mixes: dict[str, np.ndarray]
    assumed: tuple[str, ...] = ()

    @property
    def model_order(self) -> dict[str, Any]:
        """How another process loads the same model."""
        model = self.spec.model
        task = self.data.task
        return {
            "name": model.name,
            "task": task.kind,
            "classes": None if task.generative else task.classes,
            "labels": list(self.data.names) or None,
            "options": model.options,
            "seed": self.spec.seed,
            "revision": model.revision,
            "trust_remote_code": model.trust_remote_code,
            "folder": str(self.spec.folder),
        }

    def tests(self) -> dict[str, Rows]:
        """What each device tests a model of its own on: its own held-out rows, or as many of the test split as the
        file lets a test have."""
        everyones = share_of(self.data.test, self.spec.evaluate.rows, self.spec.seed)
        own = {name: self.data.train.take(held) for name, held in self.own_test.items()}
        return {name: own.get(name, everyones) for name in self.rows}

    def largest(self) -> Rows:
        """The rows of the device that has most: what costs are traced for."""
        return self.data.train.take(max(self.rows.values(), key=len))


def prepare(spec: FederationSpec, say: Say, *, weights: bool = True) -> Prepared:
    """Read and encode the data, load the model, divide the rows. Raises ConfigError with the place in the file.

    ``weights=False``: for a plan, which needs shapes alone. A model may be a configuration then, without weights and
    without a tokenizer; ``assumed`` says what stands in.
    """
    data_spec, model_spec = spec.data, spec.model
    say(f"data: reading {data_spec.dataset}")
    raw = _at(
        spec,
        "data.dataset",
        lambda: read(
            data_spec.dataset,
            folder=spec.folder,
            text=data_spec.text,
            label=data_spec.label,
            image=data_spec.image,
            client=data_spec.client or _column(spec),
            test=data_spec.test,
            task=model_spec.task,
            rows=data_spec.rows,
            seed=spec.seed,
        ),
    )
    task = model_spec.task or raw.kind
    say(f"model: loading {model_spec.name} for {task}")
    loaded = _at(
        spec,
        "model",
        lambda: load(
            model_spec.name,
            task,
            classes=len(raw.names) or None,
            labels=list(raw.names) or None,
            options=model_spec.options,
            seed=spec.seed,
            revision=model_spec.revision,
            trust_remote_code=model_spec.trust_remote_code,
            folder=spec.folder,
            weights=weights,
        ),
    )
    assumed: list[str] = []
    if not weights:
        assumed = _assume(loaded, raw)
        for line in assumed:
            say(f"plan: assumed: {line}")
    shape = loaded.preprocessor or _image_shape(loaded)
    _check_length(spec, raw, loaded)
    data = _at(spec, "data", lambda: encode(raw, shape, loaded.task, data_spec.length, loaded.input_names))
    data = _at(spec, "data.public", lambda: split_public(data, data_spec.public, spec.seed))
    return replace(_divided(spec, raw, data, loaded), assumed=tuple(assumed))


def _assume(loaded: Loaded, raw: Raw) -> list[str]:
    """Let fedge's own tokenizer stand in for one that isn't there; says in words what is taken for granted."""
    found = []
    if any(parameter.is_meta for parameter in loaded.model.parameters()):
        count = sum(parameter.numel() for parameter in loaded.model.parameters())
        found.append(f"{count / 1e9:.3g} billion weights of 4 bytes, by the configuration alone")
    if found and raw.train.text is not None and loaded.preprocessor is None:
        loaded.preprocessor = bert_tokenizer() if loaded.task.kind != "causal-lm" else gpt_tokenizer()
        loaded.input_names = loaded.input_names or ("input_ids", "attention_mask")
        found.append("one token a byte, since the model has no tokenizer beside it")
    return found


def _check_length(spec: FederationSpec, raw: Raw, loaded: Loaded) -> None:
    """Refuse texts longer than the model has places for."""
    if raw.train.text is None:
        return
    places = [loaded.config.get(name) for name in ("max_position_embeddings", "n_positions")]
    most = min((count for count in places if isinstance(count, int) and count > 0), default=None)
    if most is not None and spec.data.length > most:
        message = f"texts are cut to {spec.data.length} tokens, and the model takes {most}"
        raise ConfigError(spec.problem("data.length", message, hint=f"length: {most}"))


def _divided(spec: FederationSpec, raw: Raw, data: Data, loaded: Loaded) -> Prepared:
    names = sorted(device.name for device in spec.devices)
    how = spec.data.partition
    value = float(how.value) if isinstance(how.value, (int, float)) else None
    parts = _at(
        spec,
        "data.partition",
        lambda: partition(
            data.labels,
            data.keys,
            len(names),
            how.kind,
            value,
            spec.seed,
            len(data.train),
            homes=_homes(spec, data.names),
            at_home=how.at_home,
        ),
    )
    rows = dict(zip(names, parts, strict=True))
    own_test: dict[str, np.ndarray] = {}
    mixes: dict[str, np.ndarray] = {}
    for name in names:
        if isinstance(spec.data.local_test, float):
            rows[name], own_test[name] = hold_out(rows[name], data.labels, spec.data.local_test, spec.seed, name)
        elif data.labels is not None and not data.task.generative:
            mixes[name] = label_mix(data.labels[rows[name]], data.task.classes)
    return Prepared(spec, raw, data, loaded, rows, own_test, mixes)


def _homes(spec: FederationSpec, labels: Sequence[str]) -> dict[int, list[int]]:
    """The devices, by their place in the order of names, that hold each label that the file gives to groups."""
    order = sorted(spec.devices, key=lambda device: device.name)
    homes: dict[int, list[int]] = {}
    for group, held in spec.data.partition.groups:
        for label in held:
            if label not in labels:
                hint = nearest(label, labels) or f"there are {', '.join(labels)}"
                raise ConfigError(Problem(f"groups: {group}: the data has no label '{label}'", hint=hint))
            homes.setdefault(labels.index(label), []).extend(i for i, d in enumerate(order) if d.group == group)
    return homes


def briefs(prepared: Prepared, say: Say) -> list[Brief]:
    """Every stage's brief, its menu traced on the architecture that the stage before leaves."""
    spec = prepared.spec
    found = []
    offered = [(stage, _offered(prepared, stage)) for stage in spec.stages]
    base, ahead = prepared.loaded.model, None
    for at, (stage, around) in enumerate(offered):
        if base is not ahead:
            _trace_ahead(prepared, offered[at:], base, say)
            ahead = base
        setting = setting_of(prepared, stage, base)
        told = partial(_tell, say, stage.stage)
        menu = _at(
            spec, f"stages.{stage.index}.method", partial(menu_of, around.method, around.variants, setting, told)
        )
        _check_busy(spec, stage, menu, setting.chain)
        together.check(spec, stage, menu)
        if menu.method.card.final == "extended":
            base = assemble(menu.method, base, "trace").model.requires_grad_(False).eval()
        found.append(
            Brief(
                seed=spec.seed,
                index=stage.index,
                stage=stage.stage,
                key=stage.method,
                method=menu.method,
                variants=menu.variants,
                menu=menu_in(spec, stage, menu.offers),
                rounds=stage.rounds,
                prefer=stage.prefer,
                freely=stage.pick == "auto",
                cohort=stage.cohort,
                over=stage.over,
                late=stage.late,
                quorum=stage.quorum,
                deadline=stage.deadline,
                optimizer=setting.optimizer,
                chain=setting.chain,
                sampling=around.sampling,
                trust=around.budget,
            )
        )
    return found


def _offered(prepared: Prepared, stage: StageSpec) -> Trusted:
    """A stage's method and its variants, with what its keys put around them."""
    spec = prepared.spec
    method, variants = method_of(spec, stage, prepared.data.task.kind)
    if method.card.final not in CARRIES_ON and stage.index != len(spec.stages) - 1:
        message, hint = exits_last(stage.method)
        raise ConfigError(spec.problem(f"stages.{stage.index}.method", message, hint=hint))
    return trusted(spec, stage, method, variants, len(prepared.largest()))


def _trace_ahead(prepared: Prepared, offered: Sequence[tuple[StageSpec, Trusted]], base: nn.Module, say: Say) -> None:
    """Trace ahead what stands on ``base``: the stages up to the first that leaves the model with new parts."""
    wanted = []
    for stage, around in offered:
        variants = [variant for _, _, variant in around.variants]
        names = [tracing(around.variants, place) for place in range(len(variants))]
        told = partial(_tell, say, stage.stage)
        wanted.append(Wanted(around.method, variants, names, setting_of(prepared, stage, base), told))
        if around.method.card.final == "extended":
            break
    trace_ahead(wanted, len(cores()))


def setting_of(prepared: Prepared, stage: StageSpec, base: nn.Module) -> Setting:
    """What a stage's costs are traced on."""
    spec, server = prepared.spec, stage.server
    codecs = _at(spec, f"stages.{stage.index}.codec", partial(chain, stage.codec))
    return Setting(
        base,
        prepared.data.task,
        prepared.largest(),
        prepared.data.public,
        ServerOptimizer(server.optimizer, server.lr, server.momentum, server.beta2, server.tau),
        chain=codecs,
        cohort=min(stage.cohort or len(spec.devices), len(spec.devices)),
    )


def rescues(prepared: Prepared, stage: StageSpec, say: Say) -> list[Offer]:
    """Offers beyond the menu for devices that afford nothing on it: a method's leanest variant, and inference alone."""
    setting, task = setting_of(prepared, stage, prepared.loaded.model), prepared.data.task
    offers: list[Offer] = []
    for key in LAST_RESORTS:
        method = make(key)
        if key in dict(stage.methods()) or stage.stage not in method.card.stages or task.kind not in method.card.tasks:
            continue
        with suppress(FedgeError):
            say(f"plan: {stage.stage}: what a device could do that affords nothing: {key}")
            variant = method.variants()[-1]
            changes = difference(variant, method)
            offers.append(Offer(len(offers), key, changes, cached(Tracer(method, setting), variant)))
    with suppress(FedgeError):
        offers.append(Offer(len(offers), "inference", {}, inference(setting)))
    return offers


def _check_busy(spec: FederationSpec, stage: StageSpec, menu: Menu, codecs: Chain) -> None:
    """Refuse a codec that would touch nothing of what any device sends."""
    sent = {role: size for offer in menu.offers for role, size in offer.cost.sent.items()}
    for codec in codecs.idle(sent):
        message = f"'{codec.key}' is for {', '.join(codec.touches)}, and '{stage.method}' sends {', '.join(sent)}"
        usable = [info.key for info in catalogues.load().codecs if set(info.roles) & set(sent)]
        hint = f"for that: {', '.join(usable)}" if usable else "leave it out"
        raise ConfigError(spec.problem(f"stages.{stage.index}.codec", message, hint=hint))


def _tell(say: Say, stage: str, text: str) -> None:
    say(f"plan: {stage}: {text}")


def _column(spec: FederationSpec) -> str | None:
    """The column by which the rows are divided, where the partition names one."""
    how = spec.data.partition
    return how.value if how.kind == "by" and isinstance(how.value, str) else None


def _image_shape(loaded: Loaded) -> Any:
    config = loaded.config
    if "image_size" in config and "num_channels" in config:
        return (int(config["num_channels"]), int(config["image_size"]))
    return None


def _at(spec: FederationSpec, key: str, action: Callable[[], Any]) -> Any:
    """Run ``action``; an error without a place of its own gets the key's."""
    try:
        return action()
    except ConfigError as error:
        raise ConfigError([_placed(spec, key, problem) for problem in error.problems]) from error
    except FedgeError as error:
        if isinstance(error, (InfeasibleError, LimitError)):
            raise
        raise ConfigError(spec.problem(key, error.message, hint=error.hint)) from error


def _placed(spec: FederationSpec, key: str, problem: Problem) -> Problem:
    """The problem with a place in the federation's file, where it has no line of its own.

    One about a column that the file names is placed at the key that names it.
    """
    if problem.line is not None:
        return problem
    message = f"{problem.file}: {problem.message}" if problem.file else problem.message
    if problem.key is not None:
        key = f"data.{problem.key}"
        if problem.key == "client" and spec.data.client is None:
            key = "data.partition.by"
    return spec.problem(key, message, hint=problem.hint)
