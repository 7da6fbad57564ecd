"""Files of rows and columns, read as they stand: csv, tsv, jsonl, json, parquet, npz, plain text."""

from __future__ import annotations

import csv
import json
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fedge.errors import ConfigError, MissingError, Problem

Column = Sequence[Any] | np.ndarray


@dataclass(frozen=True)
class Table:
    """Columns of equal length from one file.

    lines: the line on which each row starts (from 1), where the file has lines. names: class names of columns that
    declare them, in label order. folder: where paths in the cells start.
    """

    file: str
    columns: Mapping[str, Column]
    lines: Sequence[int] | None = None
    names: Mapping[str, Sequence[str]] = field(default_factory=dict)
    folder: Path = Path()

    def __len__(self) -> int:
        return min((len(column) for column in self.columns.values()), default=0)

    def problem(self, message: str, row: int | None = None) -> Problem:
        """A mistake in this file, placed at a row (from 0) where one is to blame."""
        if row is not None and self.lines is None:
            message = f"row {row + 1}: {message}"
        return Problem(message, file=self.file, line=None if row is None or self.lines is None else self.lines[row])

    def take(self, rows: np.ndarray) -> Table:
        def picked(column: Column) -> Column:
            return column[rows] if isinstance(column, np.ndarray) else [column[row] for row in rows]

        columns = {name: picked(column) for name, column in self.columns.items()}
        lines = None if self.lines is None else [self.lines[row] for row in rows]
        return Table(self.file, columns, lines, self.names, self.folder)


def _lines(path: Path) -> Iterator[str]:
    """The file's lines, decoded; a ConfigError names the line that is not UTF-8."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise ConfigError(
                    Problem("not UTF-8 text", str(path), number, hint=f"byte {error.start + 1} of the line")
                ) from None


def _csv(path: Path, delimiter: str = ",") -> Table:
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(_lines(path), delimiter=delimiter, strict=True)
    header: list[str] = []
    rows: list[list[str]] = []
    lines: list[int] = []
    start = 1
    try:
        for row in reader:
            if not header:
                header = _header(path, row)
            elif row:
                if len(row) != len(header):
                    message = f"{len(row)} fields where the header has {len(header)}"
                    raise ConfigError(Problem(message, str(path), start, hint="quote a field that holds the delimiter"))
                rows.append(row)
                lines.append(start)
            start = reader.line_num + 1
    except csv.Error as error:
        raise ConfigError(Problem(f"not a row of csv: {error}", str(path), start)) from None
    columns = dict(zip(header, map(list, zip(*rows, strict=True)), strict=True)) if rows else {}
    return Table(str(path), columns, lines, folder=path.parent)


def _header(path: Path, row: list[str]) -> list[str]:
    names = [name.strip() for name in row]
    for mark, called in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars")):
        if len(names) == 1 and mark in names[0]:
            hint = "a .tsv file is divided by tabs" if mark == "\t" else "write it anew with commas"
            raise ConfigError(Problem(f"the header is divided by {called}, not commas", str(path), 1, hint=hint))
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(Problem(f"the header names '{twice[0]}' twice", str(path), 1))
    return names


def _jsonl(path: Path) -> Table:
    rows, lines = [], []
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ConfigError(Problem(f"not a JSON object: {error}", str(path), number)) from None
        if not isinstance(row, dict):
            raise ConfigError(Problem("not a JSON object", str(path), number, hint="a line each, in {braces}"))
        rows.append(row)
        lines.append(number)
    return Table(str(path), _columns(rows), lines, folder=path.parent)


def _json(path: Path) -> Table:
    try:
        rows = json.loads("".join(_lines(path)))
    except (ValueError, RecursionError) as error:
        raise ConfigError(Problem(f"not JSON: {error}", str(path), getattr(error, "lineno", None))) from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ConfigError(Problem("not a list of JSON objects", str(path)))
    return Table(str(path), _columns(rows), folder=path.parent)


def _columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _parquet(path: Path) -> Table:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise MissingError(f"{path}: a parquet file needs pyarrow", hint="pip install 'fedge[parquet]'") from None
    try:
        found = parquet.ParquetFile(path).read()
    except (pyarrow.ArrowException, OSError) as error:
        raise ConfigError(Problem(f"not a parquet file: {_first_line(error)}", str(path))) from None
    columns = {name: column.to_pylist() for name, column in zip(found.column_names, found.columns, strict=True)}
    return Table(str(path), columns, names=_declared(found.schema.metadata or {}), folder=path.parent)


def _declared(metadata: Mapping[bytes, bytes]) -> dict[str, list[str]]:
    """The class names that the Hugging Face ``datasets`` library leaves in a parquet file."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        return {name: feature["names"] for name, feature in features.items() if feature.get("_type") == "ClassLabel"}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


