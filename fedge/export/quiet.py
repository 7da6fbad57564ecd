"""Silence for what the exporter says while it works, and all of this process's cores for it."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch

_LOGGERS = ("torch.onnx", "torch.export", "torch._export", "onnxscript", "onnx_ir")


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings and no log lines below errors inside; what is raised passes through."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _allowed() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def workers() -> ThreadPoolExecutor:
    """A thread for each core, for work that leaves the interpreter as onnxruntime's does."""
    return ThreadPoolExecutor(max(1, _allowed()))


@contextmanager
def all_cores() -> Iterator[None]:
    """PyTorch computes on every core that this process may use inside, and as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, _allowed()))
    try:
        yield
    finally:
        torch.set_num_threads(before)
