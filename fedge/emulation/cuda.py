"""A device's share of a GPU: of its memory, less what CUDA's context takes, and of its multiprocessors through MPS.

What copy-on-write is for processor memory has no twin on a GPU, so each process holds its own copy of the frozen base
there. Nothing in this file has run on a GPU yet: ``python -m tools.gpu`` measures it wherever there is one. Devices of
a federation do not compute on a GPU yet.

``cuda`` is ``torch.cuda``, handed in so that nothing here imports torch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from fedge.errors import LimitError

#: Where the control daemon of MPS keeps its pipes when CUDA_MPS_PIPE_DIRECTORY doesn't say otherwise.
_PIPES = "/tmp/nvidia-mps"
_MIB = 1 << 20


class Cuda(Protocol):
    """What is used of ``torch.cuda``."""

    def mem_get_info(self, device: int) -> tuple[int, int]: ...
    def memory_reserved(self, device: int) -> int: ...
    def set_per_process_memory_fraction(self, fraction: float, device: int) -> None: ...
    def init(self) -> None: ...


def context_bytes(cuda: Cuda, device: int, free_before: int) -> int:
    """Bytes that this process's context takes of the GPU: what is gone since ``free_before``, less torch's own.

    ``free_before``: free bytes as another process saw them before this one touched CUDA; nobody else may allocate
    meanwhile.
    """
    cuda.init()
    free, _ = cuda.mem_get_info(device)
    return max(0, free_before - free - cuda.memory_reserved(device))


def hold_memory(cuda: Cuda, device: int, memory: int, context: int) -> float:
    """Hold this process to ``memory`` bytes of the GPU, its context of ``context`` bytes included.

    Returns the fraction that torch's allocator is held to; what would go beyond raises torch.cuda.OutOfMemoryError in
    the process. Raises LimitError when the context alone needs more, or the GPU has less.
    """
    _, total = cuda.mem_get_info(device)
    if memory > total:
        raise LimitError(f"cuda:{device} has {total // _MIB} MiB, and {memory // _MIB} MiB are asked for")
    if memory <= context:
        raise LimitError(
            f"cuda:{device}: CUDA's context alone takes {context // _MIB} MiB of the {memory // _MIB} MiB",
            hint="grant more memory, or compute on the processor",
        )
    fraction = (memory - context) / total
    cuda.set_per_process_memory_fraction(fraction, device)
    return fraction


def mps_running(environment: Mapping[str, str] | None = None) -> bool:
    """Whether the control daemon of MPS is there to be asked for shares."""
    told = os.environ if environment is None else environment
    return (Path(told.get("CUDA_MPS_PIPE_DIRECTORY", _PIPES)) / "control").exists()


def mps_share(share: float, environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a process that may use this share of a GPU's multiprocessors.

    It has to be there before CUDA's first use. Raises LimitError where the daemon does not run: without it the variable
    is read by nobody.
    """
    if not 0 < share <= 1:
        raise ValueError(f"a share lies above 0 and is at most 1: {share}")
    if not mps_running(environment):
        raise LimitError("the control daemon of MPS does not run", hint="nvidia-cuda-mps-control -d")
    return {"CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": f"{max(1, round(100 * share))}"}


def findings(gpus: int) -> list[dict[str, Any]]:
    """What ``fedge doctor`` says of both: works only as far as it can be told without touching CUDA."""
    if not gpus:
        none = "no GPU here"
        return [{"mechanism": name, "works": False, "detail": none} for name in ("cuda memory share", "cuda MPS share")]
    memory = "not tried here: `python -m tools.gpu` measures it; devices do not compute on a GPU yet"
    told = "its daemon runs; " if mps_running() else "its daemon does not run (nvidia-cuda-mps-control -d); "
    return [
        {"mechanism": "cuda memory share", "works": False, "detail": memory},
        {"mechanism": "cuda MPS share", "works": False, "detail": told + memory},
    ]
