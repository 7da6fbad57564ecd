"""Where a federation's words for its model and its data lead.

They are looked up in the raw values, so that one wrong key in a section doesn't hide a missing file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from fedge.errors import nearest
from fedge.spec.source import Source, beside

# names that mean the same whatever lies beside the file; the models' and data's rooms have what they stand for
BUNDLED_MODELS = ("vit-nano", "bert-nano", "gpt-nano")
BUNDLED_DATASETS = ("digits",)
_FILES = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet", ".npz", ".txt", ".zip", ".arrow")


def model_paths(given: object, folder: Path, source: Source) -> dict[str, str]:
    """The absolute ``name`` of a model that is a folder; empty for any other. given: what the file says under model."""
    at = "model.name" if isinstance(given, Mapping) else "model"
    name = given.get("name") if isinstance(given, Mapping) else given
    if not isinstance(name, str) or not name.strip() or "${" in name or name in BUNDLED_MODELS:
        return {}
    path = beside(folder, name)
    if path.is_dir():
        return {"name": str(path)}
    if path.is_file():
        source.report(at, "is a file; a model is a folder that holds a config.json")
    elif name.startswith((".", "/", "~")):
        source.report(at, f"no such folder: {path}")
    return {}


def data_paths(given: object, folder: Path, source: Source) -> dict[str, str]:
    """``dataset`` and ``test``, absolute where they name files. given: what the file says under data."""
    at = "data.dataset" if isinstance(given, Mapping) else "data"
    dataset = given.get("dataset") if isinstance(given, Mapping) else given
    found = {}
    if isinstance(dataset, str) and dataset.strip() and "${" not in dataset:
        found["dataset"] = _file(dataset, at, folder, source)
    test = given.get("test") if isinstance(given, Mapping) else None
    if isinstance(test, str) and test.strip() and not re.fullmatch(r"[\d.+-]+\s*%?|.*%", test.strip()):
        found["test"] = _file(test, "data.test", folder, source, must=True)
    return found


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
