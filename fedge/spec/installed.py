"""Methods that other installed packages bring: entry points of the group ``fedge.methods``, described once and kept.

    [project.entry-points."fedge.methods"]
    my_method = "my_package.my_module:MyMethod"

A method's fields lie in a file that imports torch, so another process reads them (``fedge.methods.describe``), the
first time that a package of this version and these files is met; afterwards its description comes from the cache.
A method that can't be used is listed all the same, with the reason.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Collection, Iterable
from dataclasses import replace
from hashlib import sha256
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fedge import __version__
from fedge.spec.cache import cache_folder, store
from fedge.spec.catalogue import MethodInfo, info_of

GROUP = "fedge.methods"
#: Seconds in which torch and the packages' modules must have been imported.
PATIENCE = 300.0


def installed(taken: Collection[str] = ()) -> tuple[MethodInfo, ...]:
    """Every method of the group by key; ``taken`` are fedge's own keys and aliases, which nobody else may use."""
    found: dict[str, list[EntryPoint]] = {}
    for point in entry_points(group=GROUP):
        found.setdefault(point.name, []).append(point)
    usable = [points[0] for name, points in found.items() if name not in taken and len({p.value for p in points}) == 1]
    rows = _described(usable) if usable else {}
    methods = []
    for name, points in sorted(found.items()):
        owner = _owner(points[0])
        if name in taken:
            why = "fedge has a method of this name; register it under another"
            methods += [_refused(point, why) for point in points]
        elif points[0] not in usable:
            owners = " and ".join(sorted(_owner(point) for point in points))
            methods.append(_refused(points[0], f"registered by {owners}", name))
        elif "error" in rows[name]:
            methods.append(_refused(points[0], rows[name]["error"], name))
        else:
            methods.append(replace(info_of(rows[name]), package=owner))
    return tuple(methods)


def _refused(point: EntryPoint, why: str, key: str | None = None) -> MethodInfo:
    owner = _owner(point)
    name = key or f"{owner}/{point.name}"
    return MethodInfo(name, point.value, (), "", package=owner, refused=why, module=point.value)


def _owner(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else point.value.partition(".")[0]


def _described(points: Iterable[EntryPoint]) -> dict[str, dict[str, Any]]:
    """A row of the catalogue for each, or ``{"error": why}``, by key."""
    rows: dict[str, dict[str, Any]] = {}
    missing: dict[str, tuple[EntryPoint, Path]] = {}
    for point in points:
        file = cache_folder() / "methods" / f"{_fingerprint(point)}.json"
        try:
            rows[point.name] = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            missing[point.name] = point, file
    if missing:
        read = _read([f"{name}={point.value}" for name, (point, _) in missing.items()])
        for name, (_, file) in missing.items():
            rows[name] = read.get(name, {"error": "its description could not be read"})
            if "error" not in rows[name]:  # what is wrong may be mended without a new version
                store(file, json.dumps(rows[name]))
    return rows


def _read(pairs: list[str]) -> dict[str, dict[str, Any]]:
    command = [sys.executable, "-m", "fedge.methods.describe", *pairs]
    path = {"PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path)}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, env={**os.environ, **path})
        found: dict[str, dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    except (OSError, ValueError, IndexError, subprocess.TimeoutExpired):
        return {}
    return found


def _fingerprint(point: EntryPoint) -> str:
    """What a description rests on: fedge's version, the package's, and the state of the module's file."""
    version = point.dist.version if point.dist is not None else ""
    about = [__version__, point.name, point.value, _owner(point), version, *_stamp(point.module)]
    return sha256(json.dumps(about).encode()).hexdigest()[:32]


def _stamp(module: str) -> list[Any]:
    """The path, time and size of a module's file, found without importing anything."""
    first, *rest = module.split(".")
    try:
        spec = find_spec(first)
    except (ImportError, ValueError):
        return []
    if spec is None:
        return []
    if rest and spec.submodule_search_locations:
        place = Path(spec.submodule_search_locations[0], *rest)
        file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    else:
        file = Path(spec.origin or "")
    try:
        known = file.stat()
    except OSError:
        return [str(file)]
    return [str(file), known.st_mtime_ns, known.st_size]
