"""Orders to a run under way from another process: strike a device's process, hold it still, let it go on.

An order is a file that the launcher finds in a folder of its scratch space, and its answer another one beside it. The
folder is there exactly while the run's devices are processes that obey.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedge.errors import FedgeError, MissingError, nearest
from fedge.run.folder import LAUNCHER, RunFolder

_PLACE = "orders"
_PAUSE = 0.05


@dataclass(frozen=True)
class Order:
    """One order as the launcher takes it. word: kill, pause or unpause. path: its file."""

    word: str
    device: str
    path: Path


class Orders:
    """The launcher's end, for one run. paused: the devices that are held still, over all stages."""

    def __init__(self, scratch: Path):
        self._folder = scratch / _PLACE
        self.paused: set[str] = set()

    def open(self) -> None:
        """From now on orders are taken."""
        self._folder.mkdir(mode=0o700, exist_ok=True)

    def take(self) -> list[Order]:
        """The orders that nobody has answered yet, in no order."""
        found = []
        for path in self._folder.glob("*.order"):
            with suppress(OSError, ValueError, KeyError):  # its author has withdrawn it
                told = json.loads(path.read_text())
                found.append(Order(str(told["word"]), str(told["device"]), path))
        return found

    def answer(self, order: Order, **said: Any) -> None:
        """Say what came of an order: ``done`` in words, or ``refused``."""
        with suppress(OSError):
            beside = order.path.with_suffix(".beside")
            beside.write_text(json.dumps(said))
            beside.rename(order.path.with_suffix(".answer"))
            order.path.unlink()

    def close(self) -> None:
        """No more orders are taken; those that are there are refused."""
        for order in self.take():
            self.answer(order, refused="the stage has ended")
        for path in self._folder.glob("*"):
            if path.suffix != ".answer":
                path.unlink(missing_ok=True)
        with suppress(OSError):  # an answer that its author has not read yet; it goes with the scratch folder
            self._folder.rmdir()


def give(folder: RunFolder, word: str, device: str, known: Sequence[str], patience: float) -> str:
    """Give an order to a run under way and wait for what comes of it, in words.

    Raises MissingError for a device that isn't in the run, FedgeError when the run refuses or doesn't answer in time.
    """
    if device not in known:
        hint = nearest(device, known) or f"there are {', '.join(sorted(known)[:20])}"
        raise MissingError(f"{folder.path} has no device '{device}'", hint=hint)
    place = _place(folder)
    path = place / f"{secrets.token_hex(6)}.order"
    answer = path.with_suffix(".answer")
    try:
        path.with_suffix(".beside").write_text(json.dumps({"word": word, "device": device}))
        path.with_suffix(".beside").rename(path)
    except OSError as error:
        raise FedgeError(f"{folder.path} can't be told: {error.strerror}") from error
    end = time.monotonic() + patience
    while time.monotonic() < end:
        with suppress(OSError, ValueError):
            said = json.loads(answer.read_text())
            answer.unlink()
            if "refused" in said:
                raise FedgeError(f"{device}: {said['refused']}")
            return str(said["done"])
        if not place.is_dir():
            break
        time.sleep(_PAUSE)
    path.unlink(missing_ok=True)
    raise FedgeError(f"{folder.path} did not answer within {patience:g} s", hint="between rounds it may be busy")


def _place(folder: RunFolder) -> Path:
    try:
        scratch = Path(json.loads(folder.file(LAUNCHER).read_text())["scratch"])
    except (OSError, ValueError, KeyError, TypeError):
        scratch = folder.path / "gone"
    if not (scratch / _PLACE).is_dir():
        raise FedgeError(
            f"{folder.path} has no processes of devices now", hint="they are there during rounds, and not with --inline"
        )
    return scratch / _PLACE
