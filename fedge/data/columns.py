"""Which columns of a table hold texts, images, labels and clients, and their values in one form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fedge.data import images
from fedge.data.raw import Raw, Split
from fedge.data.tables import Table
from fedge.errors import ConfigError, nearest

TEXT = ("text", "sentence", "content", "document", "review", "utterance")
#: Columns that together make one text to model.
JOINED = (
    ("instruction", "input", "output"),
    ("instruction", "output"),
    ("question", "answer"),
    ("prompt", "completion"),
    ("prompt", "response"),
)
LABEL = ("label", "labels", "category", "y", "class", "target", "label_name")
IMAGE = ("image", "images", "img", "x", "pixels")
CLIENT = ("client",)
GENERATIVE = ("causal-lm", "masked-lm")


@dataclass(frozen=True)
class Told:
    """What the user said of the data; None where the names of the columns must do. text may join columns by '+'."""

    text: str | None = None
    label: str | None = None
    image: str | None = None
    client: str | None = None
    task: str | None = None


@dataclass(frozen=True)
class Picked:
    """The columns found, by role; several texts are joined by a line break."""

    text: tuple[str, ...]
    image: str | None
    label: str | None
    client: str | None
    kind: str


def pick(table: Table, told: Told) -> Picked:
    """Find each role's column; ConfigError (with the columns that there are) for one that is absent or in doubt."""
    text = _told_text(table, told.text)
    image = _told(table, told.image, "image")
    label = _told(table, told.label, "label") or _found(table, LABEL)
    client = _told(table, told.client, "client") or _found(table, CLIENT)
    generative = told.task in GENERATIVE
    if not text and not image:
        if told.task is None or told.task == "image-classification":
            image = _found_image(table)
        if image is None and told.task != "image-classification":
            text = _found_text(table)
    if not text and not image:
        what = "an image" if told.task == "image-classification" else "a text or image"
        raise ConfigError(table.problem(f"cannot tell which column holds {what}: {_listed(table)}; name it"))
    if told.task is not None and (told.task == "image-classification") != (image is not None):
        raise ConfigError(table.problem(f"the task {told.task} does not go with {'images' if image else 'texts'}"))
    if label is None and not generative and (image or told.task == "text-classification"):
        raise ConfigError(table.problem(f"cannot tell which column holds the labels: {_listed(table)}; name it"))
    guess = "image-classification" if image else "text-classification" if label else "causal-lm"
    return Picked(text if not image else (), image, label, client, told.task or guess)


def _listed(table: Table) -> str:
    return f"the columns are {', '.join(table.columns)}"


def _told(table: Table, name: str | None, role: str) -> str | None:
    if name is None or name in table.columns:
        return name
    hint = nearest(name, table.columns)
    message = f"no column '{name}' for the {role}: {_listed(table)}{'; ' + hint if hint else ''}"
    raise ConfigError(replace(table.problem(message), key=role))


def _told_text(table: Table, name: str | None) -> tuple[str, ...]:
    if name is None:
        return ()
    parts = (name,) if name in table.columns else tuple(part.strip() for part in name.split("+"))
    return tuple(str(_told(table, part, "text")) for part in parts)


def _found(table: Table, known: Sequence[str]) -> str | None:
    lowered = {name.lower(): name for name in reversed(list(table.columns))}
    return next((lowered[name] for name in known if name in lowered), None)


def _found_image(table: Table) -> str | None:
    name = _found(table, IMAGE)
    return name if name is not None and images.looks(table.columns[name]) else None


def _found_text(table: Table) -> tuple[str, ...]:
    single = _found(table, TEXT)
    if single is not None:
        return (single,)
    lowered = {name.lower(): name for name in table.columns}
    return next((tuple(lowered[name] for name in names) for names in JOINED if all(n in lowered for n in names)), ())


def convert(name: str, train: Table, test: Table | None, told: Told) -> tuple[Raw, Split | None]:
    """Tables -> a Raw whose test split is empty, and the source's own test split where it has one."""
    picked = pick(train, told)
    tables = [train] if test is None else [train, test]
    for table in tables[1:]:
        for column in (*picked.text, picked.image, picked.client):
            if column is not None and column not in table.columns:
                raise ConfigError(table.problem(f"no column '{column}', which {train.file} has: {_listed(table)}"))
    pictures: list[np.ndarray] | list[None] = [None] * len(tables)
    notes: tuple[str, ...] = ()
    if picked.image is not None:
        pictures, notes = images.arrays(tables, picked.image)
    labels, names = _labels(tables, picked)
    splits = [
        Split(
            text=_texts(table, picked.text) if picked.text else None,
            image=picture,
            label=label,
            client=_clients(table, picked.client) if picked.client is not None else None,
        )
        for table, picture, label in zip(tables, pictures, labels, strict=True)
    ]
    return Raw(name, picked.kind, splits[0], Split(), names, notes), splits[1] if test is not None else None


