"""A federation file: from YAML with overrides to frozen values, every mistake reported at once with its place."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import model_validator

from fedge import units
from fedge.errors import ConfigError, Problem, nearest
from fedge.spec import catalogue as catalogues
from fedge.spec.availability import write_availability
from fedge.spec.data import DataSpec
from fedge.spec.device import DeviceSpec, Group, check_names, expand
from fedge.spec.faults import FaultSpec, read_faults, write_faults
from fedge.spec.overrides import override
from fedge.spec.remote import RemoteSpec
from fedge.spec.source import Source, beside, describe, read_yaml
from fedge.spec.stage import STAGES, StageSpec, read_stages, write_stage
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
# names that mean the same whatever lies beside the file; the models' and data's rooms have what they stand for
BUNDLED_MODELS = ("vit-nano", "bert-nano", "gpt-nano")
BUNDLED_DATASETS = ("digits",)
_FILES = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet", ".npz", ".txt", ".zip", ".arrow")
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
    model = _model_path(model, data.get("model"), folder, source)
    rows = _data_paths(rows, data.get("data"), folder, source)
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
        model=model,
        data=rows,
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


# The names below are looked up in the raw values, so that one wrong key in a section doesn't hide a missing file.


def _model_path(model: ModelSpec | None, given: object, folder: Path, source: Source) -> ModelSpec | None:
    at = "model.name" if isinstance(given, Mapping) else "model"
    name = given.get("name") if isinstance(given, Mapping) else given
    if not isinstance(name, str) or not name.strip() or "${" in name or name in BUNDLED_MODELS:
        return model
    path = beside(folder, name)
    if path.is_dir():
        return model and model.model_copy(update={"name": str(path)})
    if path.is_file():
        source.report(at, "is a file; a model is a folder that holds a config.json")
    elif name.startswith((".", "/", "~")):
        source.report(at, f"no such folder: {path}")
    return model


def _data_paths(data: DataSpec | None, given: object, folder: Path, source: Source) -> DataSpec | None:
    at = "data.dataset" if isinstance(given, Mapping) else "data"
    dataset = given.get("dataset") if isinstance(given, Mapping) else given
    update: dict[str, Any] = {}
    if isinstance(dataset, str) and dataset.strip() and "${" not in dataset:
        update["dataset"] = _file(dataset, at, folder, source)
    test = given.get("test") if isinstance(given, Mapping) else None
    if isinstance(test, str) and test.strip() and not re.fullmatch(r"[\d.+-]+\s*%?|.*%", test.strip()):
        update["test"] = _file(test, "data.test", folder, source, must=True)
    return data and data.model_copy(update=update)


def _file(name: str, at: str, folder: Path, source: Source, *, must: bool = False) -> str:
    """An absolute path where the word names something there; the word itself where it may be a name or a Hub id."""
    if not must and (name in BUNDLED_DATASETS or re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", name)):
        return name
    path = beside(folder, name)
    if must and path.is_dir():
        source.report(at, "is a folder, not a file of test rows", hint="or a share of the data, such as 20%")
    if path.exists():
        return str(path)
    looks = must or name.startswith((".", "/", "~")) or name.count("/") > 1 or name.lower().endswith(_FILES)
    if looks:
        around = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        source.report(at, f"no such file: {path}", hint=nearest(path.name, around))
    return name


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


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    def ignore_aliases(self, data: Any) -> bool:
        return True


def resolved(spec: FederationSpec) -> str:
    """The federation as YAML with every default filled in; read again, it gives an equal spec."""
    first: dict[str, DeviceSpec] = {}
    for device in spec.devices:
        first.setdefault(device.group, device)
    document = {
        "name": spec.name,
        "seed": spec.seed,
        "model": spec.model.model_dump(),
        "data": spec.data.model_dump(),
        "devices": {name: _write_group(device, spec.groups[name].count) for name, device in first.items()},
        **({"remote": spec.remote.model_dump()} if spec.elsewhere else {}),
        "emulation": spec.emulation.model_dump(),
        "evaluate": spec.evaluate.model_dump(),
        "stages": [write_stage(stage) for stage in spec.stages],
        **({"faults": write_faults(spec.faults)} if spec.faults else {}),
    }
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110, default_flow_style=None)


def _write_group(device: DeviceSpec, count: int) -> dict[str, Any]:
    link = device.link
    network = {
        "name": link.name,
        "trace": link.trace.file if link.trace else None,
        "down": None if link.trace else units.format_bitrate(link.down, exact=True),
        "up": None if link.trace else units.format_bitrate(link.up, exact=True),
        "latency": units.format_seconds(link.latency, exact=True),
        "jitter": units.format_seconds(link.jitter, exact=True),
        "loss": units.format_share(link.loss),
    }
    return {
        "profile": device.profile,
        "count": count,
        "network": {name: value for name, value in network.items() if value is not None},
        "memory": units.format_bytes(device.memory, exact=True),
        "compute": units.format_flops(device.flops, exact=True),
        "memory_bandwidth": units.format_byterate(device.memory_bandwidth, exact=True),
        "stack": device.stack,
        "availability": write_availability(device.availability, device.presence),
        "pin": device.pin,
        **({"remote": True} if device.remote else {}),
        "data_cap": None if device.data_cap is None else units.format_bytes(device.data_cap, exact=True),
        "energy_cap": None if device.energy_cap is None else units.format_joules(device.energy_cap, exact=True),
        "battery": None if device.battery is None else units.format_joules(device.battery, exact=True),
        "power": {
            "idle": units.format_watts(device.idle_power, exact=True),
            "active": units.format_watts(device.active_power, exact=True),
            **({} if device.radio_power is None else {"radio": units.format_watts(device.radio_power, exact=True)}),
        },
    }
