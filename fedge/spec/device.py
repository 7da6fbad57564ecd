"""Devices and links: profiles as files, groups as a federation writes them, devices as fedge runs them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import model_validator

from fedge.errors import ConfigError, Problem, nearest
from fedge.spec import shipped
from fedge.spec.availability import Availability, PresenceSpec, presence_of
from fedge.spec.rates import CLASSES, DEFAULT, DEFAULT_GPU, OwnRates, StackRates, load_stacks, resolve
from fedge.spec.source import Source, beside, describe, read_yaml
from fedge.spec.trace import TraceSpec, read_trace
from fedge.spec.values import (
    Bitrate,
    Byterate,
    Bytes,
    Check,
    Flag,
    Flops,
    Joules,
    Seconds,
    Section,
    Share,
    Text,
    Watts,
    integer,
    key,
    one_of,
    read,
)

# what the values' provenance may be: someone measured it, the maker says it, derived by a stated rule, an estimate
BASIS = {"M": "measured", "S": "specification", "D": "derived", "E": "estimate"}


@dataclass(frozen=True)
class LinkSpec:
    """A device's connection: bits per second each way, seconds, share of packets lost."""

    name: str | None
    down: float
    up: float
    latency: float  # a round trip
    jitter: float
    loss: float
    trace: TraceSpec | None = None  # the rates over time; down and up are then their means


@dataclass(frozen=True)
class DeviceSpec:
    """One emulated device: bytes of memory, FLOP/s, bytes/s of memory traffic, watts, a link.

    The rates are what it sustains with ``stack``; ``rates_basis`` says how they are known (see ``StackRates``).
    """

    name: str
    group: str
    profile: str
    memory: int
    flops: float
    memory_bandwidth: float
    link: LinkSpec
    idle_power: float
    active_power: float
    availability: float = 1.0
    presence: PresenceSpec = field(default_factory=PresenceSpec)  # beyond that share of rounds
    pin: str | None = None
    data_cap: int | None = None  # bytes a round, down and up
    energy_cap: float | None = None  # joules a round
    radio_power: float | None = None  # beyond idle; None: not known
    battery: float | None = None  # joules a stage
    stack: str = DEFAULT
    per_op: float = 0.0  # seconds to dispatch an operation
    slower: tuple[tuple[str, float], ...] = ()  # families of arithmetic, in times of a product of matrices
    rates_basis: str = "measured"
    remote: bool = False  # on another machine: it joins by `fedge join`


class Power(Section):
    """What the whole device draws."""

    idle: Watts = key("watts while it waits")
    active: Watts = key("watts while it computes")
    radio: Watts | None = key("watts beyond idle while it sends or receives; what computing takes, by default", None)


class PowerChange(Section):
    """A group's own figures in place of the profile's."""

    idle: Watts | None = key("watts while it waits", None)
    active: Watts | None = key("watts while it computes", None)
    radio: Watts | None = key("watts beyond idle while it sends or receives", None)


class Network(Section):
    """A link class by name, values of one's own, or a class with some values replaced."""

    name: Text | None = key("a link class whose values stand for those not given here", None)
    down: Bitrate | None = key("rate towards the device, such as 30Mbit/s", None)
    up: Bitrate | None = key("rate from the device, such as 8Mbit/s", None)
    latency: Seconds | None = key("time of a round trip, such as 50ms", None)
    jitter: Seconds | None = key("standard deviation of the latency", None)
    loss: Share | None = key("share of packets lost, such as 0.5%", None)
    trace: Text | None = key(
        "a csv of seconds and Mbit/s that the rates follow over emulated time, again and again; columns down and up, "
        "or one for both",
        None,
    )

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, given: Any) -> Any:
        if isinstance(given, str):
            return {"name": given}
        if isinstance(given, Mapping):
            named = next((name for name in given if name in load_links()), None)
            if named is not None:
                raise ValueError(f"'{named}' is a link class's name, not a key; {{name: {named}, loss: 1%}}?")
            return given
        raise ValueError(f"expected the name of a link class or a mapping, got {describe(given)}")


class LinkClass(Section):
    """A link class of ``links.yaml``."""

    down: Bitrate = key("rate towards the device")
    up: Bitrate = key("rate from the device")
    latency: Seconds = key("time of a round trip")
    jitter: Seconds = key("standard deviation of the latency")
    loss: Share = key("share of packets lost")
    about: Text | None = key("what it is, in a line", None)
    basis: Text | None = key("M measured, S specification, D derived, E estimate; and how", None)
    sources: list[Text] | None = key("where the values were read", None)


