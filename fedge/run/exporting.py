"""``fedge export`` over a finished run's folder, and ``fedge infer`` over what it wrote."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedge.data.rows import Rows
from fedge.emulation.roofline import Rates
from fedge.errors import ConfigError, InfeasibleError, MissingError, nearest
from fedge.export.budget import Budget
from fedge.models.exits import MultiExit
from fedge.models.load import Loaded, load
from fedge.run.folder import RunFolder
from fedge.run.prepare import Prepared, prepare
from fedge.spec import load_federation
from fedge.spec.device import find_profile, rates_with
from fedge.spec.federation import FederationSpec
from fedge.spec.rates import DEFAULT
from fedge.spec.shipped import TABLES

if TYPE_CHECKING:
    from fedge.export.exits import Judged
    from fedge.export.job import Exported
    from fedge.export.session import Query
    from fedge.export.ship import Buyer, Choice

Say = Callable[[str], None]
#: Queries with which an export's own table is made, and rows that are run.
_QUERIES, _ROWS = 100, 200


@dataclass(frozen=True)
class Wish:
    """What to export. devices: profiles, YAML files of profiles, or groups of the run's own federation; budget: what
    leaving early is tuned to on each of them; mobile: ORT's own format beside each graph."""

    precision: tuple[str, ...] = ("fp32",)
    exits: tuple[int, ...] | None = None
    devices: tuple[str, ...] = ()
    budget: Budget | None = None
    criterion: str = "max_prob"
    mobile: bool = False


@dataclass
class Outcome:
    """Rows of the table of files, and of that of devices; by precision what thresholds were chosen from; the test rows
    and what the model was loaded as."""

    test: tuple[Rows, Loaded]
    exports: list[dict[str, Any]] = field(default_factory=list)
    devices: list[dict[str, Any]] = field(default_factory=list)
    judged: dict[str, Judged] = field(default_factory=dict)


def export(run: Path, wish: Wish, say: Say) -> Outcome:
    """Export a finished run's model again, measure each file, and choose one for each device.

    ConfigError or MissingError for a run without a deploy stage, without a model, or with a model that has no exits,
    and for what the wish names wrongly; InfeasibleError when no device can be served.
    """
    from fedge.export.exits import export_exits
    from fedge.export.mobile import mobile

    folder = RunFolder.open(run)
    spec = load_federation(folder.file("resolved.yaml"))
    stage = spec.stages[-1]
    if stage.stage != "deploy":
        raise ConfigError(
            f"{run} has no deploy stage, so there are no exits to export; add one: "
            "deploy: {method: anytime, exits: [2, 4, 6]}"
        )
    buyers = [_buyer(word, spec) for word in _each(wish.devices)]
    prepared = prepare(spec, say)
    loaded = _model_of(folder, prepared)
    outcome = Outcome((prepared.data.test, loaded))
    assert isinstance(loaded.model, MultiExit)
    exported = export_exits(
        loaded.model,
        loaded,
        prepared.data.test,
        folder.file("export"),
        labels=list(prepared.data.names),
        about=about(folder.path.name, spec, _privacy(folder)),
        precision=wish.precision,
        exits=wish.exits,
        criterion=wish.criterion,
        progress=say,
        judged=outcome.judged.__setitem__,
    )
    columns = columns_of(prepared.data.test, loaded, _ROWS)
    needs: dict[tuple[str, str], int] = {}
    for one in exported:
        line = {**one.to_json(), **_measured(one, folder, columns, needs, say)}
        if wish.mobile and one.file.endswith(".onnx"):
            say(f"{one.target}, {one.precision}: in the format of a mobile build")
            line["ort_bytes"] = mobile(folder.file(one.file).parent, columns, one.precision)
        outcome.exports.append(line)
    _serve(buyers, exported, needs, wish, folder, outcome)
    if wish.mobile:
        for line in (line for line in outcome.devices if line["folder"]):
            mobile(folder.file(line["folder"]), columns, line["precision"])
    return outcome


def about(run: str, spec: FederationSpec, privacy: str | None) -> dict[str, Any]:
    """What a card says of how a run's model came to be: data, stages with rounds, devices with what they grant."""
    stages = [f"{stage.stage}: {stage.method}, {stage.rounds} rounds" for stage in spec.stages]
    said: dict[str, Any] = {
        "run": run,
        "federation": spec.name,
        "base model": _called(spec.model.name, spec),
        "data": _called(spec.data.dataset, spec),
        "stages": stages,
        "seed": spec.seed,
    }
    groups = {device.group: device for device in spec.devices}
    said["devices"] = [
        f"{sum(each.group == name for each in spec.devices)} × {Path(device.profile).stem} of "
        f"{device.memory / 2**20:.0f} MiB"
        for name, device in groups.items()
    ]
    if privacy is not None:
        said["privacy"] = privacy
    return said


def _privacy(folder: RunFolder) -> str | None:
    """What the run itself wrote of privacy into the first file that it exported."""
    from fedge.export.graph import manifest_of

    for path in sorted(folder.file("export").glob("*/model.onnx")):
        found: str | None = manifest_of(path).get("about", {}).get("privacy")
        return found
    return None


def _called(word: str, spec: FederationSpec) -> str:
    """A model or data set as it may be called on another machine: without the folders of this one."""
    return Path(word).name if Path(word).is_absolute() or (spec.folder / word).exists() else word


