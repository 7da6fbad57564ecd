"""What a run was begun with: versions and host, as ``host.json``, so that a resume can tell whether it may go on."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import fedge
from fedge.errors import FedgeError
from fedge.run.folder import RunFolder

_FILE = "host.json"


def note_host(folder: RunFolder) -> None:
    """Record it at a run's beginning."""
    system = " ".join(os.uname()[i] for i in (0, 2, 4))
    versions = {"fedge": fedge.__version__, "torch": version("torch")}
    host = {"cores": len(os.sched_getaffinity(0)), "platform": system, "processor": _processor()}
    folder.write_json(_FILE, {**versions, **host})


def _processor() -> str:
    """Its name, by which torch and its libraries choose their kernels; empty where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    for name, _, value in (line.partition(":") for line in lines):
        if name.strip() == "model name":
            return value.strip()
    return platform.processor()


def check_host(folder: RunFolder, say: Callable[[str], None]) -> None:
    """Refuse to go on with a run of another version of fedge, and say so where torch or the processor is another.

    Raises FedgeError.
    """
    if not folder.file(_FILE).exists():
        raise FedgeError(f"{folder.path} can't be resumed: its {_FILE} is gone", hint="start a run anew")
    begun = folder.read_json(_FILE)
    if not isinstance(begun, dict):
        raise FedgeError(f"{folder.file(_FILE)} is damaged", hint="start a run anew")
    if begun.get("fedge") != fedge.__version__:
        raise FedgeError(
            f"{folder.path} was begun with fedge {begun.get('fedge')}, and this is {fedge.__version__}",
            hint="resume it with that version, or start a run anew",
        )
    if begun.get("torch") != version("torch"):
        say(f"begun with torch {begun.get('torch')}, and this is {version('torch')}: the last bits may differ")
    now = _processor()
    if (was := begun.get("processor", now)) != now:
        say(f"begun on {was or 'another processor'}, and this is {now or 'another'}: the last bits may differ")
