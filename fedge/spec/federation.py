"""A federation file: from YAML with overrides to frozen values, every mistake reported at once with its place."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import model_validator

from fedge.errors import ConfigError, Problem, nearest
from fedge.spec import catalogue as catalogues
from fedge.spec.data import DataSpec
from fedge.spec.device import DeviceSpec, Group, check_names, expand
from fedge.spec.faults import FaultSpec, read_faults
from fedge.spec.overrides import override
from fedge.spec.paths import data_paths, model_paths
from fedge.spec.remote import RemoteSpec
from fedge.spec.source import Source, beside, describe, read_yaml
from fedge.spec.stage import STAGES, StageSpec
from fedge.spec.stages import read_stages
from fedge.spec.values import (
    Check,
    Flag,
    S,
    Section,
    Text,
    Timeout,
    integer,
    key,
    known_keys,
    one_of,
    read,
    real,
    unknown_key,
    whole,
)
from fedge.spec.words import guess, number_meant

TASKS = ("image-classification", "text-classification", "causal-lm", "masked-lm")
_NAME = r"[a-z0-9][a-z0-9_-]{0,63}"
_GROUP_NAME = r"[A-Za-z0-9][A-Za-z0-9_-]{0,47}"


class ModelSpec(Section):
    """The foundation model: a bundled name, a local Hugging Face folder, a Hub id, or module:function."""

    name: Text = key("a bundled name, a local Hugging Face folder, a Hub id, or module:function")
    task: Annotated[str, one_of(*TASKS)] | None = key("what it learns; told from model and data by default", None)
    revision: Text | None = key("branch, tag or commit of a model from the Hub", None)
    trust_remote_code: Flag = key("run code that comes with the model", False)
    options: dict[str, Any] = key("arguments of a module:function, or of a bundled model", {})

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, given: Any) -> Any:
        if isinstance(given, str):
            return {"name": given}
        if not isinstance(given, Mapping):
            raise ValueError(f"expected a name or a mapping, got {describe(given)}")
        return given


def _slowdown(given: object) -> float | str:
    if given == "auto":
        return "auto"
    if isinstance(given, str):
        raise ValueError(f"expected auto or a number of 1 or more, got {describe(given)}{number_meant(given)}")
    return real(given, 1.0, 10_000.0)


def _slots(given: object) -> int | str:
    if given == "auto":
        return "auto"
    if isinstance(given, str):
        raise ValueError(f"expected auto or a whole number, got {describe(given)}")
    return whole(given, least=1, most=10_000)


class EmulationSpec(Section):
    """How this host stands in for the devices."""

    clock: Annotated[str, one_of("virtual", "real")] = key(
        "virtual: full speed, time is reckoned; real: throttled, time is the wall clock's", "virtual"
    )
    slowdown: Annotated[
        float | str, Check(_slowdown, {"anyOf": [{"const": "auto"}, {"type": "number", "minimum": 1}]})
    ] = key(
        "real clock: seconds of the wall clock for each of the devices'; auto: as few as this host can keep up with",
        1.0,
    )
    slots: Annotated[int | str, Check(_slots, {"anyOf": [{"const": "auto"}, {"type": "integer", "minimum": 1}]})] = key(
        "device processes that compute at once", "auto"
    )
    processes: Annotated[
        int | str, Check(_slots, {"anyOf": [{"const": "auto"}, {"type": "integer", "minimum": 1}]})
    ] = key("device processes that there are; with fewer than devices they take them in turn", "auto")
    restart: Annotated[int, integer(0, 1000)] = key("how often a device whose host process died is started again", 1)
    wall: Annotated[str, one_of("auto", "cgroup1", "cgroup2", "rlimit", "none")] = key(
        "what holds a device to its memory", "auto"
    )
    heartbeat: Timeout = key("a device silent for so long is taken for hung", 30.0)


class EvaluateSpec(Section):
    """When and on how much the server's model is tested."""

    every: Annotated[int, integer(1, 1_000_000)] = key("rounds between two tests", 1)
    rows: Annotated[int, integer(1)] | None = key("test rows; all by default", None)
    baselines: Flag = key("also train on the pooled data, and on each device alone, to compare", False)


