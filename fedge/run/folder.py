"""The run folder: the only thing that knows where a run's files lie. Every file is either whole or absent."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedge.errors import FedgeError, MissingError

#: In a run's folder: what the launcher said, what it has on the host while it runs, and where the run stands.
LOG, LAUNCHER, PROGRESS = "launcher.log", "launcher.json", "progress.json"


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
            with _writing(path):
                for part in ("checkpoints", "devices"):
                    (path / part).mkdir()
            return cls(path)
        raise MissingError(f"no name is left for a run in {parent}")

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """An existing run; MissingError when the folder isn't one."""
        try:
            there = (path / "resolved.yaml").is_file()
        except OSError as error:
            raise MissingError(f"{path} can't be read: {error.strerror}") from error
        if not there:
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
        self.write(name, json.dumps(plain(value), indent=2, allow_nan=False) + "\n")

    def read_json(self, name: str) -> Any:
        """The value of a JSON file; FedgeError when it holds none."""
        try:
            return json.loads((self.path / name).read_text())
        except ValueError as error:
            raise FedgeError(f"{self.path / name} is damaged: {error}") from error

    def append(self, name: str, record: Mapping[str, Any]) -> None:
        """Add a line to a ``.jsonl`` file in one system call, so that a line is whole or absent."""
        self.append_line(name, json.dumps(plain(record), allow_nan=False))

    def append_line(self, name: str, line: str) -> None:
        """Add a line of text to a file in the same way."""
        data = (line + "\n").encode(errors="backslashreplace")
        with _writing(self.path / name):
            handle = os.open(self.path / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                if os.write(handle, data) < len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            finally:
                os.close(handle)

    def size(self, name: str) -> int:
        """Bytes in a file, 0 when it isn't there."""
        path = self.path / name
        return path.stat().st_size if path.exists() else 0

    def cut(self, name: str, size: int) -> None:
        """Shorten a ``.jsonl`` file to what it held at a checkpoint."""
        if self.size(name) > size:
            with _writing(self.path / name):
                os.truncate(self.path / name, size)

    def read_lines(self, name: str) -> Iterator[dict[str, Any]]:
        """The records of a ``.jsonl`` file; a last line that was cut short is left out."""
        path = self.path / name
        if path.exists():
            for line in path.read_text().splitlines():
                try:
                    yield json.loads(line)
                except json.JSONDecodeError:
                    return


def write_whole(path: Path, text: str | bytes | bytearray, *more: bytes | bytearray) -> None:
    """Write a file, in one piece or several, so that at every moment it is absent, the old one, or the whole new one.

    Raises FedgeError, naming the file, when the disk is full or the place can't be written to.
    """
    pieces = (text.encode() if isinstance(text, str) else text, *more)
    with _writing(path):
        handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as out:
                out.writelines(pieces)
                out.flush()
                os.fsync(out.fileno())
            os.chmod(beside, 0o644)
            os.replace(beside, path)
        except BaseException:
            Path(beside).unlink(missing_ok=True)
            raise


_SEAL = "fedge 1 sha256 "  # the first line of a sealed file, with the digest of all that follows
_SEALED = len(_SEAL) + 64 + 1


def write_sealed(path: Path, data: bytes | bytearray) -> None:
    """``write_whole`` for what a resume needs, with a digest before it, so that ``read_sealed`` finds any damage."""
    write_whole(path, f"{_SEAL}{hashlib.sha256(data).hexdigest()}\n", data)


def read_sealed(path: Path) -> bytearray:
    """What ``write_sealed`` wrote. Raises FedgeError, naming the file, when it isn't there or was changed since."""
    try:
        with path.open("rb") as file:
            seal = file.read(_SEALED).decode("latin-1")
            data = bytearray(max(0, os.fstat(file.fileno()).st_size - _SEALED))
            size = file.readinto(data)
    except OSError as error:
        if error.errno == errno.ENOMEM:
            raise
        raise FedgeError(f"{path} can't be read: {error.strerror}") from error
    if size != len(data) or seal != f"{_SEAL}{hashlib.sha256(data).hexdigest()}\n":
        what = "is damaged: its bytes are not those that were written"
        if seal and not seal.startswith(_SEAL):
            what = "is damaged, or of another version of fedge"
        raise FedgeError(f"{path} {what}", hint="the run can't go on from here; start it anew")
    return data


def keep_beside(path: Path, value: Any) -> None:
    """Write JSON that is for looking at while a run is under way: whole or the old one, and not at all on a full disk.

    It is not waited for to reach the disk: nothing that a resume needs may be kept so.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(json.dumps(plain(value), allow_nan=False) + "\n")
        os.replace(beside, path)
    except OSError:
        beside.unlink(missing_ok=True)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOMEM:
            raise  # a device at its memory wall, not a matter of the disk
        raise FedgeError(f"{path} can't be written: {error.strerror or error}") from error


def plain(value: Any) -> Any:
    """A value as JSON holds it; a number that is not finite becomes null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(plain(item) for item in value)
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def slug(text: str) -> str:
    """A name that is safe in a path."""
    return re.sub(r"[^a-z0-9_-]+", "-", text.lower()).strip("-") or "run"
