"""The run folder: the only thing that knows where a run's files lie. Every file is either whole or absent."""

from __future__ import annotations

import json
import os
import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedge.errors import MissingError


class RunFolder:
    """``runs/<time>-<name>/`` and the files in it; see ``new`` and ``open``."""

    def __init__(self, path: Path):
        self.path = path

    @classmethod
    def new(cls, name: str, parent: Path) -> RunFolder:
        """Make a fresh folder; MissingError when that can't be done there."""
        stamp = time.strftime("%Y%m%d-%H%M%S")
        for attempt in range(1000):
            path = parent / (f"{stamp}-{name}" if not attempt else f"{stamp}-{name}-{attempt}")
            try:
                path.mkdir(parents=True, exist_ok=False)
            except FileExistsError:
                continue
            except OSError as error:
                raise MissingError(
                    f"the run folder {path} can't be made: {error.strerror}", hint="--runs DIR chooses another place"
                ) from error
            for part in ("checkpoints", "devices"):
                (path / part).mkdir()
            return cls(path)
        raise MissingError(f"no name is left for a run in {parent}")

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """An existing run; MissingError when the folder isn't one."""
        if not (path / "resolved.yaml").is_file():
            raise MissingError(f"{path} is not a run's folder: it has no resolved.yaml")
        return cls(path)

    def file(self, *parts: str) -> Path:
        return self.path.joinpath(*parts)

    def device_log(self, device: str) -> Path:
        return self.path / "devices" / f"{device}.log"

    def write(self, name: str, text: str | bytes) -> None:
        """Write a file beside and rename it."""
        write_whole(self.path / name, text)

    def write_json(self, name: str, value: Any) -> None:
        self.write(name, json.dumps(value, indent=2, allow_nan=False, default=_plain) + "\n")

    def read_json(self, name: str) -> Any:
        return json.loads((self.path / name).read_text())

    def append(self, name: str, record: Mapping[str, Any]) -> None:
        """Add a line to a ``.jsonl`` file in one system call, so that a line is whole or absent."""
        line = json.dumps(record, allow_nan=False, default=_plain) + "\n"
        handle = os.open(self.path / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(handle, line.encode())
        finally:
            os.close(handle)

    def read_lines(self, name: str) -> Iterator[dict[str, Any]]:
        """The records of a ``.jsonl`` file; a last line that was cut short is left out."""
        path = self.path / name
        if path.exists():
            for line in path.read_text().splitlines():
                try:
                    yield json.loads(line)
                except json.JSONDecodeError:
                    return


def write_whole(path: Path, text: str | bytes) -> None:
    """Write a file so that at every moment it is absent, the old one, or the whole new one."""
    data = text.encode() if isinstance(text, str) else text
    handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        os.chmod(beside, 0o644)
        os.replace(beside, path)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise


@contextmanager
def folder_beside(path: Path) -> Iterator[Path]:
    """A temporary folder beside ``path`` that takes its place when the block ends well."""
    import shutil

    beside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield beside
        os.chmod(beside, 0o755)
        if path.exists():
            shutil.rmtree(path)
        os.replace(beside, path)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise


def _plain(value: Any) -> Any:
    if hasattr(value, "item"):
        return value.item()
    if isinstance(value, (set, frozenset, tuple)):
        return list(value)
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} is not JSON")


def slug(text: str) -> str:
    """A name that is safe in a path."""
    return re.sub(r"[^a-z0-9_-]+", "-", text.lower()).strip("-") or "run"