def _texts(table: Table, columns: tuple[str, ...]) -> list[str]:
    texts = []
    for row in range(len(table)):
        parts = []
        for column in columns:
            cell = table.columns[column][row]
            if cell is not None and not isinstance(cell, str):
                raise ConfigError(table.problem(f"'{column}' holds {type(cell).__name__}, not text", row))
            if cell and cell.strip():
                parts.append(cell.strip() if len(columns) > 1 else cell)
        if not parts:
            raise ConfigError(table.problem(f"no text in '{'+'.join(columns)}'", row))
        texts.append("\n".join(parts))
    return texts


def _clients(table: Table, column: str) -> list[str]:
    keys = [_plain(cell) for cell in table.columns[column]]
    for row, key in enumerate(keys):
        if key is None:
            raise ConfigError(table.problem(f"no value in '{column}', which says whose the row is", row))
    return [str(key) for key in keys]


def _plain(cell: Any) -> int | str | None:
    """A label or key as a whole number where it is one, else as text; None where it is absent."""
    if isinstance(cell, np.generic):
        cell = cell.item()
    if cell is None or (isinstance(cell, float) and cell != cell):
        return None
    if isinstance(cell, float) and cell.is_integer():
        return int(cell)
    if isinstance(cell, bool | int):
        return int(cell)
    text = str(cell).strip()
    if not text:
        return None
    digits = text.removeprefix("-")
    return int(text) if digits.isascii() and digits.isdigit() and (digits == "0" or digits[0] != "0") else text


def _labels(tables: list[Table], picked: Picked) -> tuple[list[np.ndarray] | list[None], tuple[str, ...]]:
    """Class numbers for each table, and the classes' names; classes are those of the train table, sorted."""
    column = picked.label
    if column is None:
        return [None] * len(tables), ()
    try:
        values = [_label_values(table, column) for table in tables]
        names = _names(tables[0], column, values[0])
        for table, found in zip(tables, values, strict=True):
            for row, value in enumerate(found):
                if value not in names:
                    fault = "has no name" if column in tables[0].names else "is in no row of the train split"
                    raise ConfigError(table.problem(f"the label '{value}' {fault}", row))
    except ConfigError:
        if picked.kind in GENERATIVE:
            return [None] * len(tables), ()
        raise
    number = {value: at for at, value in enumerate(names)}
    return [np.array([number[value] for value in found], dtype=np.int64) for found in values], tuple(names.values())


def _label_values(table: Table, column: str) -> list[int | str]:
    if column not in table.columns:
        raise ConfigError(table.problem(f"no column '{column}' for the label: {_listed(table)}"))
    cells = table.columns[column]
    if isinstance(cells, np.ndarray) and cells.ndim != 1:
        raise ConfigError(table.problem(f"'{column}' has the shape {list(cells.shape)}: one label a row is needed"))
    values: list[int | str] = []
    for row, cell in enumerate(cells):
        value = None if isinstance(cell, list | dict) else _plain(cell)
        if value is None:
            raise ConfigError(table.problem(f"no label in '{column}'", row))
        if isinstance(cell, float | np.floating) and isinstance(value, str):
            raise ConfigError(table.problem(f"'{column}' holds {cell}, and a label is a whole number or a word", row))
        values.append(value)
    return values


def _names(table: Table, column: str, values: list[int | str]) -> dict[int | str, str]:
    """Label value -> class name, in class order."""
    declared = table.names.get(column)
    if declared:
        return {number: str(name) for number, name in enumerate(declared)}
    # 10 before 9 would be wrong, and numbers may stand among words
    order = sorted(set(values), key=lambda value: (isinstance(value, str), value))
    names = {value: str(value) for value in order}
    beside = table.columns.get("label_name")
    if beside is not None and column != "label_name":
        first: dict[int | str, str] = {}
        for row, value in enumerate(values):
            said = str(_plain(beside[row]) or "")
            if said and first.setdefault(value, said) != said:
                message = f"label {value} is named '{said}' here and '{first[value]}' before"
                raise ConfigError(table.problem(message, row))
        names.update(first)
    return names