def _model_of(folder: RunFolder, prepared: Prepared) -> Loaded:
    """The model that the run left, with its preprocessor and the names of its inputs."""
    place = folder.file("model")
    if not place.is_dir():
        raise MissingError(
            f"{folder.path} holds no model: the run is not finished", hint=f"fedge up --resume {folder.path} goes on"
        )
    task = prepared.data.task
    loaded = load(str(place), task.kind, classes=None if task.generative else task.classes)
    if not isinstance(loaded.model, MultiExit):
        raise ConfigError(
            f"the model in {place} has no exits; they come from a deploy stage with a method that trains exits"
        )
    if loaded.preprocessor is None:
        loaded.preprocessor = prepared.loaded.preprocessor
    return loaded


def columns_of(rows: Rows, loaded: Loaded, most: int | None = None) -> dict[str, np.ndarray]:
    """The inputs of the first rows as arrays, for a process that has no PyTorch."""
    from fedge.export.verify import chunks

    picked = rows if most is None or len(rows) <= most else rows.take(range(most))
    names = [name for name in loaded.input_names if name in rows.columns or name == "attention_mask"]
    parts = list(chunks(picked, loaded.task, names, trim=False))
    return {name: np.concatenate([part[name].numpy() for part in parts]) for name in names}


def _measured(
    one: Exported, folder: RunFolder, columns: Mapping[str, np.ndarray], needs: dict[tuple[str, str], int], say: Say
) -> dict[str, Any]:
    """Processor time and memory of one file, in a process of its own on one thread; None for the chain."""
    from fedge.export.measure import Order, measure

    if not one.file.endswith(".onnx"):
        return {"cpu_ms": None, "memory": None}
    say(f"{one.target}, {one.precision}: {_QUERIES} queries in a process of its own")
    found = measure(Order(folder.path / one.file, queries=_QUERIES), columns)
    needs[one.target, one.precision] = found.memory
    return {"cpu_ms": found.percentiles(found.cpu_s)["p50"], "memory": found.memory}


def _each(words: Sequence[str]) -> list[str]:
    """The devices that are named, of a folder every profile in it. ConfigError for a folder without any."""
    found: list[str] = []
    for word in words:
        if not Path(word).is_dir():
            found.append(word)
            continue
        profiles = sorted(str(path) for path in Path(word).glob("*.yaml") if path.stem not in TABLES)
        if not profiles:
            raise ConfigError(f"--for {word}: the folder holds no device's .yaml")
        found += profiles
    return found


def _buyer(word: str, spec: FederationSpec) -> Buyer:
    """A group of the run's own federation, a bundled profile, or a profile's file."""
    from fedge.export.ship import Buyer

    for device in spec.devices:
        if device.group == word:
            return Buyer(
                word,
                device.memory,
                Rates(device.flops, device.memory_bandwidth, 0.0, device.slower),
                device.active_power,
            )
    try:
        name, profile = find_profile(word, Path())
    except ConfigError as error:
        groups = sorted({device.group for device in spec.devices})
        hint = nearest(word, groups) or f"a profile of `fedge devices`, a YAML file, or one of {', '.join(groups)}"
        raise ConfigError(f"there is no device '{word}'; {hint}") from error
    own = rates_with(profile, DEFAULT)
    rates = Rates(own.flops, own.memory_bandwidth, 0.0, own.slower)
    return Buyer(Path(name).stem, profile.memory, rates, profile.power.active)


def _serve(
    buyers: Sequence[Buyer],
    exported: Sequence[Exported],
    needs: Mapping[tuple[str, str], int],
    wish: Wish,
    folder: RunFolder,
    outcome: Outcome,
) -> None:
    from fedge.export.ship import best_for, write_choice

    for buyer in buyers:
        choice = best_for(buyer, exported, needs, outcome.judged, wish.criterion, wish.budget)
        place = write_choice(choice, folder.file("export"), outcome.test[1].preprocessor) if choice.target else None
        outcome.devices.append(_line(choice, buyer, str(place.relative_to(folder.path)) if place else None))
    if buyers and all(line["refused"] for line in outcome.devices):
        raise InfeasibleError("; ".join(str(line["refused"]) for line in outcome.devices))


def _line(choice: Choice, buyer: Buyer, place: str | None) -> dict[str, Any]:
    return {
        "device": choice.device,
        "target": choice.target,
        "precision": choice.precision,
        "thresholds": list(choice.policy.thresholds) if choice.policy else None,
        "accuracy": choice.accuracy,
        "virtual_s": choice.seconds,
        "energy_j": choice.joules,
        "memory": choice.memory,
        "budget_memory": buyer.memory,
        "folder": place,
        "refused": choice.refused,
    }


def infer(place: Path, query: Query, device: str | None, on: Path | None, say: Say) -> dict[str, Any]:
    """Run an exported folder on its run's test rows and say how fast, how well, and where rows left.

    device: whose memory and speed hold, as in ``Wish.devices``. on: a file of rows in place of the test rows, with the
    same columns. The errors are those of ``export.session.infer``, and MissingError for a folder that is no export.
    """
    from fedge.export.session import infer as run_export

    run = next((parent for parent in place.resolve().parents if (parent / "resolved.yaml").is_file()), None)
    if run is None:
        raise MissingError(
            f"{place} does not lie in a run's folder, where its test rows are told", hint="give RUN/export/TARGET"
        )
    if not (place / "model.onnx").is_file() and not (place / "exits.json").is_file():
        raise MissingError(f"{place} holds no exported model", hint=f"fedge export {run} writes them")
    spec = load_federation(run / "resolved.yaml")
    buyer = _buyer(device, spec) if device else None
    if on is not None:
        spec = replace(spec, data=spec.data.model_copy(update={"test": str(on.resolve())}))
    prepared = prepare(spec, say)
    columns = columns_of(prepared.data.test, prepared.loaded)
    labels = prepared.data.test.labels
    return run_export(place, columns, None if labels is None else labels.numpy(), query, buyer, say)