def _basis(given: object) -> dict[str, str]:
    if not isinstance(given, Mapping):
        raise ValueError(f"expected a mapping, got {describe(given)}")
    for name, text in given.items():
        if not isinstance(text, str) or not re.match(r"[MSDE]\b", text):
            raise ValueError(f"{name}: expected M, S, D or E and then how, got {describe(text)}")
    return dict(given)


class Accelerator(Section):
    """A device's GPU; its figures hold for devices that are pinned to a CUDA device."""

    name: Text = key("what it is")
    memory: Bytes | None = key("memory of its own; absent where it shares the device's", None)
    compute: Flops = key("sustained fp32 rate")
    memory_bandwidth: Byterate | None = key("memory traffic it sustains, where it differs", None)


class Profile(Section):
    """A device that can be bought, as far as its budget goes. One file each."""

    name: Text = key("the profile's name")
    about: Text = key("what it is, in a line")
    memory: Bytes = key("what the device can grant to federated work")
    memory_total: Bytes | None = key("memory fitted", None)
    compute: Flops = key("sustained fp32 rate of its processor")
    memory_bandwidth: Byterate = key("memory traffic that it sustains, each byte read or written counted")
    network: Text = key("the link class it has when a federation names none")
    networks: list[Text] | None = key("other link classes it can have", None)
    power: Power = key("what the whole device draws")
    accelerator: Accelerator | None = key("its GPU, if it has one", None)
    kind: Annotated[str, one_of(*CLASSES)] = key("its class, which stands for it where no stack was measured", "board")
    rates: dict[str, OwnRates] | None = key("what it was measured to sustain with a stack, by the stack's name", None)
    refused: Text | None = key("why no federation can use it", None)
    basis: (
        Annotated[
            dict[str, str],
            Check(_basis, {"type": "object", "additionalProperties": {"type": "string", "pattern": r"^[MSDE]\b"}}),
        ]
        | None
    ) = key("for each quantity: M measured, S specification, D derived, E estimate; and how", None)
    sources: dict[str, list[Text]] | None = key("for each quantity, where it was read", None)


def _pin(given: object) -> str:
    if not isinstance(given, str) or not re.fullmatch(r"(cpu|cuda):\d{1,4}", given):
        raise ValueError(f"expected 'cpu:N' or 'cuda:N', such as 'cuda:0', got {describe(given)}")
    return given


class Group(Section):
    """Devices of one kind. What isn't given comes from the profile."""

    profile: Text = key("a bundled profile's name (see `fedge devices`) or the path of a profile's YAML")
    count: Annotated[int, integer(1, 100_000)] = key("how many; more than one are named phone-00, phone-01, …", 1)
    network: Network | None = key("a link class's name, or down, up, latency, jitter and loss", None)
    memory: Bytes | None = key("what each grants to federated work, such as 512MiB", None)
    compute: Flops | None = key("sustained fp32 rate, such as 9GFLOP/s", None)
    memory_bandwidth: Byterate | None = key("memory traffic, such as 4.8GB/s", None)
    stack: Text | None = key("the software it computes with (see `fedge devices NAME`), such as pytorch", None)
    availability: Availability = key(
        "when each can be reached: a share of rounds, above 0, or {cycle: {on: 10h, off: 14h}} and others",
        Availability(),
    )
    pin: Annotated[str, Check(_pin, {"type": "string", "pattern": r"^(cpu|cuda):\d+$"})] | None = key(
        "run on this processor or accelerator of the host, such as cpu:1 or cuda:0", None
    )
    remote: Flag = key("on another machine: joins by `fedge join` instead of being a process of this host", False)
    power: PowerChange | None = key("watts, idle, active and radio, in place of the profile's", None)
    data_cap: Bytes | None = key("most that a round may send and receive, such as 5MB; no cap by default", None)
    energy_cap: Joules | None = key("most energy that a round may take, such as 20J; no cap by default", None)
    battery: Joules | None = key(
        "energy that a stage may take, spread evenly over its rounds, such as 1.5Wh; mains by default", None
    )


@cache
def load_links() -> Mapping[str, LinkClass]:
    """The bundled link classes by name."""
    source = read_yaml(shipped.shipped("devices") / "links.yaml", what="file of links")
    links = {name: read(LinkClass, body, name, source) for name, body in source.data.items()}
    source.raise_problems()
    return {name: link for name, link in links.items() if link is not None}


