"""Who may import whom, read from the syntax of every file (imports inside of functions included)."""

import ast
from pathlib import Path

import pytest

import fedge

ROOT = Path(fedge.__file__).parent
EVERYONE = {"errors"}
#: Room -> the rooms that it may import from, besides itself and what everyone may import.
MAY = {
    "errors": set(),
    "units": set(),
    "spec": {"units"},
    "core": set(),
    "models": {"core", "units"},
    "data": {"core", "units"},
    "codecs": {"core"},
    "privacy": {"core"},
    "meter": {"core"},
    "methods": {"core", "models", "data"} | {"codecs"},  # some methods are what they do to their messages
    "emulation": {"units"},
    "wire": {"units"},
    "plan": {"core", "models", "data", "codecs", "methods", "spec", "emulation", "units", "meter"},
    "export": {"models", "core", "data", "meter", "emulation", "units"},
    "run": {"plan", "wire", "emulation", "meter", "privacy", "codecs", "methods", "core", "spec", "units"}
    | {"models", "data", "export"}  # the zygote loads the base, the launcher saves and exports
    | {"report"},  # the launcher leaves trace.json, however it was called and however the run ended
    "report": {"spec", "units"},
    "testing": {"core", "models", "data", "codecs", "privacy", "meter", "methods", "emulation", "wire", "plan", "run"}
    | {"export", "report", "spec", "units"},
    "audit": {"core", "models", "data", "codecs", "privacy", "methods", "plan", "run", "spec"},
    "commands": {"audit", "report", "export", "run", "plan", "spec", "units"},
    "cli": {"commands", "report", "export", "run", "plan", "spec", "units"},
    "__main__": {"cli", "report", "export", "run", "plan", "spec", "units"},
}
#: File -> what it alone may import beyond its room's, and why.
ALSO = {
    "spec/codec.py": {"core"},  # the words of roles and steps in core/roles.py, which has no torch
    "spec/trust.py": {"core"},  # the words of core/trust.py, which has no torch
    "methods/generate.py": {"spec"},  # writes the catalogue that spec reads; no method imports it
    "commands/remote.py": {"wire"},  # keys are files, and no run is needed to make one
    "cli.py": {"data"},  # what is bundled, for a new federation's file
}
#: Of the emulation, planning needs the arithmetic of time and energy alone.
ARITHMETIC = {"emulation.roofline", "emulation.link", "emulation.power"}
#: The sockets, and what secures them.
ZEROMQ = ("wire/bus.py", "wire/line.py", "wire/curve.py")
NO_TORCH = ("units", "errors", "spec", "wire", "emulation", "report", "commands", "cli", "__main__")
HEAVY = {"torch", "transformers", "peft", "safetensors"}


def imports(path):
    """Full names of the modules that a file imports, whether they are packages or what they hold."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room(path):
    first = path.relative_to(ROOT).parts[0]
    return first.removesuffix(".py")


FILES = [path for path in sorted(ROOT.rglob("*.py")) if path.parent != ROOT or path.name != "__init__.py"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_file_imports_only_what_its_room_may(path):
    mine = room(path)
    assert mine in MAY, f"{mine} is a room that nobody described"
    allowed = MAY[mine] | {mine} | EVERYONE | ALSO.get(path.relative_to(ROOT).as_posix(), set())
    if path.parent == ROOT / "methods" / "combine":
        allowed = allowed | {"privacy"}
    for name in imports(path):
        parts = name.split(".")
        if parts[0] != "fedge" or len(parts) == 1 or parts[1] == "__version__":
            continue
        assert parts[1] in allowed, f"{mine} may not import {name}"
        if mine == "plan" and parts[1] == "emulation" and len(parts) > 2:
            assert ".".join(parts[1:3]) in ARITHMETIC


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_torch_and_zeromq_stay_where_they_belong(path):
    top = {name.split(".")[0] for name in imports(path)}
    if room(path) in NO_TORCH:
        assert not top & HEAVY
    if path.relative_to(ROOT).as_posix() not in ZEROMQ:
        assert "zmq" not in top


def test_privacy_is_for_combinators_alone():
    for path in FILES:
        if room(path) == "methods" and "fedge.privacy" in {n[:13] for n in imports(path)}:
            assert path.parent.name == "combine"
