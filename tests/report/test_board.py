"""TensorBoard's event files: read back as TensorBoard reads them."""

import json
import subprocess
import sys
import time

import pytest

from fedge import __main__ as command
from fedge.errors import FedgeError, MissingError
from fedge.report import board
from fedge.report.board import Board, follower, scalars, write_board
from fedge.report.record import Record
from fedge.report.snapshot import Snapshot
from tests.report.made import DEVICES, MIB
from tests.report.reading import points

pytest.importorskip("tensorboardX")


@pytest.fixture(scope="module")
def written(finished, tmp_path_factory):
    return points(write_board(finished, tmp_path_factory.mktemp("boards")))


def test_a_stage(written, finished):
    record = Record(finished)
    accuracy = [test.metrics["accuracy"] for test in record.tests if test.stage == 0]
    assert [step for step, *_ in written["train/accuracy"]] == [1, 2, 3, 4, 5, 6]
    assert [value for _, value, _ in written["train/accuracy"]] == pytest.approx(accuracy)
    assert len(written["customize/loss"]) == 5
    assert [value for _, value, _ in written["train/lost"]] == [0, 0, 3, 0, 0, 0]
    assert [value for _, value, _ in written["train/answered"]] == [20, 20, 18, 19, 19, 19]
    assert [value for _, value, _ in written["train/virtual_s"]] == pytest.approx([1.3] * 6)
    assert {value for _, value, _ in written["customize/peak_memory"]} == {5 * MIB}
    assert written["train/bytes_up"][0][1] == 20 << 18


def test_a_device(written):
    assert [step for step, *_ in written["train-devices/peak_memory/zero-02"]] == [1, 2, 4, 5, 6]
    first = "customize-devices/virtual_s/"
    assert {tag.removeprefix(first) for tag in written if tag.startswith(first)} == set(DEVICES)
    assert [step for step, *_ in written["train-devices/accuracy/box-00"]] == [6]
    assert written["train-devices/loss/box-00"][0][1] == 0.5


def test_wall_times_are_those_of_the_run(written):
    """A round had ended when the next one began, and the last when the run last said something."""
    walls = [wall for *_, wall in written["train/accuracy"]] + [wall for *_, wall in written["customize/accuracy"]]
    assert walls == pytest.approx([1.79e9 + 1.3 * n for n in range(1, 11)] + [1.79e9 + 1.3 * 10])


def test_stages_of_one_name_are_told_apart(again):
    path = again()
    for name in ("events.jsonl", "metrics.jsonl"):
        lines = [json.loads(line) for line in (path / name).read_text().splitlines()]
        for line in lines:
            line["stage_index"] = ["train", "customize"].index(line["stage"])
            line["stage"] = "customize"
        (path / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    tags = {scalar.tag for scalar in scalars(Record(path))}
    assert {"0-customize/accuracy", "1-customize/accuracy"} <= tags
    assert not any("stage_index" in tag for tag in tags)


def test_following_a_run_that_grows(again, tmp_path):
    path = again()
    metrics = (path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (path / "metrics.jsonl").write_text("".join(metrics[:42]))
    growing = Board(path, tmp_path / "board")
    growing.follow()
    (path / "metrics.jsonl").write_text("".join(metrics))
    growing.close()
    found = points(growing.folder)
    assert [step for step, *_ in found["train/accuracy"]] == [1, 2, 3, 4, 5, 6]
    assert {tag: [p[:2] for p in some] for tag, some in found.items()} == {
        tag: [p[:2] for p in some] for tag, some in points(write_board(path, tmp_path / "boards")).items()
    }


def test_a_run_shows_itself(again, monkeypatch):
    """It is read when it has grown, and closed at its end; what else looks on goes on looking."""
    path = again()
    monkeypatch.setattr(board, "_SHARE", 1e9)
    metrics = (path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (path / "metrics.jsonl").unlink()
    seen = []
    look = follower(seen.append)

    def at(phase):
        return Snapshot(run=str(path), federation="mine", at=0.0, elapsed_s=1.0, phase=phase)

    look(at("preparing"))
    assert not (path / "tensorboard").exists()
    for lines, steps in ((21, [1]), (21, [1]), (42, [1, 2]), (len(metrics), [1, 2, 3, 4, 5, 6])):
        (path / "metrics.jsonl").write_text("".join(metrics[:lines]))
        look(at("rounds"))
        wait_for(lambda steps=steps: [p[0] for p in points(path / "tensorboard").get("train/accuracy", [])] == steps)
    look(at("ended"))
    assert points(path / "tensorboard").keys() == points(write_board(path, path / "again")).keys()
    assert [snapshot.phase for snapshot in seen] == ["preparing", *["rounds"] * 4, "ended"]


def wait_for(true, seconds=30.0):
    """The writer has a thread of its own."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_looking_takes_a_small_share_of_the_time(again, tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(board.time, "monotonic", lambda: now[0])
    read = []

    class Slow(Record):
        def __init__(self, path):
            super().__init__(path)
            read.append(now[0])
            now[0] += 1.0

    growing = Board(again(), tmp_path / "board")
    monkeypatch.setattr(board, "Record", Slow)
    for _ in range(50):
        growing.follow()
        now[0] += 1.0
    growing.close()
    assert len(read) == 4  # at once, 20 s and 40 s later, and at the end


def test_files_of_its_own_are_replaced_and_others_stay(again, tmp_path):
    path = again()
    folder = write_board(path, tmp_path / "boards")
    (folder / "events.out.tfevents.1.somebody").write_text("")
    write_board(path, tmp_path / "boards")
    assert sorted(file.suffix for file in folder.iterdir()) == [".fedge", ".somebody"]


def test_a_run_of_which_nothing_is_known_yet(again, tmp_path):
    path = again(status="running")
    for name in ("events.jsonl", "metrics.jsonl", "summary.json"):
        (path / name).unlink()
    assert points(write_board(path, tmp_path / "boards")) == {}


def test_the_verb(again, tmp_path, capsys, monkeypatch):
    path = again()
    with pytest.raises(SystemExit) as ended:
        command.main(["report", str(path), "--tensorboard", str(tmp_path / "boards")])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"{path / 'report.html'}\n{tmp_path / 'boards' / path.name}\n"
    (path / "report.html").unlink()
    monkeypatch.setattr(board, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as ended:
        command.main(["report", str(path), "--tensorboard", str(tmp_path / "boards")])
    assert ended.value.code == 2
    told = "fedge: writing for TensorBoard needs tensorboardX (pip install 'fedge[tensorboard]')\n"
    assert capsys.readouterr() == ("", told)
    assert not (path / "report.html").exists()


def test_where_nothing_can_be_written(again, tmp_path):
    (tmp_path / "board").write_text("")
    with pytest.raises(FedgeError, match="board can't be written"):
        Board(again(), tmp_path / "board")
    with pytest.raises(MissingError):
        write_board(tmp_path / "none", tmp_path)


def test_nothing_of_it_is_imported_before_it_is_asked_for():
    code = "import sys, fedge.cli, fedge.report.board; sys.exit('tensorboardX' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