def load_profile(path: Path) -> Profile:
    """One profile from its file; ConfigError with every mistake in it."""
    source = read_yaml(path, what="device profile")
    profile = read(Profile, source.data, "", source)
    if profile is not None:
        for at, name in [
            ("network", profile.network),
            *((f"networks.{i}", n) for i, n in enumerate(profile.networks or ())),
        ]:
            if name not in load_links():
                source.report(at, f"no link class '{name}'", hint=nearest(name, load_links()))
    source.raise_problems()
    assert profile is not None
    return profile


@cache
def bundled_profiles() -> Mapping[str, Profile]:
    """Every bundled profile by name, the refused ones too."""
    return {name: _bundled(name) for name in shipped.names("devices")}


@cache
def _bundled(name: str) -> Profile:
    return load_profile(shipped.shipped("devices") / f"{name}.yaml")


def find_profile(word: str, folder: Path) -> tuple[str, Profile]:
    """The profile and the word to write for it: a bundled name as it is, a path made absolute.

    Raises ConfigError, without a place when the name itself is wrong.
    """
    if word in shipped.names("devices"):
        return word, _bundled(word)
    path = beside(folder, word)
    if path.suffix in (".yaml", ".yml") or "/" in word:
        if path.is_dir():
            raise ConfigError(Problem(f"is a folder, and a profile is a YAML file: {path}"))
        if not path.is_file():
            near = [entry.name for entry in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
            raise ConfigError(Problem(f"no such file: {path}", hint=nearest(path.name, near)))
        return str(path), load_profile(path)
    like = re.sub(r"[_ ]+", "-", word.lower())
    hint = nearest(like, shipped.names("devices")) or "`fedge devices` lists them; or give the path of a YAML file"
    raise ConfigError(Problem(f"no device profile '{word}'", hint=hint))


def expand(groups: Mapping[str, Group], source: Source, folder: Path) -> tuple[DeviceSpec, ...]:
    """Every device of every group, in the order written; mistakes go to ``source.problems``."""
    devices: list[DeviceSpec] = []
    taken: dict[str, str] = {}
    for name, group in groups.items():
        at = f"devices.{name}"
        model = _model_device(name, group, at, source, folder)
        if model is None:
            continue
        digits = max(2, len(str(group.count - 1)))
        for index in range(group.count):
            own = name if group.count == 1 else f"{name}-{index:0{digits}d}"
            if own in taken:
                source.report(at, f"a second device would be named '{own}'; group '{taken[own]}' has one")
                break
            taken[own] = name
            devices.append(DeviceSpec(**{**model, "name": own}))
    return tuple(devices)


def check_names(given: Mapping[str, Any], at: str, source: Source, folder: Path) -> None:
    """Look up the profile and link that a group names although the group itself is wrong: all mistakes at once."""
    if isinstance(profile := given.get("profile"), str):
        _profile(profile, at, source, folder)
    if isinstance(network := given.get("network"), str):
        _link(Network(name=network), f"{at}.network", source, folder)


def _profile(name: str, at: str, source: Source, folder: Path) -> tuple[str, Profile] | None:
    try:
        word, profile = find_profile(name, folder)
    except ConfigError as error:
        source.report_of(f"{at}.profile", error)
        return None
    if profile.refused:
        source.report(f"{at}.profile", f"'{profile.name}' can't take part: {profile.refused}")
        return None
    return word, profile


def _model_device(name: str, group: Group, at: str, source: Source, folder: Path) -> dict[str, Any] | None:
    found = _profile(group.profile, at, source, folder)
    link = None
    network = group.network or Network()
    rated = any(part is not None for part in (network.down, network.up, network.latency))
    if found is not None and network.name is None and not rated:
        network = network.model_copy(update={"name": found[1].network})  # loss or jitter alone refine the profile's
    if found is not None or network.name is not None:
        link = _link(network, f"{at}.network", source, folder)
    stack = None if found is None else _stack(group, found[1], f"{at}.stack", source)
    presence = presence_of(group.availability, f"{at}.availability", source, folder)
    if found is None or link is None or stack is None or presence is None:
        return None
    word, profile = found
    fast = profile.accelerator if _on_gpu(stack, profile) else None
    rates = rates_with(profile, stack)
    power = group.power or PowerChange()
    idle = profile.power.idle if power.idle is None else power.idle
    active = profile.power.active if power.active is None else power.active
    if idle > active:
        source.report(f"{at}.power", f"idle draws {idle:g}W, more than the {active:g}W when active")
    if group.remote and group.pin is not None:
        source.report(f"{at}.pin", "a remote device is on no processor of this host", hint="leave pin out")
    return {
        "group": name,
        "profile": word,
        "memory": group.memory or (fast and fast.memory) or profile.memory,
        "flops": group.compute or rates.flops,
        "memory_bandwidth": group.memory_bandwidth or rates.memory_bandwidth,
        "stack": stack,
        "per_op": rates.per_op,
        "slower": rates.slower,
        "rates_basis": rates.basis,
        "link": link,
        "idle_power": idle,
        "active_power": active,
        "radio_power": profile.power.radio if power.radio is None else power.radio,
        "availability": group.availability.share,
        "presence": presence,
        "pin": group.pin,
        "data_cap": group.data_cap,
        "energy_cap": group.energy_cap,
        "battery": group.battery,
        "remote": group.remote,
    }


def _on_gpu(stack: str, profile: Profile) -> bool:
    known = load_stacks().get(stack)
    return profile.accelerator is not None and known is not None and known.runs_on == "gpu"


def stacks_of(profile: Profile) -> list[str]:
    """The stacks that a device can run: those of its processor, and those of a GPU where it has one."""
    there = [name for name, stack in load_stacks().items() if stack.runs_on == "cpu" or profile.accelerator]
    return list(dict.fromkeys([*(profile.rates or {}), *there]))


def rates_with(profile: Profile, stack: str) -> StackRates:
    """What a device sustains with one of ``stacks_of``."""
    own = (profile.rates or {}).get(stack)
    fast = profile.accelerator if _on_gpu(stack, profile) else None
    bandwidth = (fast and fast.memory_bandwidth) or profile.memory_bandwidth
    return resolve(stack, profile.name, profile.kind, (fast or profile).compute, bandwidth, own)


def _stack(group: Group, profile: Profile, at: str, source: Source) -> str | None:
    """The stack of a group; a device that runs on the host's GPU stands for one that computes on its own."""
    if group.stack is None:
        pinned = group.pin is not None and group.pin.startswith("cuda") and profile.accelerator is not None
        return DEFAULT_GPU if pinned else DEFAULT
    able = stacks_of(profile)
    if group.stack in able:
        return group.stack
    if group.stack in load_stacks():
        source.report(at, f"'{group.stack}' computes on a GPU, and '{profile.name}' has none")
        return None
    source.report(at, f"no stack '{group.stack}'", hint=nearest(group.stack, able) or f"known: {', '.join(able)}")
    return None


def _link(network: Network, at: str, source: Source, folder: Path) -> LinkSpec | None:
    values: dict[str, Any] = {}
    if network.name is not None:
        known = load_links().get(network.name)
        if known is None and network.name.lower() in ("none", "off", "offline", "no"):
            message = "a device without a link can't take part: every question and every answer goes over it"
            source.report(at, message, hint="leave the key out for the profile's own link, or leave the device out")
            return None
        if known is None:
            close = nearest(network.name, load_links()) or f"known: {', '.join(load_links())}"
            if re.match(r"\d+(\.\d+)?\s*[kMG]?(bit|bps|b|B)", network.name):
                close = "a rate of one's own stands in {down: 30Mbit/s, up: 8Mbit/s, latency: 40ms}"
            source.report(at, f"no link class '{network.name}'", hint=close)
            return None
        values = {part: getattr(known, part) for part in ("down", "up", "latency", "jitter", "loss")}
    values |= {"jitter": values.get("jitter", 0.0), "loss": values.get("loss", 0.0)}
    given = {part: getattr(network, part) for part in ("down", "up", "latency", "jitter", "loss")}
    values |= {part: value for part, value in given.items() if value is not None}
    trace = _trace(network, at, source, folder) if network.trace is not None else None
    if network.trace is not None and trace is None:
        return None
    if trace is not None:
        values |= {"down": trace.mean(trace.down), "up": trace.mean(trace.up), "trace": trace}
    missing = [part for part in ("down", "up", "latency") if part not in values]
    for part in missing:
        source.report(f"{at}.{part}", "this key is needed where no link class is named", hint="or give `name: wifi4`")
    if values.get("loss", 0) >= 1:
        source.report(f"{at}.loss", "a link that loses everything carries nothing", hint="say availability instead")
        return None
    return None if missing else LinkSpec(name=network.name, **values)


def _trace(network: Network, at: str, source: Source, folder: Path) -> TraceSpec | None:
    for part in ("down", "up"):
        if getattr(network, part) is not None:
            source.report(f"{at}.{part}", "the trace says the rates", hint=f"leave out {part}, or the trace")
            return None
    try:
        return read_trace(beside(folder, network.trace or ""))
    except ConfigError as error:
        source.report_of(f"{at}.trace", error)
        return None
