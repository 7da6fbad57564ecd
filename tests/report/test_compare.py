"""Runs side by side."""

import json
import shutil

import pytest

from fedge import __main__ as command
from fedge.errors import MissingError
from fedge.report.compare import compare, compare_tables


@pytest.fixture
def fedge(capsys):
    def call(*words):
        with pytest.raises(SystemExit) as ended:
            command.main([str(word) for word in words])
        out, err = capsys.readouterr()
        return ended.value.code, out, err

    return call


def changed(path, file, *replacements):
    text = (path / file).read_text()
    for old, new in replacements:
        assert old in text
        text = text.replace(old, new)
    (path / file).write_text(text)


def test_equal_runs(again, capsys):
    first = again()
    shutil.copytree(first, second := first.with_name("20260131-140000-mine"))
    found = compare([first, second])
    assert [row["same_model"] for row in found["runs"]] == [True, True]
    assert found["settings"] == []
    assert [(row["index"], row["stage"], row["method"], row["rounds"]) for row in found["compare"][:2]] == [
        (0, "train", "fedavg", 6),
        (1, "customize", "lora", 5),
    ]
    assert found["compare"][1]["accuracy"] == pytest.approx(0.95, abs=0.01)
    compare_tables(found)
    out = capsys.readouterr().out
    assert "the same settings" in out
    assert "abababababab the same" in out


def test_what_differs(again, capsys):
    first, second = again(), again("other", status="failed")
    changed(
        second, "resolved.yaml",
        ("seed: 7", "seed: 8"), ("lora, rounds: 5", "head, lr: 0.1, rounds: 5"), ("box:", "tv:"), ("12MiB", "13MiB"),
    )  # fmt: skip
    found = compare([first, second])
    assert [row["same_model"] for row in found["runs"]] == [True, None]
    assert {row["key"]: (row[first.name], row["other"]) for row in found["settings"]} == {
        "seed": (7, 8),
        "devices.zero.memory": ("12MiB", "13MiB"),
        "devices.box": ("2 × jetson-orin-nano-8g", None),
        "devices.tv": (None, "2 × jetson-orin-nano-8g"),
        "stages.customize.method": ("lora", "head"),
        "stages.customize.lr": (None, 0.1),
    }
    assert [row["finished"] for row in found["compare"]] == [True, True, True, False]
    assert [row["rounds"] for row in found["compare"]] == [6, 5, 6, 2]
    compare_tables(found)
    out = capsys.readouterr().out
    assert "settings that differ" in out
    assert "2/5" in out


def test_a_run_under_way_and_one_without_figures(again, capsys):
    under_way, silent = again(status="running"), again("silent", tests=False)
    with (under_way / "events.jsonl").open("a") as out:
        begun = {"event": "round", "stage": "customize", "round": 2, "virtual_s": 10.4, "time": 1.79e9}
        out.write(json.dumps(begun) + "\n")
    found = compare([under_way, silent])
    assert [row["wall_s"] for row in found["runs"]] == [None, 71.2]
    assert [row["same_model"] for row in found["runs"]] == [None, True]
    assert [(row["rounds"], row["planned"]) for row in found["compare"]] == [(6, 6), (2, 5), (6, 6), (5, 5)]
    assert ["accuracy" in row for row in found["compare"]] == [True, True, False, False]
    for row in (row for rows in found.values() for row in rows):
        assert not any(isinstance(value, dict) for value in row.values())
    compare_tables(found)
    assert "2/5" in capsys.readouterr().out


def test_stages_of_one_name_go_by_their_number(again):
    first, second = again(), again("other")
    for path in (first, second):
        changed(path, "resolved.yaml", ("- train:", "- customize:"))
    changed(second, "resolved.yaml", ("rounds: 6", "rounds: 4"))
    assert [row["key"] for row in compare([first, second])["settings"]] == ["stages.0.customize.rounds"]


def test_folders_of_one_name_go_by_their_paths(again):
    first, second = again("a/run"), again("b/run")
    assert [row["run"] for row in compare([first, second])["runs"]] == [str(first), str(second)]


def test_a_folder_that_is_no_run(finished, tmp_path):
    with pytest.raises(MissingError, match="not a run's folder"):
        compare([finished, tmp_path])


def test_the_verbs(fedge, again, tmp_path):
    first, second = again(), again("other")
    code, out, err = fedge("compare", first, second, "--json")
    assert (code, err) == (0, "")
    assert set(json.loads(out)) == {"runs", "compare", "settings"}
    assert fedge("compare", first)[0] == 2
    assert fedge("compare", first, tmp_path)[0] == 2
    assert fedge("report", first) == (0, f"{first / 'report.html'}\n", "")
    assert (first / "trace.json").is_file()
    assert fedge("report", tmp_path / "none")[0] == 2
