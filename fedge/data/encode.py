"""From what a source gave to what a model takes: tokens of fixed length, pixels of the model's shape."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fedge.core.task import Task
from fedge.data.partition import sample
from fedge.data.raw import Raw, Split
from fedge.data.rows import Masking, Pixels, Rows
from fedge.errors import ConfigError

_PIECE = 1024


@dataclass(frozen=True)
class Data:
    """Encoded data. train, test, public: rows; labels (int64) and keys: of each training row, for the partition, even
    where the task is language modelling; names: of the classes; sha256: of the raw content."""

    train: Rows
    test: Rows
    public: Rows | None
    task: Task
    labels: np.ndarray | None
    keys: list[str] | None
    names: tuple[str, ...] = ()
    sha256: str = ""


def encode(raw: Raw, preprocessor: Any, task: Task, length: int, inputs: Collection[str] = ()) -> Data:
    """Encode both splits of ``raw`` for a model.

    preprocessor: for texts a Hugging Face tokenizer; for images a Hugging Face image processor, or (channels, size),
    or None to keep them as they are. length: tokens in a row; shorter texts are padded and longer ones cut, so that
    every batch has the same shape. Images are brought to the model's size whole, their sides stretched where they
    must be; nothing is cropped. inputs: the names that the model's forward takes, where known; only those are kept.

    causal-lm: the texts of each client (of all, where there are none) are joined, an end token between them, and cut
    into windows of ``length`` tokens; what is left at the end is dropped, and a row is a window. ConfigError where the
    data does not go with the task or the model.
    """
    if task.kind == "image-classification":
        return _images(raw, preprocessor, task, inputs)
    if raw.train.text is None:
        raise ConfigError(f"the task {task.kind} needs texts, and {raw.name} has images")
    if preprocessor is None:
        raise ConfigError(f"the task {task.kind} needs a model with a tokenizer")
    if length < 2:
        raise ConfigError(f"a text needs a length of at least 2 tokens, not {length}")
    if task.kind == "causal-lm":
        return _windows(raw, preprocessor, task, length)
    return _padded(raw, preprocessor, task, length, inputs)


def split_public(data: Data, count: int, seed: int) -> Data:
    """Take ``count`` rows out of the training rows, to be shared by server and devices (``public``).

    Drawn with the labels' shares; done before the partition, so that no device owns a public row.
    """
    n = len(data.train)
    if count < 1:
        return data
    if count >= n:
        raise ConfigError(f"{count} public rows cannot be taken from {n} training rows")
    shared = sample(data.labels, n, count, seed, "public")
    own = np.setdiff1d(np.arange(n), shared)
    return replace(
        data,
        train=data.train.take(own),
        public=data.train.take(shared),
        labels=None if data.labels is None else data.labels[own],
        keys=None if data.keys is None else [data.keys[row] for row in own],
    )


def _data(raw: Raw, train: Rows, test: Rows, task: Task) -> Data:
    return Data(train, test, None, task, raw.train.label, raw.train.client, raw.names, raw.sha256)


def _classes(raw: Raw, task: Task) -> tuple[Tensor, Tensor]:
    if raw.train.label is None or raw.test.label is None:
        raise ConfigError(f"the task {task.kind} needs labels, and {raw.name} has none")
    if len(raw.names) > task.classes:
        raise ConfigError(f"{raw.name} has {len(raw.names)} classes and the model {task.classes}")
    return torch.from_numpy(raw.train.label), torch.from_numpy(raw.test.label)


# texts ------------------------------------------------------------------------------------------------------------


def _padded(raw: Raw, tokenizer: Any, task: Task, length: int, inputs: Collection[str]) -> Data:
    columns = [_tokens(split, tokenizer, length, inputs) for split in (raw.train, raw.test)]
    masking = None
    if task.kind == "masked-lm":
        masking = _masking(tokenizer)
    else:
        for own, labels in zip(columns, _classes(raw, task), strict=True):
            own["labels"] = labels
    train, test = (Rows(own, task.kind, masking=masking) for own in columns)
    return _data(raw, train, test, task)


def _masking(tokenizer: Any) -> Masking:
    if tokenizer.mask_token_id is None:
        raise ConfigError("the task masked-lm needs a tokenizer with a mask token, and this model's has none")
    special = tuple(sorted({int(token) for token in tokenizer.all_special_ids}))
    return Masking(int(tokenizer.mask_token_id), len(tokenizer), special)


def _tokens(split: Split, tokenizer: Any, length: int, inputs: Collection[str]) -> dict[str, Tensor]:
    """Tokens int32 and mask uint8, each ``[n, length]``, padded on the right."""
    texts = split.text or []
    padding = next((token for token in (tokenizer.pad_token_id, tokenizer.eos_token_id) if token is not None), 0)
    tokens = torch.full((len(texts), length), int(padding), dtype=torch.int32)
    mask = torch.zeros((len(texts), length), dtype=torch.uint8)
    kinds = torch.zeros((len(texts), length), dtype=torch.uint8) if "token_type_ids" in inputs else None
    for start in range(0, len(texts), _PIECE):
        found = tokenizer(texts[start : start + _PIECE], truncation=True, max_length=length, padding=False)
        for row, ids in enumerate(found["input_ids"], start):
            tokens[row, : len(ids)] = torch.tensor(ids, dtype=torch.int32)
            mask[row, : len(ids)] = 1
            if kinds is not None and "token_type_ids" in found:
                kinds[row, : len(ids)] = torch.tensor(found["token_type_ids"][row - start], dtype=torch.uint8)
    columns = {"input_ids": tokens}
    if not inputs or "attention_mask" in inputs:
        columns["attention_mask"] = mask
    if kinds is not None:
        columns["token_type_ids"] = kinds
    return columns


def _windows(raw: Raw, tokenizer: Any, task: Task, length: int) -> Data:
    train, keys = _cut(raw.train, tokenizer, length)
    test, _ = _cut(raw.test, tokenizer, length)
    for name, found in (("training", train), ("test", test)):
        if not len(found):
            raise ConfigError(f"the {name} texts of {raw.name} do not fill one window of {length} tokens")
    rows = [Rows({"input_ids": found}, task.kind) for found in (train, test)]
    return Data(rows[0], rows[1], None, task, None, keys, raw.names, raw.sha256)


def _cut(split: Split, tokenizer: Any, length: int) -> tuple[Tensor, list[str] | None]:
    """Windows int32 ``[n, length]`` and the client whose texts each one holds."""
    owners = split.client or [""] * len(split)
    streams: dict[str, list[int]] = {owner: [] for owner in owners}
    end = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    for owner, ids in zip(owners, _ids(split.text or [], tokenizer), strict=True):
        streams[owner].extend(ids)
        streams[owner].extend(end)
    windows, keys = [], []
    for owner, stream in streams.items():
        count = len(stream) // length
        windows.append(torch.tensor(stream[: count * length], dtype=torch.int32).view(count, length))
        keys += [owner] * count
    return torch.cat(windows) if windows else torch.zeros((0, length)), keys if split.client is not None else None


def _ids(texts: Sequence[str], tokenizer: Any) -> Iterator[list[int]]:
    for start in range(0, len(texts), _PIECE):
        piece = list(texts[start : start + _PIECE])
        # not verbose: a text longer than the model's window is cut up here and no cause for a warning
        yield from tokenizer(piece, add_special_tokens=False, truncation=False, padding=False, verbose=False)[
            "input_ids"
        ]


# images -----------------------------------------------------------------------------------------------------------


def _images(raw: Raw, processor: Any, task: Task, inputs: Collection[str]) -> Data:
    if raw.train.image is None or raw.test.image is None:
        raise ConfigError(f"the task {task.kind} needs images, and {raw.name} has texts")
    shape, mean, std = _target(processor, raw.train.image)
    name = "pixel_values" if not inputs or "pixel_values" in inputs else next(iter(inputs))
    scale = 1 / 255 if raw.train.image.dtype == np.uint8 else 1.0
    pixels = Pixels(scale, mean, std)
    rows = [
        Rows({name: _shaped(split.image, shape), "labels": labels}, task.kind, pixels=pixels)
        for split, labels in zip((raw.train, raw.test), _classes(raw, task), strict=True)
        if split.image is not None
    ]
    return _data(raw, rows[0], rows[1], task)


def _target(processor: Any, images: np.ndarray) -> tuple[tuple[int, int, int], tuple[float, ...], tuple[float, ...]]:
    """(channels, height, width) that the model takes, and the mean and deviation by which pixels are normalised."""
    _, own, height, width = images.shape
    if processor is None:
        return (own, height, width), (), ()
    if isinstance(processor, tuple | list):
        channels, size = processor
        return (int(channels), *_sides(size, (height, width))), (), ()
    mean = tuple(float(value) for value in getattr(processor, "image_mean", None) or ())
    std = tuple(float(value) for value in getattr(processor, "image_std", None) or ())
    channels = len(mean) or 3
    if not mean or not std or getattr(processor, "do_normalize", True) is False:
        mean, std = (), ()
    size = getattr(processor, "crop_size", None) if getattr(processor, "do_center_crop", False) else None
    size = size or getattr(processor, "size", None)
    if getattr(processor, "do_resize", True) is False:
        size = None
    return (channels, *_sides(size, (height, width))), mean, std


def _sides(size: Any, own: tuple[int, int]) -> tuple[int, int]:
    if size is None:
        return own
    if isinstance(size, int):
        return size, size
    if isinstance(size, tuple | list):
        return int(size[0]), int(size[1])
    found = dict(size)
    if "height" in found and "width" in found:
        return int(found["height"]), int(found["width"])
    if "shortest_edge" in found:
        return int(found["shortest_edge"]), int(found["shortest_edge"])
    raise ConfigError(f"cannot tell the image size that the model takes from {found}")


def _shaped(images: np.ndarray, shape: tuple[int, int, int]) -> Tensor:
    """Images of the wanted channels and size, in the type that they had; resized bilinearly with antialiasing."""
    channels, height, width = shape
    found = torch.from_numpy(images)
    if tuple(found.shape[1:]) == shape:
        return found
    out = torch.empty((len(found), *shape), dtype=found.dtype)
    for start in range(0, len(found), _PIECE):
        piece = _recoloured(found[start : start + _PIECE].float(), channels)
        if piece.shape[2:] != (height, width):
            piece = functional.interpolate(piece, (height, width), mode="bilinear", antialias=True)
        if found.dtype == torch.uint8:
            piece = piece.round().clamp(0, 255)
        out[start : start + _PIECE] = piece.to(found.dtype)
    return out


def _recoloured(images: Tensor, channels: int) -> Tensor:
    own = images.shape[1]
    if own == 4 and channels != 4:
        images, own = images[:, :3], 3
    if own == channels:
        return images
    if own == 1:
        return images.expand(-1, channels, -1, -1)
    if own == 3 and channels == 1:
        # the eye's weights for red, green and blue (ITU-R BT.601)
        return (images * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    raise ConfigError(f"images with {own} channels cannot be given to a model that takes {channels}")
