"""The live view on a terminal that is played: what is written, what stands at the end, and who may watch."""

import io
import re
import sys
import threading

import pytest
from rich.console import ConsoleDimensions
from rich.text import Text

from fedge.report import live as module
from fedge.report.live import LiveView, Region, wants_live
from fedge.report.snapshot import Passing, Snapshot
from tests.report.test_picture import RECORDED


class Terminal(io.StringIO):
    """As much of a terminal as the view uses: a cursor that goes up, lines that are wiped, lines that wrap."""

    encoding = "utf-8"

    def __init__(self, columns=80, tty=True):
        super().__init__()
        self.columns = columns
        self.tty = tty
        self.rows = [""]
        self.row = 0

    def isatty(self):
        return self.tty

    def write(self, text):
        for code, word in re.findall(r"\x1b\[(\d*[A-Za-z])|([^\x1b]+)", text):
            if code == "1A":
                self.row -= 1
                assert self.row >= 0
            elif code == "2K":
                self.rows[self.row] = ""
            elif code:
                assert code.endswith("m"), f"nothing but colours, wiping and going up: {code}"
            else:
                self._put(word)
        return len(text)

    def _put(self, word):
        for piece in re.findall(r"\n|\r|[^\n\r]+", word):
            if piece == "\n":
                self.row += 1
                if self.row == len(self.rows):
                    self.rows.append("")
            elif piece != "\r":
                self.rows[self.row] += piece
                assert len(self.rows[self.row]) <= self.columns, "it would wrap"

    def narrow(self, columns):
        """As most terminals do it: what is too long for the new width goes on in the next row."""
        wrapped = []
        for row in self.rows:
            wrapped += [row[at : at + columns] for at in range(0, max(1, len(row)), columns)]
        self.columns, self.rows, self.row = columns, wrapped, len(wrapped) - 1

    @property
    def screen(self):
        return [row for row in self.rows if row]


@pytest.fixture
def terminal(monkeypatch):
    made = Terminal()
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr("rich.console.Console.size", property(lambda self: ConsoleDimensions(made.columns, 24)))
    return made


def words(*lines):
    return lambda columns, rows: [Text(line[:columns]) for line in lines]


def test_a_region_is_drawn_over_and_what_lasts_stands_above(terminal):
    region = Region(terminal)
    region.draw(words("one", "two"), ["first"])
    assert terminal.screen == ["first", "one", "two"]
    region.draw(words("three"), ["second [not markup]"])
    assert terminal.screen == ["first", "second [not markup]", "three"]
    region.draw(words(), ())
    assert terminal.screen == ["first", "second [not markup]"]
    assert terminal.row == 2, "the cursor is on a line of its own"


def test_nothing_is_written_when_nothing_changed(terminal):
    region = Region(terminal)
    region.draw(words("same"))
    written = []
    terminal.write = written.append
    region.draw(words("same"))
    assert not written
    region.draw(words("other"))
    assert written


@pytest.mark.parametrize("columns", [60, 33, 20])
def test_a_terminal_that_gets_narrower_keeps_no_remains(terminal, columns):
    region = Region(terminal)
    region.draw(words("x" * 78, "y" * 50), ["lasting"])
    terminal.narrow(columns)
    region.draw(words("x" * 78, "y" * 50))
    assert terminal.screen == ["lasting", "x" * (columns - 1), "y" * min(50, columns - 1)]
    terminal.columns = 120
    region.draw(words("z"))
    assert terminal.screen == ["lasting", "z"]


def test_a_view_follows_and_leaves_the_terminal_clean(terminal, monkeypatch):
    drawn = threading.Semaphore(0)
    draw = Region.draw

    def counted(self, *words):
        draw(self, *words)
        drawn.release()

    def after(change):
        change()
        while drawn.acquire(blocking=False):
            pass
        for _ in range(2):  # one drawing may have begun before the change
            assert drawn.acquire(timeout=5)

    monkeypatch.setattr(Region, "draw", counted)
    monkeypatch.setattr(module, "PAUSE", 0.001)
    early = Snapshot("runs/x", "clinic", at=0.0, elapsed_s=0.0, phase="planning")
    with LiveView(terminal, clock=lambda: RECORDED.at) as view:
        after(lambda: None)
        assert terminal.screen == ["fedge is starting"]
        after(lambda: (view.see(early), view.say(Passing("plan: tracing lora"))))
        assert terminal.screen[:2] == ["clinic  planning", "plan: tracing lora"]
        after(lambda: (view.see(RECORDED), view.say("phone-00 lost: memory")))
        assert terminal.screen[0] == "phone-00 lost: memory"
        assert terminal.screen[1].startswith("customize · auto  round 3 of 4")
        assert len(terminal.screen) == 6
        after(lambda: print("from elsewhere", file=sys.stderr))
        assert terminal.screen[1] == "from elsewhere"
        view.say("the last word")
    assert terminal.screen == ["phone-00 lost: memory", "from elsewhere", "the last word"]
    assert "live view" not in {thread.name for thread in threading.enumerate()}


def viewed(terminal, error):
    with LiveView(terminal) as view:
        view.say("lasting")
        view.see(RECORDED)
        raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_errors_and_ctrl_c_leave_it_clean_too(terminal, error):
    before = sys.stderr
    with pytest.raises(error):
        viewed(terminal, error)
    assert terminal.screen == ["lasting"]
    assert sys.stderr is before


def test_a_terminal_that_goes_away_ends_the_view_and_not_the_run(terminal, monkeypatch):
    monkeypatch.setattr(module, "PAUSE", 0.001)

    def gone(_):
        raise OSError(5, "Input/output error")

    terminal.write = gone
    with LiveView(terminal) as view:
        view._thread.join(timeout=5)
        assert not view._thread.is_alive()
        view.say("nobody hears this")


@pytest.mark.parametrize(
    ("asked", "out", "screen", "environment", "as_json", "live"),
    [
        ("auto", True, True, {"TERM": "xterm"}, False, True),
        ("auto", True, True, {"TERM": "xterm", "NO_COLOR": "1"}, False, True),
        ("auto", False, True, {"TERM": "xterm"}, False, False),
        ("auto", True, False, {"TERM": "xterm"}, False, False),
        ("auto", True, True, {"TERM": "dumb"}, False, False),
        ("auto", True, True, {}, False, False),
        ("auto", True, True, {"TERM": "xterm"}, True, False),
        ("plain", True, True, {"TERM": "xterm"}, False, False),
        ("live", False, True, {"TERM": "dumb"}, True, True),
    ],
)
def test_who_gets_the_view(asked, out, screen, environment, as_json, live):
    assert wants_live(asked, Terminal(tty=out), Terminal(tty=screen), environment, as_json=as_json) is live


def test_a_terminal_that_is_not_utf8_gets_lines():
    old = Terminal()
    old.encoding = "ascii"
    assert not wants_live("auto", Terminal(), old, {"TERM": "xterm"}, as_json=False)


def test_no_color_takes_the_colours(terminal, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    written = []
    region = Region(terminal)
    terminal.write = written.append
    region.draw(lambda columns, rows: [Text("lost", "red")])
    assert "31m" not in "".join(written)
    assert "lost" in "".join(written)
