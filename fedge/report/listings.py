"""What there is to choose from, methods and codecs; as rows for ``--json`` and as tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fedge.errors import ConfigError, nearest
from fedge.report.tables import table
from fedge.spec import catalogue as catalogues
from fedge.spec.catalogue import CodecInfo, MethodInfo

Listing = tuple[dict[str, Any], Callable[[], None]]


def methods_table(stage: str | None = None, built: bool = False) -> Listing:
    """Every method known, those that are built first, then in the order of stages and paths."""
    order = ("train", "customize", "deploy")
    found = [m for m in catalogues.load().methods if (stage is None or stage in m.stages) and (m.built or not built)]
    found.sort(key=lambda m: (not m.built, min((order.index(s) for s in m.stages), default=len(order)), m.path, m.key))
    rows = [_method_row(info) for info in found]

    def show() -> None:
        shown = [
            {
                **row,
                "path": info.path if info.path.startswith(order) else f"{info.path} ({row['stage']})",
                "stars": _stars(info),
                "built": _built(info),
            }
            for row, info in zip(rows, found, strict=True)
        ]
        headings = {"key": "method", "name": "name", "path": "taxonomy", "stars": "c/e/s", "built": "built"}
        table(shown, headings)
        print("\nc/e/s: the survey's stars, 1 to 3: effort to build (less is better), little sent, light to compute")

    return {"methods": rows}, show


def _method_row(info: MethodInfo) -> dict[str, Any]:
    stars = info.stars or (None, None, None)
    return {
        "key": info.key,
        "name": info.name,
        "stage": ", ".join(info.stages),
        "path": info.path,
        "built": info.built,
        "complexity": stars[0],
        "efficiency": stars[1],
        "scalability": stars[2],
        "aliases": ", ".join(info.aliases),
        "citation": info.citation,
        "paper": info.paper,
        "summary": info.summary,
        "nearest": info.nearest if not info.built else None,
        "package": info.package,
        "refused": info.refused,
    }


def _built(info: MethodInfo) -> str:
    if info.refused is not None:
        return f"no; {info.refused}"
    if info.built:
        return f"yes, by {info.package}" if info.package else "yes"
    return f"no; near: {info.nearest}" if info.nearest else "no"


def _stars(info: MethodInfo) -> str | None:
    return "/".join(str(star) for star in info.stars) if info.stars else None


def method_card(word: str) -> Listing:
    """One method's card and fields. Raises ConfigError when there is none of this name."""
    known = catalogues.load()
    info = known.find(word)
    if info is None:
        hint = nearest(word, [name for m in known.methods for name in (m.key, *m.aliases)])
        raise ConfigError(f"no method '{word}'" + (f" ({hint})" if hint else ""))
    row = _method_row(info)
    fields = _fields(info)
    document = {**row, "leaves": list(info.leaves), "deviations": list(info.deviations), "tasks": list(info.tasks)}

    def show() -> None:
        print(f"{info.key}: {info.name}")
        for label, text in (
            ("", info.summary),
            ("stage", row["stage"]),
            ("taxonomy", info.path),
            ("stars c/e/s", _stars(info)),
            ("paper", info.paper or info.citation),
            ("also called", row["aliases"]),
            ("leaves the device", "; ".join(info.leaves)),
            ("in the roles", ", ".join(info.roles)),
            ("does not hold", "; ".join(f"{name}: {why}" for name, why in info.waives.items())),
            ("unlike the paper", "; ".join(info.deviations)),
            ("tasks", ", ".join(info.tasks)),
            ("package", info.package),
            ("can't be used", info.refused),
            ("not built; nearest", row["nearest"]),
        ):
            if text:
                print(f"  {label}: {text}" if label else f"  {text}")
        if fields:
            print()
            shown = [{**f, "default": "none" if f["default"] is None else f["default"]} for f in fields]
            table(shown, {"field": "field", "type": "type", "default": "default", "doc": "what it is"})

    return {"methods": [document | {"fields": fields}]}, show


def codecs_table(word: str | None = None) -> Listing:
    """Every codec in the order in which a chain may hold them, or one with its fields. Raises ConfigError."""
    known = catalogues.load().codecs
    found = [info for info in known if word in (None, info.key)]
    if not found:
        hint = nearest(word or "", [info.key for info in known])
        raise ConfigError(f"no codec '{word}'" + (f" ({hint})" if hint else ""))
    rows = [
        {
            "key": info.key,
            "steps": ", ".join(info.steps),
            "roles": ", ".join(info.roles),
            "lossless": info.lossless,
            "fixed": info.fixed,
            "summary": info.summary,
            "paper": info.paper,
            "fields": _fields(info),
        }
        for info in found
    ]

    def show() -> None:
        if word is None:
            table(rows, {"key": "codec", "steps": "does", "summary": "what is sent", "roles": "may touch"})
            print("\na chain goes from top to bottom: transform, sparsify, quantise, entropy; each once for a role")
            return
        row = rows[0]
        print(f"{row['key']}: {row['summary']}")
        length = "known from the shapes" if row["fixed"] else "depends on the numbers; the plan takes the greatest"
        for label in ("steps", "roles", "paper"):
            print(f"  {label}: {row[label]}")
        print(f"  length: {length}\n")
        table(row["fields"], {"field": "field", "type": "type", "default": "default", "doc": "what it is"})

    return {"codecs": rows}, show


def _fields(info: MethodInfo | CodecInfo) -> list[dict[str, Any]]:
    return [
        {"field": name, "type": o.type, "default": _listed(o.default), "doc": o.doc, "choices": list(o.choices)}
        for name, o in info.fields.items()
    ]


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
