"""Secure aggregation in a run: the same model whoever computes, and no single answer anywhere on the server's side."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from fedge.core.method import Device
from fedge.core.payload import Payload
from fedge.run.launcher import Options, up
from tests.run.conftest import sha, stage
from tests.run.methods import Alone
from tests.run.test_resume import Stopped, calm_and, resume, stop_at

SECURE = "{threshold: 60%}"
#: Where ``Marked`` devices leave what they sent, turned over bit by bit, so that nobody who reads it holds it.
LEFT = "answer.turned"


@dataclass(frozen=True, kw_only=True)
class Marked(Alone):
    """BitFit that leaves a copy of the greatest part of its answer, turned over, in the folder that is named."""

    place: str = ""

    def client(self, dev: Device, down: Payload) -> Payload:
        answer = super().client(dev, down)
        assert isinstance(answer, Payload)
        if self.place and not dev.rehearsed:
            greatest = max(answer["delta"].values(), key=torch.numel)
            turned = bytes(255 - byte for byte in greatest.contiguous().numpy().tobytes()[:64])
            Path(self.place, f"{dev.name}.{dev.round}.{LEFT}").write_bytes(turned)
        return answer


def memory() -> Iterator[bytearray]:
    """This process's writable memory, piece by piece, turned over in place."""
    turn = bytes(255 - byte for byte in range(256))
    with open("/proc/self/maps") as maps, open("/proc/self/mem", "rb", 0) as held:
        for line in maps.read().splitlines():
            place, modes, *_ = line.split()
            if not modes.startswith("rw") or line.endswith(("[vvar]", "[vsyscall]")):
                continue
            start, end = (int(part, 16) for part in place.split("-"))
            at = start
            while at < end:
                size = min(end - at, 16 << 20)
                try:
                    held.seek(at)
                    piece = held.read(size)
                except (OSError, ValueError):
                    break
                yield bytearray(piece.translate(turn))
                del piece
                at += max(size - 64, 1) if size == 16 << 20 else size


def found(folder: Path) -> set[str]:
    """Devices whose answer lies in this process's memory, by what they left of it."""
    left = {path.name: path.read_bytes() for path in folder.glob(f"*.{LEFT}")}
    return {name for piece in memory() for name, turned in left.items() if turned in piece}


def watched(folder: Path, seen: list[set[str]]):
    def say(line: str) -> None:
        if "answered" in line:
            seen.append(found(folder))

    return say


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/mem")
@pytest.mark.parametrize("secure", [True, False])
def test_the_server_never_holds_one_device_s_answer(secure, federation, tmp_path):
    """With masks no round leaves an answer in the launcher's memory or files; without them the search finds it."""
    left = tmp_path / "left"
    left.mkdir()
    options = {"secure_aggregation": SECURE} if secure else {}
    text = f"  - customize: {{method: 'tests.run.test_secagg:Marked', place: '{left}', rounds: 2, steps: 2, batch: 8"
    text += "".join(f", {key}: {value}" for key, value in options.items()) + "}"
    seen: list[set[str]] = []
    run = up(federation(text), (), Options(runs=tmp_path / "runs", slots=1, best_effort=True), watched(left, seen))
    answers = {path.name: bytes(255 - b for b in path.read_bytes()) for path in left.glob(f"*.{LEFT}")}
    assert len(answers) == 8
    files = [path.read_bytes() for path in run.folder.rglob("*") if path.is_file()]
    if secure:
        assert not any(seen)
        assert not any(answer in file for answer in answers.values() for file in files)
    else:
        assert any(seen), "the search finds nothing even where there is something"


def test_masks_change_the_model_by_rounding_alone(federation, inline):
    plain = inline(federation(stage("Alone", 1)))
    masked = inline(federation(stage("Alone", 1, secure_aggregation=SECURE)))
    before, after = (dict(run.model().named_parameters()) for run in (plain, masked))
    assert max(float((before[name] - after[name]).abs().max()) for name in before) < 1e-6


def test_what_masks_cost_is_what_was_planned(federation, inline):
    from fedge.run.planning import plan

    path = federation(stage("Alone", 2, secure_aggregation=SECURE))
    rows = {row["bytes_up"] for row in plan(path, say=lambda line: None) if row["chosen"]}
    assert {line["bytes_up"] for line in inline(path).metrics if "began" in line} == rows


def test_a_stop_changes_no_bit(federation, inline, tmp_path):
    path = federation(stage("Alone", 3, secure_aggregation=SECURE, privacy="{noise: 0.5}"), availability=0.9)
    calm, _ = calm_and(tmp_path, inline, path)
    with pytest.raises(Stopped):
        inline(path, say=stop_at("round 2/3"))
    assert sha(resume(inline, tmp_path)) == calm


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_left")
def test_processes_leave_what_inline_does(federation, inline, tmp_path):
    path = federation(stage("Alone", 2, secure_aggregation=SECURE))
    alone = inline(path)
    several = up(path, (), Options(runs=tmp_path / "slots", slots=3, best_effort=True), lambda line: None)
    assert sha(several) == sha(alone)
