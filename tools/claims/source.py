"""What a claim's figures rest on, as one hash: the code that measures it and all that it imports, data and versions.

Code counts by its syntax tree without docstrings, so that a comment, a reformatted line or another claim in the same
file leaves the hash as it is.
"""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Iterator
from functools import cache, partial
from hashlib import sha256
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fedge.methods.table import BUILT
from tools.claims.claim import Claim
from tools.claims.data import located

_OURS = ("fedge", "tools")
#: Modules that name others without any bearing on their figures.
_LISTS = ("fedge.methods.table", "fedge.errors", "tools.claims.claim", "tools.claims.source")
_PACKAGES = ("torch", "transformers", "peft", "numpy", "scikit-learn")


def fingerprint(claim: Claim) -> str:
    """The hash of one claim's source, data and versions."""
    digest = sha256(repr((claim.seeds, *_versions())).encode())
    measure: Any = claim.measure
    while isinstance(measure, partial):
        digest.update(repr((measure.args, sorted(measure.keywords.items()))).encode())
        measure = measure.func
    used, modules = _used(measure.__module__, measure.__name__)
    digest.update(used.encode())
    if claim.method in BUILT:
        modules = modules | {BUILT[claim.method].partition(":")[0]}
    for name in sorted(_closure(frozenset(modules))):
        digest.update(f"{name} {_tree_hash(name)}".encode())
    for name in claim.data:
        digest.update(f"{name} {_data_hash(name)}".encode())
    return digest.hexdigest()[:16]


def code(module: str) -> str:
    """The hash of the code of a module and of all in this project that it imports, and of the libraries' versions."""
    closure = sorted(_closure(frozenset({module})))
    return sha256(repr((_versions(), [_tree_hash(name) for name in closure])).encode()).hexdigest()[:16]


def kept_at(*parts: str | int) -> Path:
    """A file of the user's cache for what takes long to make and follows from ``parts`` alone."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fedge-claims"
    root.mkdir(parents=True, exist_ok=True)
    return root / ("-".join(str(part) for part in parts) + ".safetensors")


@cache
def _versions() -> tuple[str, ...]:
    python = f"python {sys.version_info.major}.{sys.version_info.minor}"
    return (python, *(f"{name} {version(name).partition('+')[0]}" for name in _PACKAGES))


def _used(module: str, function: str) -> tuple[str, set[str]]:
    """The syntax of a function and of all at its module's top level that it names, and the modules it draws on."""
    tree = _tree(module)
    defined: dict[str, list[ast.stmt]] = {}
    imported: dict[str, set[str]] = {}
    for node in tree.body:
        for name in _binds(node):
            defined.setdefault(name, []).append(node)
        if isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                imported.setdefault(alias.asname or alias.name.partition(".")[0], set()).update(_modules(node))
    seen: dict[str, str] = {}
    modules: set[str] = set()
    todo = [function]
    while todo:
        name = todo.pop()
        modules |= imported.get(name, set())
        if name in seen or name not in defined:
            continue
        seen[name] = "".join(ast.dump(node) for node in defined[name])
        inside = [inner for node in defined[name] for inner in ast.walk(node)]
        todo += [inner.id for inner in inside if isinstance(inner, ast.Name)]
        modules |= {found for inner in inside for found in _modules(inner)}
    return "".join(f"{name}={seen[name]}" for name in sorted(seen)), modules


def _binds(node: ast.stmt) -> Iterator[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        yield node.name
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    yield from (target.id for target in targets if isinstance(target, ast.Name))


@cache
def _closure(roots: frozenset[str]) -> frozenset[str]:
    """Modules of this project that some modules import, and those that these import, and so on."""
    found: set[str] = set()
    todo = [name for name in roots if _is_ours(name)]
    while todo:
        name = todo.pop()
        if name not in found and name not in _LISTS:
            found.add(name)
            todo += [other for node in ast.walk(_tree(name)) for other in _modules(node)]
    return frozenset(found)


def _modules(node: ast.AST) -> Iterator[str]:
    """Modules of this project that a statement imports."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names if _is_ours(alias.name))
    elif isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] in _OURS:
        for alias in node.names:
            within = f"{node.module}.{alias.name}"
            yield within if _is_ours(within) else node.module


@cache
def _is_ours(name: str) -> bool:
    return name.partition(".")[0] in _OURS and _file(name) is not None


@cache
def _file(name: str) -> Path | None:
    try:
        spec = find_spec(name)
    except ModuleNotFoundError:
        return None
    return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None


@cache
def _tree(name: str) -> ast.Module:
    file = _file(name)
    assert file is not None, name
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return tree


@cache
def _tree_hash(name: str) -> str:
    return sha256(ast.dump(_tree(name)).encode()).hexdigest()


@cache
def _data_hash(name: str) -> str:
    path = located(name)
    if path is None:
        return "bundled"
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    digest = sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()
