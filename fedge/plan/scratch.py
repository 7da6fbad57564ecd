"""A real run in a process of its own: what a method does to memory, threads or files there is gone with it."""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict

import torch

from fedge.core.cost import Cost
from fedge.errors import FedgeError, MethodError

#: Seconds after which a run that stands in for a trace is given up.
LIMIT = 600


def in_scratch(run: Callable[[], Cost]) -> Cost:
    """What ``run`` gives, from a forked process with one thread.

    Raises MethodError with what the run raised, or that it was killed or took longer than ``LIMIT`` seconds.
    """
    reading, writing = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _run(run, writing)
    os.close(writing)
    try:
        with os.fdopen(reading, "rb") as pipe:
            told = pipe.read()
    except BaseException:
        os.kill(child, signal.SIGKILL)
        raise
    finally:
        _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        late = os.WTERMSIG(status) == signal.SIGALRM
        why = f"took longer than {LIMIT} s" if late else f"was killed by signal {os.WTERMSIG(status)}"
        raise MethodError(f"a method that can't be traced was run instead, and {why}")
    found = json.loads(told)
    if "error" in found:
        raise MethodError(found["error"])
    return Cost(**found)


def _run(run: Callable[[], Cost], pipe: int) -> None:
    """The child's part; never returns."""
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.alarm(LIMIT)
        torch.set_num_threads(1)
        told = asdict(run())
    except FedgeError as error:
        told = {"error": error.message}
    except BaseException as error:
        traceback.print_exc()
        told = {"error": f"{type(error).__name__}: {error}"}
    data = json.dumps(told).encode()
    while data:
        data = data[os.write(pipe, data) :]
    os._exit(0)
