"""Which limits a run has, and what its launcher leaves on the host should it be killed."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from fedge.emulation import process, quota
from fedge.emulation import wall as walls
from fedge.errors import ConfigError, FedgeError, LimitError
from fedge.run.folder import RunFolder
from fedge.run.stash import STASH, Stash
from fedge.spec.federation import FederationSpec

if TYPE_CHECKING:
    from fedge.run.brief import Brief

_FILE = "launcher.json"
_PREFIX = "fedge-"
_TEXT = (str, type(None))
#: What the record of a launcher holds.
_RECORD = {"pid": (int,), "started": (int, type(None)), "scratch": (str,), "groups": _TEXT, "quotas": _TEXT}
#: Seconds that the processes of a killed launcher may take to be gone.
_DYING = 3.0
#: Files and folders that were being written beside their place: a name of chance, or the pid of the writer.
_UNFINISHED = re.compile(r"\..+([.-][a-z0-9_]{8}(-old)?|\.\d+)")

#: Bytes that a process that has trained holds of its own besides what its method's cost says.
_PROCESS = 32 << 20

Say = Callable[[str], None]


@dataclass
class Limits:
    """The run's memory wall (None inline), the limits by name for its summary, and what could not be had."""

    wall: walls.Wall | None
    named: dict[str, Any]
    degraded: list[str] = field(default_factory=list)

    @property
    def quota(self) -> str | None:
        """The mechanism that caps processor time, by name; None for none."""
        found: str | None = self.named["cpu"]
        return found


def limits_of(spec: FederationSpec, *, inline: bool, best_effort: bool) -> Limits:
    """The limits that the file asks for. Raises LimitError when one can't be had, unless ``best_effort``."""
    _pins(spec)
    paced = spec.emulation.clock == "real"
    if inline and paced:
        raise ConfigError(
            spec.problem("emulation.clock", "--inline knows the virtual clock only", hint="leave out --inline")
        )
    if inline:
        return Limits(None, {"memory": "planner", "cpu": None, "network": "virtual"}, ["memory: inline has no walls"])
    degraded = []
    try:
        wall = walls.choose(spec.emulation.wall)  # type: ignore[arg-type]
    except LimitError as error:
        if not best_effort:
            raise LimitError(error.message, hint=error.hint or "--best-effort runs without it") from error
        wall = walls.choose("none")
        degraded.append(f"memory: {error.message}")
    if wall.name == "none" and not degraded:
        if not best_effort:
            raise LimitError("emulation.wall is none", hint="--best-effort runs without a memory wall")
        degraded.append("memory: no wall was asked for")
    named: dict[str, Any] = {"memory": wall.name, "cpu": None, "network": "paced" if paced else "virtual"}
    try:
        named["cpu"] = quota.choose(wall.name) if paced else None
    except LimitError as error:
        if not best_effort:
            raise
        degraded.append(f"cpu: {error.message}")
    return Limits(wall, named, degraded)


def _pins(spec: FederationSpec) -> None:
    """Refuse a place that a device's process could not be bound to."""
    here = process.cores()
    for device in spec.devices:
        kind, _, which = (device.pin or "").partition(":")
        if kind == "cuda":
            raise LimitError(
                f"{device.name}: pin: {device.pin}: devices do not compute on a GPU yet", hint="leave pin out, or cpu:0"
            )
        absent = [core for core in which.split(",") if core.isdigit() and int(core) not in here]
        if kind == "cpu" and absent:
            told = ", ".join(str(core) for core in sorted(here))
            raise LimitError(f"{device.name}: pin: {device.pin}: there is no core {absent[0]}", hint=f"cores: {told}")


def process_limit(spec: FederationSpec, brief: Brief, slots: int) -> int:
    """How many processes the devices of a stage may have.

    The file says it, or all have one of their own where that many fit into half of the memory that is free now; else
    as few as keep every slot at work, for a process that isn't at work saves nothing and holds memory.
    """
    told = spec.emulation.processes
    if isinstance(told, int):
        return max(told, slots)
    own = max((offer.cost.peak_memory - offer.cost.shared for offer in brief.menu), default=0)
    fit = psutil.virtual_memory().available // 2 // (_PROCESS + own)
    return len(spec.devices) if len(spec.devices) <= fit else 2 * slots


