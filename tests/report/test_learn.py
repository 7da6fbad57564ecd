"""What runs say that methods are worth: one method in one variant a run, the mean over seeds, one task."""

import json

import pytest

from fedge.commands.learn import learn, write
from fedge.errors import ConfigError


def set_(path, *, accuracy=None, variant=None, dataset=None):
    """Change what a made-up run says of its second stage."""
    summary = json.loads((path / "summary.json").read_text())
    summary["task"] = "image-classification"
    if accuracy is not None:
        summary["stages"][1]["metrics"]["accuracy"] = accuracy
    (path / "summary.json").write_text(json.dumps(summary))
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    for number, line in enumerate(line for line in lines if line["round"] is None and line["stage"] == "customize"):
        line["rounds"] = 5
        line["variant"] = variant(number) if variant else {}
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if dataset:
        text = (path / "resolved.yaml").read_text()
        (path / "resolved.yaml").write_text(text.replace("dataset: digits", f"dataset: {dataset}"))
    return path


def test_a_row_is_the_mean_over_runs_of_one_method_and_variant(again, tmp_path):
    runs = [
        set_(again("a"), accuracy=0.8),
        set_(again("b"), accuracy=0.9),
        set_(again("c"), accuracy=0.5, variant=lambda n: {"depth": 0.5}),
        set_(again("d"), accuracy=0.99, variant=lambda n: {"depth": 0.5} if n else {}),
    ]
    found = learn(runs)
    assert found["metric"] == "accuracy"
    rows = {json.dumps(row["variant"]): row for row in found["rows"]}
    assert len(rows) == 2, "what was trained in several variants says nothing of any"
    whole = rows["{}"]
    assert (whole["method"], whole["worth"], whole["n"]) == ("lora", pytest.approx(0.85), 2)
    assert whole["spread"] == pytest.approx(0.1)
    assert rows['{"depth": 0.5}']["worth"] == 0.5
    write(tmp_path / "worth.json", runs)
    assert json.loads((tmp_path / "worth.json").read_text()) == found


def test_runs_of_two_tasks_are_refused(again):
    with pytest.raises(ConfigError, match="not of one task"):
        learn([set_(again("a")), set_(again("b"), dataset="other")])


def test_nothing_to_learn_is_said(again):
    with pytest.raises(ConfigError, match="one method in one variant alone"):
        learn([set_(again("a"), variant=lambda n: {"depth": 0.5} if n else {})])
