"""Data sets of the Hugging Face Hub, through the ``datasets`` library where it is installed."""

from __future__ import annotations

import re
from typing import Any

from fedge.data.tables import SUFFIXES, Table
from fedge.errors import ConfigError, MissingError


def looks(name: str) -> bool:
    """Whether a name has the form of a Hub id, 'owner/name' or 'owner/name:configuration'."""
    return bool(re.fullmatch(r"[\w-][\w.-]*/[\w.-]+(:[\w.-]+)?", name)) and not name.lower().endswith(SUFFIXES)


def read_hub(name: str) -> tuple[Table, Table | None]:
    """The train split, and the test (or else validation) split where there is one.

    MissingError without ``datasets``, or where the Hub does not give the set (unknown, closed, no network).
    """
    try:
        import datasets
    except ImportError:
        hint = "pip install 'fedge[hub]'"
        raise MissingError(f"'{name}' is no file here, and a Hub id needs datasets", hint=hint) from None
    owner, _, configuration = name.partition(":")
    try:
        found = datasets.load_dataset(owner, configuration or None)
    except Exception as error:  # the library raises what its network layers raise
        line = (str(error).strip() or type(error).__name__).split("\n")[0]
        raise MissingError(f"'{name}' is no file or folder here, and the Hub does not give it: {line}") from None
    if "train" not in found:
        raise ConfigError(f"the Hub data set '{name}' has no train split: it has {', '.join(found)}")
    test = next((found[split] for split in ("test", "validation") if split in found and _labelled(found[split])), None)
    return _table(name, found["train"]), None if test is None else _table(name, test)


def _labelled(split: Any) -> bool:
    """Whether the labels are there: a competition's test split has -1 in their place."""
    classes = [column for column, feature in split.features.items() if getattr(feature, "names", None)]
    return all(any(value >= 0 for value in split[column]) for column in classes)


def _table(name: str, split: Any) -> Table:
    declared = {
        column: list(feature.names) for column, feature in split.features.items() if getattr(feature, "names", None)
    }
    return Table(name, {column: list(split[column]) for column in split.column_names}, names=declared)
