"""The one place that ends the process: errors become a line on standard error and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from fedge.errors import ConfigError, FedgeError, Interrupted


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line (``sys.argv`` by default) and exit with its code; see ``fedge.errors`` for the codes."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    # --debug may stand anywhere, since it is added when a command has already failed
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "1")  # looking for them costs a fifth of `fedge config`
    try:
        code = run(words, debug=debug)
        sys.stdout.flush()
    except BrokenPipeError:
        # the reader went away (`fedge methods | head`); python's own flush at exit must not complain again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    raise SystemExit(code)


def run(words: list[str], *, debug: bool = False) -> int:
    """Run one command and return its exit code. With ``debug`` a failure's traceback is printed too."""
    try:
        from fedge.cli import app, usage_error

        try:
            code = app(args=words, prog_name="fedge", standalone_mode=False)
            if code == Interrupted.exit_code:  # what typer makes of Ctrl-C
                return _interrupted()
            return code if isinstance(code, int) else 0
        except usage_error as error:  # type: ignore[misc]
            _say(_usage(error))
            return 2
    except BrokenPipeError:
        raise
    except KeyboardInterrupt:
        return _interrupted()
    except ConfigError as error:
        _trace(debug)
        for problem in error.problems:
            _say(str(problem))
        return error.exit_code
    except FedgeError as error:
        _trace(debug)
        _say(str(error))
        return error.exit_code
    except Exception as error:
        if isinstance(error.__cause__, KeyboardInterrupt):  # what older ones make of it
            return _interrupted()
        _trace(debug)
        detail = str(error) or "no message"
        _say(f"{type(error).__name__}: {detail}" + ("" if debug else " (not foreseen; --debug shows where)"))
        return 1


def _usage(error: object) -> str:
    context = getattr(error, "ctx", None)
    path = getattr(context, "command_path", "fedge")
    return f"{error.format_message().rstrip('.')} (see `{path} --help`)"  # type: ignore[attr-defined]


def _interrupted() -> int:
    _say("interrupted")
    return Interrupted.exit_code


def _say(message: str) -> None:
    print(f"fedge: {message}", file=sys.stderr)


def _trace(debug: bool) -> None:
    if debug:
        import traceback

        traceback.print_exc()


if __name__ == "__main__":
    main()
