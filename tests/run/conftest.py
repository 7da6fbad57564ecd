"""Federations small enough to run many times."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from fedge.emulation import folder
from fedge.run.launcher import Options, Run, up

DIGITS = """\
name: small
seed: 3
model: {{name: vit-nano, options: {{hidden: 16, layers: 2, mlp: 32, dropout: {dropout}}}}}
data: {{dataset: digits, partition: {{dirichlet: 0.5}}, test: 5%, rows: 300}}
devices:
  phone: {{profile: android-low-3g, count: {count}, memory: {memory}, availability: {availability}}}
evaluate: {{every: 1, rows: 32}}
emulation: {{heartbeat: {heartbeat}s, restart: {restart}}}
stages:
{stages}
"""
USUAL = {
    "dropout": 0.0,
    "count": 4,
    "memory": "64MiB",
    "availability": 1.0,
    "heartbeat": 30,
    "restart": 1,
}


def stage(method: str, rounds: int = 2, kind: str = "customize", **options: object) -> str:
    name = method if ":" not in method and method in ("fedavg", "lora", "bitfit", "head", "split", "fedbuff") else None
    method = name or f"tests.run.methods:{method}"
    settings = {"steps": 2, "batch": 8, **options}
    text = "".join(f", {key}: {value}" for key, value in settings.items() if value is not None)
    return f"  - {kind}: {{method: '{method}', rounds: {rounds}{text}}}"


@pytest.fixture
def federation(tmp_path: Path) -> Callable[..., Path]:
    def write(*stages: str, **changes: object) -> Path:
        path = tmp_path / "small.yaml"
        path.write_text(DIGITS.format(**{**USUAL, **changes}, stages="\n".join(stages)))
        return path

    return write


@pytest.fixture(autouse=True)
def one_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDGE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    torch.set_num_threads(1)


@pytest.fixture
def inline(tmp_path: Path) -> Callable[..., Run]:
    """Run a federation in this process."""

    def run(path: Path | None, say: Callable[[str], None] = lambda line: None, **options: object) -> Run:
        return up(path or "", (), Options(runs=tmp_path / "runs", inline=True, **options), say)  # type: ignore[arg-type]

    return run


def sha(run: Run) -> str:
    found = run.summary["model_sha256"]
    assert run.summary["status"] == "done"
    assert isinstance(found, str)
    return found


def another_test_process(pid: int) -> bool:
    """Whether ``pid`` lives outside the tree of this process: a launcher of tests that run beside these."""
    while pid > 1:
        if pid == os.getpid():
            return False
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return False
    return True


def groups_left() -> set[str]:
    """Groups of fedge's making for the runs of these tests, anywhere below the launcher's own group."""
    found: set[str] = set()
    for mount, fs, options in folder.all_mounts():
        kind = next((kind for kind in ("memory", "cpu") if kind in options.split(",")), None)
        if fs == "cgroup" and kind is None:
            continue
        own = mount.folder(folder.own_group(kind or ""))
        found.update(str(path) for path in Path(own).glob(f"{folder.PREFIX}*-small*"))
    return {path for path in found if not another_test_process(int(path.rpartition("-")[2]))}


def processes_left(mark: str) -> list[int]:
    """Processes whose command line or environment's folder names ``mark``."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                told = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
            except OSError:
                continue
            if mark.encode() in told:
                found.append(int(entry.name))
    return found


@pytest.fixture
def nothing_left() -> Iterator[None]:
    before = groups_left()
    yield
    end = time.monotonic() + 60.0
    # a launcher that tests beside these have killed leaves groups until they resume its run: those go, a leak stays
    while not groups_left() <= before and time.monotonic() < end:
        time.sleep(0.5)
    assert groups_left() <= before


@pytest.fixture
def permissions() -> Iterator[None]:
    """Permission bits count for root too: the test's thread goes without the two capabilities that pass them by."""
    if os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this thread
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted and inheritable, for capabilities 0 to 31 and then the rest
    assert libc.capget(header, sets) == 0
    before = sets[0]
    sets[0] &= ~0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    assert libc.capset(header, sets) == 0
    yield
    sets[0] = before
    assert libc.capset(header, sets) == 0