@dataclass(frozen=True)
class FederationSpec:
    """A whole federation, checked; ``folder`` is what its relative paths started from."""

    name: str
    seed: int
    model: ModelSpec
    data: DataSpec
    devices: tuple[DeviceSpec, ...]
    emulation: EmulationSpec
    evaluate: EvaluateSpec
    stages: tuple[StageSpec, ...]
    faults: tuple[FaultSpec, ...] = ()
    remote: RemoteSpec = field(default_factory=RemoteSpec)
    groups: Mapping[str, Group] = field(default_factory=dict, compare=False, repr=False)
    folder: Path = field(default=Path(), compare=False)
    source: Source = field(default_factory=lambda: Source(""), compare=False, repr=False)

    @property
    def elsewhere(self) -> tuple[DeviceSpec, ...]:
        """The devices on other machines."""
        return tuple(device for device in self.devices if device.remote)

    def where(self, path: str) -> dict[str, Any]:
        """``file``, ``line``, ``column`` and ``key`` for a Problem about this dotted key."""
        place = self.source.place(path)
        return {"file": place.file, "line": place.line, "column": place.column, "key": path}

    def problem(self, path: str, message: str, *, hint: str | None = None) -> Problem:
        """A mistake at this dotted key, for a ConfigError; ``stages.1.method`` names a stage by its number."""
        return self.source.problem(path, message, hint=hint)


# the keys of the file, in the order in which `resolved` writes them
KEYS = {
    "name": "the federation's name: small letters, digits, - and _; the file's by default",
    "seed": "what all randomness starts from",
    "model": "the foundation model",
    "data": "the data set and how it is dealt",
    "devices": "groups of devices by name",
    "remote": "how devices on other machines join",
    "emulation": "how this host stands in for the devices",
    "evaluate": "when and on how much the model is tested",
    "stages": "what is done, in order",
    "faults": "what happens to devices, by schedule or by chance",
}


def find_federation(path: str | Path) -> Path:
    """The file meant by ``path``; a folder means the ``federation.yaml`` in it. ConfigError when there is none."""
    found = Path(path)
    try:
        found = found.expanduser()
        found.stat()
    except (OSError, RuntimeError, ValueError):
        beside_it = [p.name for p in found.parent.glob("*.y*ml")] if "\0" not in str(path) else []
        raise ConfigError(Problem("no such file", file=str(path), hint=nearest(found.name, beside_it))) from None
    if found.is_dir():
        for name in ("federation.yaml", "federation.yml"):
            if (found / name).is_file():
                return found / name
        raise ConfigError(Problem("the folder has no federation.yaml", file=str(found), hint="`fedge init` writes one"))
    return found


def load_federation(
    path: str | Path,
    overrides: Sequence[str] | Mapping[str, object] = (),
    *,
    catalogue: catalogues.Catalogue | None = None,
) -> FederationSpec:
    """Read and check a federation.

    ``overrides`` are 'a.b.c=value' texts (the value read as YAML), or a mapping of dotted key to value.
    Raises ConfigError with every mistake of the file and the overrides.
    """
    file = find_federation(path)
    source = read_yaml(file)
    override(source, overrides)
    _name_stages_by_number(source)
    return _check(source, file.absolute().parent, file.stem, catalogue or catalogues.load())


def _name_stages_by_number(source: Source) -> None:
    """Let ``stages.1.rounds`` find what the file holds at ``stages.1.customize.rounds``."""
    for path, place in list(source.places.items()):
        match = re.fullmatch(rf"(stages\.\d+)\.({'|'.join(STAGES)})(\..+)?", path)
        if match:
            source.places[match[1] + (match[3] or "")] = place


