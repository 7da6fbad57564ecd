"""Encoded data on disk: prepared once, mapped by every process, so that all of them share one copy."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedge.core.task import Task
from fedge.data.encode import Data
from fedge.data.rows import Masking, Pixels, Rows
from fedge.errors import ConfigError, MissingError, Problem

_RECORD = "data.json"
_VERSION = 1


def save(data: Data, folder: Path) -> None:
    """Write ``data`` as a folder: a ``.npy`` for each column and ``data.json``.

    The folder appears whole or not at all; one that is there already is replaced.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    try:
        sets = {"train": data.train, "test": data.test, "public": data.public}
        record = {
            "version": _VERSION,
            "task": asdict(data.task),
            "sets": {name: _write(name, rows, beside) for name, rows in sets.items() if rows is not None},
            "keys": data.keys,
            "names": list(data.names),
            "sha256": data.sha256,
        }
        if data.labels is not None:
            np.save(beside / "partition_labels.npy", data.labels)
        (beside / _RECORD).write_text(json.dumps(record), encoding="utf-8")
        _replace(beside, folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _write(name: str, rows: Rows, folder: Path) -> dict[str, Any]:
    own = rows.gather()
    for column, values in own.columns.items():
        np.save(folder / f"{name}.{column}.npy", values.numpy())
    return {
        "columns": list(own.columns),
        "kind": own.kind,
        "pixels": None if own.pixels is None else asdict(own.pixels),
        "masking": None if own.masking is None else asdict(own.masking),
    }


def _replace(beside: Path, folder: Path) -> None:
    if folder.exists():
        old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
        os.rename(folder, old)
        os.rename(beside, folder)
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.rename(beside, folder)


def open(folder: Path, *, warm: bool = True) -> Data:
    """Data that ``save`` wrote, mapped: the pages belong to the file and are shared by all processes that open it.

    A write to a column would stay in the writer's own memory and never reach the file. warm: read every byte once, so
    that the pages are charged to this process and not to the device that happens to touch them first. MissingError
    where there is none, ConfigError where it is damaged.
    """
    path = folder / _RECORD
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingError(f"no prepared data in {folder}") from None
    except ValueError as error:
        raise ConfigError(Problem(f"damaged: {error}", str(path))) from None
    if record.get("version") != _VERSION:
        raise ConfigError(Problem(f"written by another version of fedge: {record.get('version')}", str(path)))
    sets = {name: _read(name, said, folder, warm) for name, said in record["sets"].items()}
    labels = folder / "partition_labels.npy"
    return Data(
        train=sets["train"],
        test=sets["test"],
        public=sets.get("public"),
        task=Task(**record["task"]),
        labels=np.load(labels) if labels.exists() else None,
        keys=record["keys"],
        names=tuple(record["names"]),
        sha256=record["sha256"],
    )


def _read(name: str, said: Mapping[str, Any], folder: Path, warm: bool) -> Rows:
    columns = {column: _mapped(folder / f"{name}.{column}.npy", warm) for column in said["columns"]}
    pixels, masking = said["pixels"], said["masking"]
    return Rows(
        columns,
        said["kind"],
        pixels=pixels and Pixels(pixels["scale"], tuple(pixels["mean"]), tuple(pixels["std"])),
        masking=masking and Masking(masking["token"], masking["vocabulary"], tuple(masking["special"])),
    )


def _mapped(path: Path, warm: bool) -> Tensor:
    try:
        if warm:
            with path.open("rb", buffering=0) as file:
                while file.read(1 << 20):
                    pass
        # 'c': private pages, as torch has no tensors that forbid writing
        return torch.from_numpy(np.load(path, mmap_mode="c", allow_pickle=False))
    except FileNotFoundError:
        raise MissingError(f"no prepared data: {path} is absent") from None
    except (ValueError, OSError) as error:
        raise ConfigError(Problem(f"damaged: {error}", str(path))) from None
