"""What a source gave: texts or images with their labels, before any model has a say in their form."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Split:
    """Rows of one split. text: a string a row; image: uint8 (0..255) or float32, ``[n, c, h, w]``; label: int64
    ``[n]``; client: the key of each row's natural owner. A column that the data lacks is None."""

    text: list[str] | None = None
    image: np.ndarray | None = None
    label: np.ndarray | None = None
    client: list[str] | None = None

    def __len__(self) -> int:
        return len(self.text) if self.text is not None else len(self.image) if self.image is not None else 0

    def take(self, indices: np.ndarray) -> Split:
        """Some of the rows, copied."""
        return Split(
            None if self.text is None else [self.text[i] for i in indices],
            None if self.image is None else self.image[indices],
            None if self.label is None else self.label[indices],
            None if self.client is None else [self.client[i] for i in indices],
        )

    def pieces(self) -> Iterator[bytes]:
        """The content as bytes, with lengths, so that two different splits never give the same bytes."""
        for name, values in (("text", self.text), ("client", self.client)):
            if values is not None:
                yield f"{name}:{len(values)};".encode()
                for value in values:
                    coded = value.encode()
                    yield len(coded).to_bytes(8, "little") + coded
        for name, array in (("image", self.image), ("label", self.label)):
            if array is not None:
                yield f"{name}:{array.dtype.str}:{array.shape};".encode()
                yield np.ascontiguousarray(array).tobytes()


@dataclass(frozen=True)
class Raw:
    """A data set as read. kind: the task that it looks made for; names: of the classes, in label order; notes: what
    the reader decided that its user may want to know."""

    name: str
    kind: str
    train: Split
    test: Split
    names: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def noted(self, *notes: str) -> Raw:
        return replace(self, notes=(*self.notes, *notes))

    @property
    def sha256(self) -> str:
        """Over the content of both splits and the class names."""
        digest = hashlib.sha256("\x1f".join(self.names).encode())
        for split in (self.train, self.test):
            digest.update(b"split;")
            for piece in split.pieces():
                digest.update(piece)
        return digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        """What the run's record says of the data; JSON values only."""
        clients = self.train.client
        return {
            "dataset": self.name,
            "task": self.kind,
            "train_rows": len(self.train),
            "test_rows": len(self.test),
            "classes": len(self.names) or None,
            "labels": list(self.names),
            "clients": None if clients is None else len(set(clients)),
            "image": None if self.train.image is None else list(self.train.image.shape[1:]),
            "sha256": self.sha256,
            "notes": list(self.notes),
        }