def _check(source: Source, folder: Path, stem: str, catalogue: catalogues.Catalogue) -> FederationSpec:
    data = source.data
    for name in data:
        # x-…: room for the user's own, anchors most of all, as compose has it
        if name not in KEYS and not name.startswith("x-"):
            unknown_key(name, data[name], list(KEYS), source)
    name = _name(data.get("name"), stem, source)
    seed = _seed(data.get("seed", 0), source)
    model = _needed(ModelSpec, "model", data, source)
    rows = _needed(DataSpec, "data", data, source)
    groups = _groups(data.get("devices"), source, folder)
    devices = expand(groups, source, folder)
    emulation = read(EmulationSpec, data.get("emulation"), "emulation", source)
    evaluate = read(EvaluateSpec, data.get("evaluate"), "evaluate", source)
    remote = _remote(read(RemoteSpec, data.get("remote"), "remote", source), groups, folder, source)
    stages = read_stages(data.get("stages"), source, catalogue)
    own_model = model_paths(data.get("model"), folder, source)
    own_data = data_paths(data.get("data"), folder, source)
    if "devices" in data and devices and len(groups) == len(data["devices"]):
        _cohorts(stages, len(devices), source)
        if emulation is not None:
            _clock(emulation, stages, len(devices), source)
        for group, _ in rows.partition.groups if rows is not None else ():
            if group not in groups:
                hint = nearest(group, groups) or f"there are {', '.join(groups)}"
                source.report(f"data.partition.groups.{group}", "no such group of devices", hint=hint)
    whole_fleet = devices if isinstance(data.get("devices"), Mapping) and len(groups) == len(data["devices"]) else ()
    every_stage = stages if isinstance(data.get("stages"), list) and len(stages) == len(data["stages"]) else ()
    faults = read_faults(data.get("faults"), whole_fleet, every_stage, source)
    if emulation is not None and emulation.clock == "real" and any(device.remote for device in devices):
        hint = "clock: virtual"
        source.report("emulation.clock", "devices on other machines take part under the virtual clock only", hint=hint)
    source.raise_problems()
    assert model is not None
    assert rows is not None
    assert emulation is not None
    assert evaluate is not None
    assert remote is not None
    return FederationSpec(
        name=name,
        seed=seed,
        model=model.model_copy(update=own_model),
        data=rows.model_copy(update=own_data),
        devices=devices,
        emulation=emulation,
        evaluate=evaluate,
        stages=stages,
        faults=faults,
        remote=remote,
        groups=groups,
        folder=folder,
        source=source,
    )


def _remote(remote: RemoteSpec | None, groups: Mapping[str, Group], folder: Path, source: Source) -> RemoteSpec | None:
    if remote is None:
        return None
    away = [name for name, group in groups.items() if group.remote]
    if away and remote.listen is None and "remote.listen" not in source.told:
        hint = "remote: {listen: 'tcp://0.0.0.0:7700'}, or up --listen tcp://0.0.0.0:7700"
        source.report(f"devices.{away[0]}.remote", "it has nowhere to join", hint=hint)
    if not away and remote.listen is not None and groups:
        source.report(
            "remote.listen", "no device is remote", hint=f"devices: {{{next(iter(groups))}: {{remote: true}}}}"
        )
    if remote.keys is None:
        return remote
    return remote.model_copy(update={"keys": str(beside(folder, remote.keys))})


def _needed(kind: type[S], name: str, data: Mapping[str, Any], source: Source) -> S | None:
    if data.get(name) is None:
        source.report(name, "this key is needed", hint=KEYS[name])
        return None
    return read(kind, data[name], name, source)


def _name(given: object, stem: str, source: Source) -> str:
    if given is None:
        return re.sub(r"[^a-z0-9_-]+", "-", stem.lower()).strip("-_")[:64] or "federation"
    text = str(given) if isinstance(given, int) and not isinstance(given, bool) else given
    if not isinstance(text, str) or not re.fullmatch(_NAME, text):
        hint = "small letters, digits, - and _, at most 64"
        source.report("name", f"expected a plain name, got {describe(given)}", hint=hint)
        return ""
    return text


