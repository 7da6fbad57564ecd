"""A run's logs, from their last lines on, line by line as they grow. No torch."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

#: Seconds between two looks at logs that are followed.
PAUSE = 0.25

Line = tuple[str, str]


class Reader:
    """One log, read on from where it was left. A line that is not complete is left for later."""

    def __init__(self, path: Path):
        self._path = path
        self._at = 0
        self._rest = b""

    def tail(self, lines: int | None) -> list[str]:
        """The last ``lines`` lines so far, or all of them."""
        kept = deque(self.more(), maxlen=lines)
        return list(kept)

    def more(self) -> Iterator[str]:
        """The lines that have come since."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._at)
                while data := file.read(1 << 20):
                    self._at += len(data)
                    *whole, self._rest = (self._rest + data).split(b"\n")
                    for line in whole:
                        yield line.decode(errors="replace")
        except FileNotFoundError:
            return

    def last_words(self) -> list[str]:
        """A last line without an end, as a process leaves that was killed."""
        rest, self._rest = self._rest, b""
        return [rest.decode(errors="replace")] if rest else []


def read(paths: Mapping[str, Path], tail: int | None) -> Iterator[Line]:
    """Whose line, and the line: each log in turn, all of it or its last ``tail`` lines."""
    for name, path in paths.items():
        reader = Reader(path)
        for line in [*reader.tail(tail), *reader.last_words()]:
            yield name, line


def follow(
    find: Callable[[], Mapping[str, Path]],
    tail: int | None,
    live: Callable[[], bool],
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Line]:
    """What ``read`` gives, and then what comes, until the run is not ``live`` any more.

    find: the logs that there are now; those that appear later are followed from their beginning.
    """
    readers: dict[str, Reader] = {}
    for name, path in find().items():
        readers[name] = Reader(path)
        for line in readers[name].tail(tail):
            yield name, line
    going = True
    while going:
        going = live()  # asked before reading: what was written before the end is read
        for name, path in find().items():
            reader = readers.setdefault(name, Reader(path))
            for line in reader.more():
                yield name, line
        if going:
            sleep(PAUSE)
    for name, reader in readers.items():
        for line in reader.last_words():
            yield name, line