@dataclass
class Footprint:
    """What a launcher has on the host beside its run folder: in the folder's ``launcher.json`` while it runs.

    scratch: a folder of its own, which the sockets lie in too.
    """

    folder: RunFolder
    scratch: Path
    groups: str | None = None
    quotas: str | None = None

    @property
    def address(self) -> str:
        """Where the devices' processes reach the launcher."""
        return f"ipc://{self.scratch / 'hub'}"

    def write(self) -> None:
        """Record it, with this process's pid and start time."""
        pid = os.getpid()
        named = {"scratch": str(self.scratch), "groups": self.groups, "quotas": self.quotas}
        self.folder.write_json(_FILE, {"pid": pid, "started": process.start_time(pid), **named})

    def note_groups(self, wall: walls.Wall) -> None:
        """Record the folder of the wall's groups as soon as there is one."""
        paths = wall.paths()
        if paths and paths[-1] != self.groups:
            self.groups = paths[-1]
            self.write()

    def note_quota(self, throttle: quota.Throttle) -> None:
        """Record the folder of the quotas' groups, likewise."""
        path = getattr(throttle, "path", None)
        if path is not None and str(path.parent) != self.quotas:
            self.quotas = str(path.parent)
            self.write()


@contextmanager
def footprint(folder: RunFolder) -> Iterator[Footprint]:
    """A scratch folder and its record, both gone at the end."""
    # named and recorded before it is made: a launcher may be killed in between
    scratch = Path(tempfile.gettempdir(), f"{_PREFIX}run-{secrets.token_hex(4)}").absolute()
    print_ = Footprint(folder, scratch)
    try:
        print_.write()
        scratch.mkdir(mode=0o700)
        yield print_
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        with suppress(OSError):  # a place that has become read-only; why is what went wrong before
            folder.file(_FILE).unlink(missing_ok=True)


def clear(folder: RunFolder, say: Say) -> None:
    """Clear what a killed launcher of this run left. Raises FedgeError when the launcher still runs."""
    if not os.path.exists(folder.file(_FILE)):  # not where it may not be looked for
        return
    left = folder.read_json(_FILE)
    if not isinstance(left, dict) or any(type(left.get(name)) not in kinds for name, kinds in _RECORD.items()):
        raise FedgeError(f"{folder.file(_FILE)} is damaged", hint="delete it if no launcher of this run is alive")
    if process.alive(left["pid"], left["started"]):
        raise FedgeError(f"{folder.path} is still under way, as process {left['pid']}", hint="interrupt it first")
    for top in (Path(left[kind]) for kind in ("groups", "quotas") if left.get(kind)):
        inner = [str(path) for path in top.iterdir() if path.is_dir()] if top.is_dir() else []
        busy = walls.sweep([*inner, str(top)])
        end = time.monotonic() + _DYING
        while busy and time.monotonic() < end:  # devices die with their launcher, a moment later
            time.sleep(0.05)
            busy = walls.sweep(busy)
        if busy:
            say(f"not cleared, because processes are left in them: {', '.join(busy)}")
    _remove(Path(left["scratch"]))
    Stash(folder.file(*STASH)).discard()
    for beside in (folder.path, folder.file("checkpoints"), folder.file("export")):
        for path in beside.glob(".*"):
            if not _UNFINISHED.fullmatch(path.name):
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
    folder.file(_FILE).unlink(missing_ok=True)


def _remove(path: Path) -> None:
    """Remove a temporary folder of fedge's naming, and nothing else whatever the record says."""
    named = path.name.startswith(_PREFIX) and path.is_absolute() and ".." not in path.parts
    if named and path.is_dir() and not path.is_symlink() and path.stat().st_uid == os.getuid():
        shutil.rmtree(path, ignore_errors=True)