def _seed(given: object, source: Source) -> int:
    try:
        return whole(given, least=0, most=2**63 - 1)
    except ValueError as error:
        source.report("seed", str(error))
        return 0


def _groups(given: object, source: Source, folder: Path) -> dict[str, Group]:
    if given is None or given == {}:
        source.report("devices", "no devices", hint="such as `pi: {profile: pi-4b-4g, count: 4}`")
        return {}
    if not isinstance(given, Mapping):
        hint = "a name and then what it is, such as `pi: {profile: pi-4b-4g, count: 4}`"
        source.report("devices", f"expected a mapping of groups, got {describe(given)}", hint=hint)
        return {}
    if _dedented(given, source):
        return {}
    groups = {}
    for name, body in given.items():
        at = f"devices.{name}"
        if isinstance(body, str) and guess(body, known_keys(Group)).key and ":" in body:
            source.report(at, f"expected a mapping, got {describe(body)}", hint="a space is missing after the ':'")
        elif not re.fullmatch(_GROUP_NAME, name):
            hint = "letters, digits, - and _, at most 48: it becomes the name of files"
            source.report(at, "not a name for devices", hint=hint)
        elif isinstance(body, str):
            source.report(at, f"expected a mapping, got {describe(body)}", hint=f"{{profile: {body}}}?")
        elif (group := read(Group, body, at, source)) is not None:
            groups[name] = group
        elif isinstance(body, Mapping):
            check_names(body, at, source, folder)
    return groups


def _dedented(given: Mapping[str, Any], source: Source) -> bool:
    """Whether a group's keys stand beside its name and not below it; reported if so."""
    empty = [name for name, body in given.items() if body is None]
    stray = [name for name in given if name in known_keys(Group) and not isinstance(given[name], Mapping)]
    if not empty or not stray:
        return False
    hint = f"indent {', '.join(stray)} further than '{empty[0]}'"
    source.report(f"devices.{stray[0]}", f"stands beside the group '{empty[0]}', not below it", hint=hint)
    return True


def _cohorts(stages: tuple[StageSpec, ...], devices: int, source: Source) -> None:
    for stage in stages:
        at = f"stages.{stage.index}"
        if stage.cohort is not None and stage.cohort > devices:
            source.report(f"{at}.cohort", f"{stage.cohort} devices are asked each round, but there are {devices}")
        for name, value, usual in (("sampling", stage.sampling, "uniform"), ("over", stage.over, 1.0)):
            if stage.cohort is None and value != usual:
                source.report(f"{at}.{name}", "every device is asked each round", hint="cohort: N asks fewer")
        if stage.late == "carry" and stage.deadline is None and stage.over == 1:
            mend = "give a deadline, or over: 1.3 with a cohort"
            source.report(f"{at}.late", "no answer is ever late without a deadline or over-selection", hint=mend)
        asked = min(stage.cohort or devices, devices)
        if isinstance(stage.quorum, int) and stage.quorum > asked:
            hint = f"{stage.quorum}%?" if 10 <= stage.quorum <= 100 else None
            message = f"{stage.quorum} answers are needed, but {asked} devices are asked"
            source.report(f"{at}.quorum", message, hint=hint)


def _clock(emulation: EmulationSpec, stages: tuple[StageSpec, ...], devices: int, source: Source) -> None:
    """What the real clock can't do with: devices that wait for a slot, or for their turn at a process."""
    if emulation.clock != "real":
        return
    asked = max((stage.most_asked(devices) for stage in stages), default=0)
    for name, least in (("slots", asked), ("processes", devices)):
        told = getattr(emulation, name)
        if isinstance(told, int) and told < least:
            message = f"under the real clock {least} devices run side by side, and there is room for {told}"
            source.report(f"emulation.{name}", message, hint=f"leave {name} out, or clock: virtual")
