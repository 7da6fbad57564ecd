"""Device profiles and link classes, and how each of their figures is known; as rows for ``--json`` and as tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedge import units
from fedge.report.listings import Listing
from fedge.report.tables import table
from fedge.spec.device import (
    BASIS,
    LinkClass,
    Profile,
    bundled_profiles,
    find_profile,
    load_links,
    rates_with,
    stacks_of,
)

#: A profile's figures in the order in which they are shown.
_FIGURES = ("memory", "memory_total", "compute", "memory_bandwidth", "accelerator", "power")


def devices_tables() -> Listing:
    """Device profiles and link classes. ``basis`` says for each figure how it is known."""
    profiles = [_profile_row(profile) for profile in bundled_profiles().values()]
    links = [_link_row(name, link) for name, link in load_links().items()]

    def show() -> None:
        _show_profiles(profiles)
        letters = ", ".join(f"{letter} {word}" for letter, word in BASIS.items())
        print(f"\nbasis of memory/compute/traffic/power: {letters}\n")
        _show_links(links)

    return {"devices": profiles, "links": links}, show


def _profile_row(profile: Profile) -> dict[str, Any]:
    return {
        "name": profile.name,
        "about": profile.about,
        "memory": profile.memory,
        "compute": profile.compute,
        "memory_bandwidth": profile.memory_bandwidth,
        "network": profile.network,
        "idle_w": profile.power.idle,
        "active_w": profile.power.active,
        "radio_w": profile.power.radio,
        "basis": _bases(profile.basis or {}),
        "refused": profile.refused,
    }


def _show_profiles(profiles: list[dict[str, Any]]) -> None:
    rows = [
        {
            "profile": row["name"],
            "MiB": row["memory"] >> 20,
            "GFLOP/s": row["compute"] / 1e9,
            "GB/s": row["memory_bandwidth"] / 1e9,
            "network": row["network"],
            "watts": f"{row['idle_w']:g}–{row['active_w']:g}",
            "basis": row["basis"] if row["refused"] is None else "too small",
        }
        for row in profiles
    ]
    table(rows, list(rows[0]))


def _link_row(name: str, link: LinkClass) -> dict[str, Any]:
    figures = {part: getattr(link, part) for part in ("down", "up", "latency", "jitter", "loss")}
    return {"name": name, "about": link.about, **figures, "basis": _letter(link.basis or "E")}


def _show_links(links: list[dict[str, Any]]) -> None:
    rows = [{"link": row["name"], **_link_words(row), "basis": row["basis"]} for row in links]
    table(rows, list(rows[0]))


def _link_words(link: dict[str, Any]) -> dict[str, str]:
    """A link's rates, latency, jitter and loss as its file would write them."""
    return {
        "down": units.format_bitrate(link["down"]),
        "up": units.format_bitrate(link["up"]),
        "latency": units.format_seconds(link["latency"]),
        "jitter": units.format_seconds(link["jitter"]),
        "loss": units.format_share(link["loss"]),
    }


def device_card(word: str) -> Listing:
    """One profile, bundled or a file of the user's, or one link class: each figure, how it is known, where it was read.

    Raises ConfigError when there is neither.
    """
    links = load_links()
    if word in links:
        return _link_card(word, links[word])
    _, profile = find_profile(word, Path.cwd())
    basis, sources = profile.basis or {}, profile.sources or {}
    rows = [
        {
            "figure": figure,
            "value": _value(profile, figure),
            "basis": BASIS[_basis(basis, figure)[0]],
            "how": _basis(basis, figure)[1:].strip(),
            "sources": list(sources.get(figure, ())),
        }
        for figure in _FIGURES
        if getattr(profile, figure) is not None
    ]

    stacks = [] if profile.refused else [_stack_row(profile, name) for name in stacks_of(profile)]

    def show() -> None:
        print(f"{profile.name}: {profile.about}")
        if profile.refused:
            print(f"  can't take part: {profile.refused}")
        print(f"  network: {', '.join([profile.network, *(profile.networks or ())])}\n")
        table(rows, {"figure": "figure", "value": "value", "basis": "basis", "how": "how it is known"})
        _show_sources({row["figure"]: row["sources"] for row in rows})
        if stacks:
            print("\nwhat software stacks sustain on it (`stack:` of a group of devices picks one)")
            table(
                [_shown(row) for row in stacks],
                ["stack", "matmul", "conv", "depthwise", "traffic", "dispatch", "basis"],
            )
            print("\nfitted: to measurements on this device that others published; class default: never measured on it")

    document = {"name": profile.name, "about": profile.about, "refused": profile.refused, "network": profile.network}
    return {"devices": [{**document, "kind": profile.kind, "figures": rows, "stacks": stacks}]}, show


def _stack_row(profile: Profile, stack: str) -> dict[str, Any]:
    """What a device sustains with a stack, and how that is known; FLOP/s by family of arithmetic, bytes/s, seconds."""
    rates = rates_with(profile, stack)
    families = {name: rates.flops / times for name, times in rates.slower}
    known = {"traffic": rates.memory_bandwidth, "dispatch": rates.per_op, "basis": rates.basis, "how": rates.how}
    return {"stack": stack, "matmul": rates.flops, **families, **known}


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    rates = {name: units.format_flops(row[name]) for name in ("matmul", "conv", "depthwise")}
    seconds = units.format_seconds(row["dispatch"])
    return {**row, **rates, "traffic": units.format_byterate(row["traffic"]), "dispatch": seconds}


def _link_card(name: str, link: LinkClass) -> Listing:
    values = _link_words(_link_row(name, link))
    sources = list(link.sources or ())

    def show() -> None:
        print(f"{name}: {link.about or 'a link class'}\n")
        table([{"figure": figure, "value": value} for figure, value in values.items()], ["figure", "value"])
        basis = link.basis or "E"
        print(f"\nbasis: {BASIS[basis[0]]} {basis[1:].strip()}".rstrip())
        _show_sources({"": sources})

    return {"links": [{"name": name, "about": link.about, **values, "basis": link.basis, "sources": sources}]}, show


def _show_sources(sources: dict[str, list[str]]) -> None:
    if any(sources.values()):
        print("\nread in")
        for figure, places in sources.items():
            for place in places:
                print(f"  {figure}: {place}" if figure else f"  {place}")


def _value(profile: Profile, figure: str) -> str:
    """A figure as the profile's file would write it."""
    if figure == "power":
        radio = "" if profile.power.radio is None else f", radio {profile.power.radio:g} W beyond idle"
        return f"{profile.power.idle:g} to {profile.power.active:g} W{radio}"
    if figure == "accelerator":
        gpu = profile.accelerator
        assert gpu is not None
        parts = [gpu.name, units.format_flops(gpu.compute)]
        parts += [units.format_bytes(gpu.memory)] if gpu.memory else []
        parts += [units.format_byterate(gpu.memory_bandwidth)] if gpu.memory_bandwidth else []
        return ", ".join(parts)
    form = {"compute": units.format_flops, "memory_bandwidth": units.format_byterate}.get(figure, units.format_bytes)
    return form(getattr(profile, figure))


def _basis(basis: dict[str, str], figure: str) -> str:
    return basis.get(figure, "E not said")


def _bases(basis: dict[str, str]) -> str:
    return "/".join(_letter(basis.get(part, "E")) for part in ("memory", "compute", "memory_bandwidth", "power"))


def _letter(basis: str) -> str:
    # a figure that is measured but for an estimated part must not pass for measured
    return basis[0] + ("E" if "(E)" in basis and basis[0] != "E" else "")
