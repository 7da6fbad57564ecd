"""``ps`` and ``stats``: what their rows and tables say."""

from dataclasses import replace

import pytest

from fedge.report.snapshot import Snapshot
from fedge.report.standing import ps_table, stats_lines, stats_rows, stats_table
from tests.report.test_picture import RECORDED

ROW = {
    "run": "runs/20260131-120000-quickstart",
    "federation": "quickstart",
    "status": "running",
    "phase": "rounds",
    "stage": "customize",
    "round": 3,
    "rounds": 4,
    "devices": 10,
    "lost": 1,
    "wall_s": 61.5,
    "pid": 4321,
}


def test_ps_has_a_line_for_each_run(capsys):
    starting = {**ROW, "stage": None, "phase": "planning", "round": None, "rounds": None, "devices": None, "lost": None}
    ps_table([ROW, starting, {**starting, "status": "killed", "wall_s": None, "pid": None}])
    heading, *lines = capsys.readouterr().out.splitlines()
    assert heading.split() == ["run", "federation", "status", "stage", "round", "devices", "lost", "elapsed", "pid"]
    first, second, third = (line.split() for line in lines)
    assert first[:7] == [ROW["run"].removeprefix("runs/"), "quickstart", "running", "customize", "3/4", "10", "1"]
    assert first[7:] == ["61.5", "s", "4321"]
    assert second[3:5] == ["planning", "–"]
    assert third[2:] == ["killed", "–", "–", "–", "–", "–", "–"]
    ps_table([])
    assert capsys.readouterr().out == "no runs\n"


def test_stats_say_what_each_device_holds_and_does(capsys):
    rows = {row["name"]: row for row in stats_rows(RECORDED)}
    assert rows["zero-02"]["state"] == "lost"
    assert rows["box-00"]["memory"] == 1275232
    assert rows["box-00"]["budget_memory"] == 7340032000
    stats_table(RECORDED)
    title, heading, *lines = capsys.readouterr().out.splitlines()
    assert title == "runs/20260131-120000-quickstart: customize with auto, round 3 of 4"
    assert heading.split()[:4] == ["device", "state", "memory", "budget"]
    assert lines[0].split()[:6] == ["box-00", "computing", "1.22", "MiB", "6.84", "GiB"]
    assert len(lines) == 10


def test_stats_before_there_is_a_stage(capsys):
    stats_table(Snapshot("runs/x", "clinic", at=0.0, elapsed_s=0.0, phase="planning"))
    assert capsys.readouterr().out == "runs/x: planning\n"


@pytest.mark.parametrize("columns", [40, 79, 159])
@pytest.mark.parametrize("rows", [1, 2, 5, 11, 12, 40])
def test_stats_fit_the_terminal_and_count_what_they_hide(columns, rows):
    lines = [line.plain for line in stats_lines(RECORDED, columns, rows)]
    assert len(lines) <= rows
    assert max(map(len, lines)) <= columns
    if rows >= 12:
        assert len(lines) == 12
    elif rows > 2 and columns > 50:
        assert lines[-1] == f"… and {12 - (rows - 1)} devices more: --no-stream shows all"


def test_only_the_method_is_shortened_at_80_columns():
    variant = {"micro_batch": 8, "depth": 0.5}
    long = replace(RECORDED, devices=tuple(replace(device, variant=variant) for device in RECORDED.devices))
    wide = [line.plain for line in stats_lines(long, 300, 40)]
    for line, whole in zip(stats_lines(long, 79, 40), wide, strict=True):
        cut = line.plain.removesuffix("…")
        assert whole.startswith(cut)
        assert len(cut) >= wide[1].index("method") or line.plain == whole
