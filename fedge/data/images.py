"""Pictures as arrays ``[n, c, h, w]``, from arrays, files, bytes, and folders with a subfolder a class."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedge.data.tables import Column, Table
from fedge.errors import ConfigError, MissingError, Problem

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm")
#: Pictures of different sizes are brought to squares with this side at most.
LARGEST = 224


def looks(column: Column) -> bool:
    """Whether a column can hold pictures: arrays, bytes, or names of image files."""
    if isinstance(column, np.ndarray):
        return column.ndim in (3, 4)
    first = next((cell for cell in column if cell is not None), None)
    if isinstance(first, str):
        return first.lower().endswith(SUFFIXES)
    if isinstance(first, dict):
        return "bytes" in first or "path" in first
    return isinstance(first, bytes | Path) or hasattr(first, "convert") or _nested(first)


def _nested(cell: Any) -> bool:
    return isinstance(cell, list) and bool(cell) and isinstance(cell[0], list)


def arrays(tables: Sequence[Table], column: str) -> tuple[list[np.ndarray], tuple[str, ...]]:
    """The pictures of each table, uint8 or float32 ``[n, c, h, w]`` of one form, and notes on what was done to them."""
    cells = [table.columns[column] for table in tables]
    if all(isinstance(cell, np.ndarray) for cell in cells):
        found = [_array(table, column) for table in tables]
        if len({picture.shape[1:] for picture in found}) > 1:
            shapes = " and ".join(str(list(picture.shape[1:])) for picture in found)
            raise ConfigError(tables[1].problem(f"images of different shapes in train and test: {shapes}"))
        return found, ()
    pictures = [[_picture(table, column, row) for row in range(len(table))] for table in tables]
    return _alike(pictures)


def _array(table: Table, column: str) -> np.ndarray:
    found = np.asarray(table.columns[column])
    if found.ndim not in (3, 4) or not np.issubdtype(found.dtype, np.number):
        message = f"'{column}' is {found.dtype} {list(found.shape)}: images are numbers [n, h, w], [n, h, w, c]"
        raise ConfigError(table.problem(f"{message} or [n, c, h, w]"))
    if found.ndim == 3:
        found = found[:, None]
    elif found.shape[1] not in (1, 3) or (found.shape[3] in (1, 3) and found.shape[1] > found.shape[3]):
        found = np.moveaxis(found, 3, 1)
    if found.shape[1] not in (1, 3, 4):
        raise ConfigError(table.problem(f"'{column}' has {found.shape[1]} channels: 1, 3 or 4 can be read"))
    if np.issubdtype(found.dtype, np.integer):
        if found.size and (found.min() < 0 or found.max() > 255):
            raise ConfigError(table.problem(f"'{column}' holds whole numbers outside 0..255"))
        return np.ascontiguousarray(found, dtype=np.uint8)
    if not np.isfinite(found).all():
        raise ConfigError(table.problem(f"'{column}' holds values that are not finite"))
    return np.ascontiguousarray(found, dtype=np.float32)


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise MissingError("reading image files needs pillow", hint="pip install 'fedge[images]'") from None
    return Image


def _picture(table: Table, column: str, row: int) -> Any:
    """One cell as a Pillow image, in grey ('L') or colour ('RGB')."""
    cell = table.columns[column][row]
    pillow = _pillow()
    if isinstance(cell, dict):
        cell = cell.get("bytes") or cell.get("path")
    try:
        if isinstance(cell, str | Path):
            cell = pillow.open(table.folder / cell)
        elif isinstance(cell, bytes):
            cell = pillow.open(io.BytesIO(cell))
        elif isinstance(cell, list | np.ndarray):
            cell = pillow.fromarray(np.asarray(cell).astype(np.uint8))
        if cell is None or not hasattr(cell, "convert"):
            raise ConfigError(table.problem(f"no image in '{column}'", row))
        return cell.convert("L" if cell.mode in ("1", "L", "I", "I;16", "F", "LA") else "RGB")
    except FileNotFoundError:
        raise MissingError(f"{table.problem(f'no image file {cell}', row)}") from None
    except (OSError, ValueError, SyntaxError, TypeError, pillow.DecompressionBombError) as error:
        raise ConfigError(table.problem(f"not an image that can be read: {error}", row)) from None


def _alike(pictures: list[list[Any]]) -> tuple[list[np.ndarray], tuple[str, ...]]:
    every = [picture for split in pictures for picture in split]
    mode = "RGB" if any(picture.mode == "RGB" for picture in every) else "L"
    sizes = {picture.size for picture in every}
    side: int | None = None
    notes: tuple[str, ...] = ()
    if len(sizes) > 1:
        side = min(LARGEST, int(np.median([min(picture.size) for picture in every])))
        notes = (f"images of {len(sizes)} sizes were brought to {side}×{side}",)
    found = []
    for split in pictures:
        stacked = np.stack([_pixels(picture, mode, side) for picture in split])
        found.append(stacked)
    return found, notes


def _pixels(picture: Any, mode: str, side: int | None) -> np.ndarray:
    if side is not None:
        picture = picture.resize((side, side), _pillow().Resampling.BILINEAR)
    pixels = np.asarray(picture.convert(mode), dtype=np.uint8)
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(np.moveaxis(pixels, 2, 0))


def classes(folder: Path) -> dict[str, list[Path]]:
    """Class name -> its image files, for a folder with a subfolder a class; empty where it is none."""
    found = {}
    for inner in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
        files = sorted(path for path in inner.iterdir() if path.suffix.lower() in SUFFIXES)
        if files:
            found[inner.name] = files
    return found


def read_folder(folder: Path) -> tuple[Table, Table | None] | None:
    """An image folder: classes at the top, or within ``train`` and ``test`` (or ``val``); None where it holds none."""
    train = folder / "train"
    if train.is_dir() and classes(train):
        test = next((folder / name for name in ("test", "val", "validation") if (folder / name).is_dir()), None)
        if test is not None and not classes(test):
            raise ConfigError(Problem("no images in subfolders", str(test)))
        return _table(train), None if test is None else _table(test)
    return (_table(folder), None) if classes(folder) else None


def _table(folder: Path) -> Table:
    pairs = [(file.resolve(), name) for name, files in classes(folder).items() for file in files]
    return Table(str(folder), {"image": [file for file, _ in pairs], "label": [name for _, name in pairs]})
