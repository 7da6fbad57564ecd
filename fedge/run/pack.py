"""A device's own data as one body of bytes: what a device on another machine is sent, and how it is read there."""

from __future__ import annotations

import io
import re
import tempfile
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from fedge.data import store
from fedge.data.encode import Data
from fedge.data.rows import Rows
from fedge.errors import ProtocolError
from fedge.run.evaluate import share_of

_FILE = re.compile(r"data\.json|[A-Za-z0-9_.-]{1,120}\.npy")


def packed(data: Data, rows: np.ndarray, tests: np.ndarray | None, *, share: int | None, seed: int) -> bytes:
    """The rows of one device and the public ones, with those on which it tests a model of its own.

    rows, tests: indices into ``data.train``; what comes of them lies in this order. share: how many of the test split
    a device without ``tests`` has, 0 where no device tests anything.
    """
    own = rows if tests is None else np.concatenate([rows, tests])
    train = data.train.take(torch.from_numpy(np.ascontiguousarray(own, dtype=np.int64)))
    test = data.test.take(torch.arange(1)) if share == 0 else share_of(data.test, share, seed)
    assert isinstance(test, Rows)
    part = replace(data, train=train, test=test, labels=None, keys=None)
    with tempfile.TemporaryDirectory(prefix="fedge-pack-") as place:
        store.save(part, Path(place, "data"))
        body = io.BytesIO()
        with zipfile.ZipFile(body, "w", zipfile.ZIP_STORED) as archive:
            for file in sorted(Path(place, "data").iterdir()):
                # a date of its own would give every pack another digest
                archive.writestr(zipfile.ZipInfo(file.name), file.read_bytes())
    return body.getvalue()


def unpack(body: Path, folder: Path, most: int) -> None:
    """Lay a pack's files into a new folder; ``most`` bytes at most. ProtocolError for anything that is no pack."""
    folder.mkdir()
    try:
        with zipfile.ZipFile(body) as archive:
            inside = archive.infolist()
            if sum(file.file_size for file in inside) > most:
                raise ProtocolError("the coordinator's data is larger than what was announced")
            for file in inside:
                if not _FILE.fullmatch(file.filename) or file.compress_type != zipfile.ZIP_STORED:
                    raise ProtocolError(f"the coordinator's data holds '{file.filename[:80]}'")
                (folder / file.filename).write_bytes(archive.read(file))
    except zipfile.BadZipFile as error:
        raise ProtocolError(f"the coordinator's data can't be read: {error}") from None