def _text(path: Path) -> Table:
    """Paragraphs divided by empty lines; lines, where the whole file is one paragraph."""
    paragraphs: list[list[str]] = [[]]
    starts: list[int] = []
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            if paragraphs[-1]:
                paragraphs.append([])
            continue
        if not paragraphs[-1]:
            starts.append(number)
        paragraphs[-1].append(line.rstrip("\r\n"))
    kept = [paragraph for paragraph in paragraphs if paragraph]
    if len(kept) == 1:
        return Table(str(path), {"text": kept[0]}, range(starts[0], starts[0] + len(kept[0])))
    return Table(str(path), {"text": ["\n".join(paragraph) for paragraph in kept]}, starts)


def _npz(path: Path) -> tuple[Table, Table | None]:
    """Arrays named ``*_train`` and ``*_test``, or arrays of equal length with a boolean ``is_test``."""
    path.open("rb").close()  # what can't be read at all is told by the caller
    if not zipfile.is_zipfile(path):
        hint = "numpy.savez writes one; a file that was cut short isn't one any more"
        raise ConfigError(Problem("not an .npz file, which is a zip of arrays", str(path), hint=hint))
    try:
        with np.load(path, allow_pickle=False) as found:
            arrays = {name: found[name] for name in found.files}
    except Exception as error:  # numpy, zip and inflation each have classes of their own for a damaged file
        raise ConfigError(Problem(f"not an .npz file of plain arrays: {_first_line(error)}", str(path))) from None
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):
            raise ConfigError(Problem(f"not an .npz file of plain arrays: '{name}' is no array", str(path)))
    if any(re.search(r"_(train|test)$", name) for name in arrays):
        train = {name[:-6]: array for name, array in arrays.items() if name.endswith("_train")}
        test = {name[:-5]: array for name, array in arrays.items() if name.endswith("_test") and name != "is_test"}
        if train:
            return _arrays(path, train), (_arrays(path, test) if test else None)
    whole = _arrays(path, {name: array for name, array in arrays.items() if array.ndim})
    mark = whole.columns.get("is_test")
    if mark is None:
        return whole, None
    apart = np.asarray(mark).astype(bool)
    return whole.take(np.flatnonzero(~apart)), whole.take(np.flatnonzero(apart))


def _arrays(path: Path, arrays: dict[str, np.ndarray]) -> Table:
    """The arrays that hold a value a row; one of another length (names, offsets) is not a column."""
    for name in ("x", "image", "images", "img", *arrays):
        if name in arrays:
            length = len(arrays[name])
            break
    else:
        raise ConfigError(Problem("no arrays", str(path)))
    columns = {name: array for name, array in arrays.items() if len(array) == length}
    for name in ("y", "label", "labels"):
        if name in arrays and name not in columns:
            raise ConfigError(Problem(f"'{name}' has {len(arrays[name])} values for {length} rows", str(path)))
    return Table(str(path), columns)


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__


def _refuse_pointer(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(20)
    if start == b"version https://git-":
        hint = "`git lfs pull` brings the data"
        raise ConfigError(Problem("a pointer of git-lfs, and not the data itself", str(path), hint=hint))


READERS: dict[str, Callable[[Path], Table]] = {
    ".csv": _csv,
    ".tsv": lambda path: _csv(path, "\t"),
    ".jsonl": _jsonl,
    ".json": _json,
    ".parquet": _parquet,
    ".txt": _text,
}
SUFFIXES = (*READERS, ".npz")


def read_file(path: Path) -> tuple[Table, Table | None]:
    """The rows of a file, and its own test rows where it holds both.

    ConfigError for a file that is not what its ending says or holds no rows; MissingError where its reader is absent.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(
            Problem(
                f"files of this kind cannot be read: {path.suffix or 'no ending'}",
                str(path),
                hint=f"one of {', '.join(SUFFIXES)}",
            )
        )
    try:
        _refuse_pointer(path)
        table, test = _npz(path) if path.suffix.lower() == ".npz" else (READERS[path.suffix.lower()](path), None)
    except OSError as error:
        raise MissingError(f"{path} cannot be read: {error.strerror or error}") from None
    for found in (table, test):
        if found is not None and not len(found):
            raise ConfigError(Problem("no rows", str(path)))
    return table, test
