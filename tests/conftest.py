"""What tests of every room may use."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from fedge import __main__ as command

# a shell that starts the tests in the background has them, and whatever they start, ignore Ctrl-C, which some are about
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def fedge(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[object, str, str]]:
    """The command line, called from the test's own folder: exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    def call(*words: object) -> tuple[object, str, str]:
        with pytest.raises(SystemExit) as ended:
            command.main([str(word) for word in words])
        out, err = capsys.readouterr()
        return ended.value.code, out, err

    return call
