"""Every error that fedge raises on purpose, and the exit code that each one ends the command with.

    FedgeError                 1  the run failed
    ├── ConfigError            2  the command line or a YAML file is wrong (holds one Problem for each mistake)
    ├── MissingError           2  a model, data file or optional package that was named isn't there
    ├── InfeasibleError        3  too few devices can afford anything that the stage offers
    ├── LimitError             4  this host cannot apply a limit that was asked for
    ├── ProtocolError          1  a peer broke the protocol (holds the device); the device is dropped, the run goes on
    ├── MethodError            1  a method's own code failed or broke the interface
    └── Interrupted          130  stopped by a signal; a line says how to resume

Nothing else escapes to a user for anything that the user can cause; ``fedge --debug`` shows the traceback.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches


@dataclass(frozen=True)
class Problem:
    """One mistake: where it stands, what is wrong, and what would be right."""

    message: str
    file: str | None = None
    line: int | None = None
    column: int | None = None
    key: str | None = None
    hint: str | None = None

    def __str__(self) -> str:
        place = self.file or ""
        if self.line is not None:
            place += f":{self.line}"
            if self.column is not None:
                place += f":{self.column}"
        parts = [part for part in (place, self.key, self.message) if part]
        text = ": ".join(parts)
        return f"{text} ({self.hint})" if self.hint else text


class FedgeError(Exception):
    """An error with a message for a person; ``hint`` says what to do about it."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None):
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class ConfigError(FedgeError):
    """One or more mistakes in a YAML file or on the command line, all reported together."""

    exit_code = 2

    def __init__(self, problems: Sequence[Problem] | Problem | str):
        if isinstance(problems, str):
            problems = [Problem(problems)]
        elif isinstance(problems, Problem):
            problems = [problems]
        self.problems = list(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class MissingError(FedgeError):
    """Something that was named is not there: a file, a model, an optional package."""

    exit_code = 2


class InfeasibleError(FedgeError):
    """Too few devices can afford anything that the stage offers."""

    exit_code = 3


class LimitError(FedgeError):
    """This host cannot apply a limit that was asked for."""

    exit_code = 4


class ProtocolError(FedgeError):
    """A peer sent what the protocol does not allow; ``device`` names it where it is known."""

    def __init__(self, message: str, *, device: str | None = None, hint: str | None = None):
        super().__init__(f"{device}: {message}" if device else message, hint=hint)
        self.device = device


class MethodError(FedgeError):
    """A method's own code raised, or broke a rule of the interface."""


class Interrupted(FedgeError):
    """Stopped by a signal, with everything kept that a resume needs."""

    exit_code = 130


def closest(word: str, known: Iterable[str]) -> str | None:
    """The known word that is most like ``word``, or None when none is close."""
    names = list(known)
    found = get_close_matches(word, names, n=1, cutoff=0.6)
    if not found:
        lowered = {name.lower(): name for name in names}
        found = [lowered[match] for match in get_close_matches(word.lower(), list(lowered), n=1, cutoff=0.6)]
    return found[0] if found else None


def nearest(word: str, known: Iterable[str]) -> str | None:
    """A hint that names the known word closest to ``word``, or None when nothing is close."""
    found = closest(word, known)
    return f"did you mean '{found}'?" if found else None
