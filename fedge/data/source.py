"""One way in to data: a bundled name, a file, a folder or a Hub id becomes a ``Raw``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from fedge.core.task import TASKS
from fedge.data import hub, images
from fedge.data.bundled import BUNDLED, digits
from fedge.data.columns import GENERATIVE, Told, convert
from fedge.data.partition import sample
from fedge.data.raw import Raw
from fedge.data.tables import SUFFIXES, Table, read_file
from fedge.errors import ConfigError, MissingError, Problem, nearest

#: The share of rows that is kept for the test where the source has no test split.
TEST_SHARE = 0.2


def read(
    dataset: str,
    *,
    folder: Path,
    text: str | None = None,
    label: str | None = None,
    image: str | None = None,
    client: str | None = None,
    test: str | float | None = None,
    task: str | None = None,
    rows: int | None = None,
    seed: int,
) -> Raw:
    """Read a data set.

    dataset: a bundled name (``digits``); a csv, tsv, jsonl, json, parquet, npz or txt file; a folder that holds train
    and test files or images in a subfolder a class; or a Hub id. Paths start at ``folder``. text, label, image,
    client: column names where common ones do not do; ``text`` joins columns as 'question+answer'. test: a file, or the
    share of the rows kept apart; by default the source's own test split, or else 20 %, drawn with each label's share
    (for plain text: its end). task: one of ``TASKS``. rows: at most so many training rows, drawn with the labels'
    shares.

    ConfigError for data that is wrong, MissingError for data or a package that is not there.
    """
    if task is not None and task not in TASKS:
        raise ConfigError(f"unknown task '{task}': one of {', '.join(TASKS)}")
    told = Told(text, label, image, client, task)
    name, train, own = _tables(dataset, folder)
    if isinstance(test, str):
        own = read_file(_existing(test, folder))[0]
    elif test is not None:
        own = None
    raw, tested = convert(name, train, own, told)
    if tested is None:
        share = TEST_SHARE if test is None or isinstance(test, str) else float(test)
        raw = _divided(raw, share, seed, tail=train.file.lower().endswith(".txt"))
    else:
        raw = replace(raw, test=tested)
    return raw if rows is None else _capped(raw, rows, seed)


def _tables(dataset: str, folder: Path) -> tuple[str, Table, Table | None]:
    if dataset in BUNDLED:
        return dataset, digits(), None
    path = folder / Path(dataset).expanduser()
    if path.is_dir():
        return path.name, *_read_folder(path)
    if path.exists():
        return path.name, *read_file(path)
    if hub.looks(dataset):
        return dataset, *hub.read_hub(dataset)
    _existing(dataset, folder)
    raise AssertionError


def _existing(name: str, folder: Path) -> Path:
    path = folder / Path(name).expanduser()
    if path.is_file():
        return path
    near = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    hint = nearest(path.name, [*near, *BUNDLED])
    raise MissingError(f"no data set '{name}': there is no file or folder {path}", hint=hint)


def _read_folder(folder: Path) -> tuple[Table, Table | None]:
    for suffix in SUFFIXES:
        train = folder / f"train{suffix}"
        if train.is_file():
            test = next(
                (
                    folder / f"{name}{suffix}"
                    for name in ("test", "validation", "dev")
                    if (folder / f"{name}{suffix}").is_file()
                ),
                None,
            )
            return read_file(train)[0], None if test is None else read_file(test)[0]
    found = images.read_folder(folder)
    if found is not None:
        return found
    files = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    hint = f"name a file of it: {', '.join(files[:5])}" if files else None
    raise ConfigError(
        Problem("a folder without train.csv (or the like) and without images in subfolders", str(folder), hint=hint)
    )


def _divided(raw: Raw, share: float, seed: int, *, tail: bool) -> Raw:
    if not 0 < share < 1:
        raise ConfigError(f"the test share must lie between 0 and 1, not {share}")
    n = len(raw.train)
    if n < 2:
        raise ConfigError(f"{raw.name} has {n} row: too few to keep some for the test")
    count = min(max(1, round(share * n)), n - 1)
    kept = np.zeros(n, dtype=bool)
    kept[np.arange(n - count, n) if tail else _drawn(raw.train.label, n, count, seed)] = True
    divided = replace(raw, train=raw.train.take(np.flatnonzero(~kept)), test=raw.train.take(np.flatnonzero(kept)))
    _check_trainable(divided)
    return divided.noted(f"{'the last' if tail else 'a drawn'} {count} rows are the test split")


def _drawn(labels: np.ndarray | None, n: int, count: int, seed: int) -> np.ndarray:
    """Rows for the test split; the only row of a label stays with the train split."""
    if labels is None:
        return sample(None, n, count, seed, "test split")
    eligible = np.flatnonzero(np.bincount(labels)[labels] > 1)
    if not len(eligible):
        raise ConfigError(f"each of the {n} rows has a label of its own: none can be kept for the test")
    return eligible[sample(labels[eligible], len(eligible), count, seed, "test split")]


def _check_trainable(raw: Raw) -> None:
    if raw.train.label is None or raw.test.label is None or raw.kind in GENERATIVE:
        return
    absent = np.setdiff1d(raw.test.label, raw.train.label)
    if len(absent):
        raise ConfigError(
            f"{raw.name}: all rows of the label '{raw.names[int(absent[0])]}' fell into the test split; "
            "give it more rows, or a test file"
        )


def _capped(raw: Raw, rows: int, seed: int) -> Raw:
    if rows < 1:
        raise ConfigError(f"rows must be at least 1, not {rows}")
    n = len(raw.train)
    if rows >= n:
        return raw
    kept = sample(raw.train.label, n, rows, seed, "rows")
    return replace(raw, train=raw.train.take(kept)).noted(f"{rows} of {n} training rows were drawn")
