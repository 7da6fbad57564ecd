"""The YAML that comes with fedge: device profiles, link classes and federations to copy."""

from __future__ import annotations

from functools import cache
from pathlib import Path

#: Files beside the devices' profiles that hold something else: link classes, and rates of software stacks.
TABLES = ("links", "rates")


@cache
def shipped(kind: str) -> Path:
    """The folder of ``'devices'`` or ``'federations'``: in an installed wheel, or at the top of a checkout."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "_shipped" / kind
    return inside if inside.is_dir() else package.parent / kind


def names(kind: str) -> tuple[str, ...]:
    """The names of the shipped files, sorted, without their suffix."""
    return tuple(sorted(path.stem for path in shipped(kind).glob("*.yaml") if path.stem not in TABLES))
