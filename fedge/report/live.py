"""The live view of a run: lines at the foot of a terminal that follow it, with what lasts printed above them."""

from __future__ import annotations

import io
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr
from types import TracebackType
from typing import TextIO

from rich.cells import cell_len
from rich.console import Console
from rich.control import Control
from rich.segment import ControlType
from rich.text import Text

from fedge.report.picture import picture
from fedge.report.snapshot import Passing, Snapshot

#: Seconds between two drawings.
PAUSE = 0.25
#: Draws what there is for a width and a height in columns and rows.
Draw = Callable[[int, int], Sequence[Text]]


def wants_live(asked: str, out: TextIO, screen: TextIO, environment: Mapping[str, str], *, as_json: bool) -> bool:
    """Whether progress is to be drawn rather than printed line by line.

    asked: 'live', 'plain' or 'auto', which draws when both ``out`` and ``screen`` are terminals that can be drawn on
    and nobody asked for JSON or, by ``TERM=dumb``, for plain text. NO_COLOR takes the colours alone.
    """
    if asked != "auto":
        return asked == "live"
    able = out.isatty() and screen.isatty() and (screen.encoding or "").lower().replace("-", "") == "utf8"
    return able and not as_json and environment.get("TERM", "") not in ("", "dumb", "unknown")


class Region:
    """The lines that are drawn again and again; the cursor rests below them. Only one thread may use it.

    rich's own Live is not used because it hides the cursor (a killed program leaves it hidden) and forgets that a
    terminal that got narrower has wrapped what was drawn.
    """

    def __init__(self, screen: TextIO):
        self.console = Console(file=screen, highlight=False, force_terminal=True, soft_wrap=True)
        self._drawn: list[str] = []
        self._columns = 0

    def draw(self, draw: Draw, above: Sequence[str] = ()) -> None:
        """Print ``above`` to stay, and the region anew below it, in one write; nothing when nothing has changed."""
        columns, rows = self.console.size
        # one column is left free: a character in the last one makes some terminals wrap
        lines = list(draw(max(1, columns - 1), max(1, rows - 1)))
        plain = [line.plain for line in lines]
        if plain == self._drawn and columns == self._columns and not above:
            return
        with self.console:
            self.console.control(self._back(columns))
            for line in above:
                self.console.print(Text(line))
            for text in lines:
                self.console.print(text)
        self._drawn, self._columns = plain, columns

    def _back(self, columns: int) -> Control:
        """Up to the region's first line, wiping; a line longer than the terminal is now has become several."""
        rows = sum(max(1, math.ceil(cell_len(line) / columns)) for line in self._drawn)
        wipe = ((ControlType.CURSOR_UP, 1), (ControlType.ERASE_IN_LINE, 2))
        return Control(ControlType.CARRIAGE_RETURN, (ControlType.ERASE_IN_LINE, 2), *(wipe * rows))


class LiveView:
    """Follows a run: ``say`` takes its lines and ``see`` its snapshots; neither waits for the terminal.

    A thread of its own draws, at most every ``PAUSE`` seconds. When it is left, the region is gone and every lasting
    line stands; what others print on standard error meanwhile appears above the region too.
    """

    def __init__(self, screen: TextIO, clock: Callable[[], float] = time.time):
        self._region = Region(screen)
        self._clock = clock
        self._lasting: deque[str] = deque()
        self._passing = ""
        self._snapshot: Snapshot | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="live view", daemon=True)
        self._redirect = redirect_stderr(_Lines(self._lasting.append))

    def say(self, line: str) -> None:
        """A line that lasts; a ``Passing`` one is shown until the next."""
        if isinstance(line, Passing):
            self._passing = line
        else:
            self._lasting.append(line)

    def see(self, snapshot: Snapshot) -> None:
        """How the run stands now."""
        self._snapshot = snapshot

    def __enter__(self) -> LiveView:
        self._redirect.__enter__()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        self._redirect.__exit__(kind, error, trace)

    def _follow(self) -> None:
        try:
            while not self._ended.wait(PAUSE):
                self._region.draw(self._picture, self._taken())
            self._region.draw(lambda columns, rows: (), self._taken())
        except (OSError, ValueError):
            return  # the terminal is gone, or was closed: the run goes on unseen

    def _taken(self) -> list[str]:
        return [self._lasting.popleft() for _ in range(len(self._lasting))]

    def _picture(self, columns: int, rows: int) -> Sequence[Text]:
        return picture(self._snapshot, self._passing, columns, self._clock())[:rows]


class _Lines(io.TextIOBase):
    """A file that hands on whole lines."""

    def __init__(self, take: Callable[[str], None]):
        self._take = take
        self._rest = ""

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._take(line)
        return len(text)
