"""What is read out of a run's folder, also when the run was killed, resumed, or kept less."""

import json

import pytest

from fedge.errors import FedgeError, MissingError
from fedge.report.files import write_beside
from fedge.report.record import Record
from fedge.report.usage import usages
from tests.report.made import DEVICES, LOST, MIB


def lines(path, name):
    return [json.loads(line) for line in (path / name).read_text().splitlines()]


def rewrite(path, name, records):
    (path / name).write_text("".join(json.dumps(record) + "\n" for record in records))


def test_a_run_in_order(finished):
    record = Record(finished)
    assert (record.name, record.status, record.measure()) == ("lost-three", "done", "accuracy")
    assert record.devices == list(DEVICES)
    assert [(s.name, s.method, s.planned, len(s.rounds)) for s in record.stages] == [
        ("train", "fedavg", 6, 6),
        ("customize", "lora", 5, 5),
    ]
    assert {loss.device: loss.said["cause"] for loss in record.losses} == LOST
    assert [answer.device for answer in record.answers if answer.late] == ["phone-05"]
    assert record.stages[1].began == record.stages[0].ended == pytest.approx(6 * 1.3)
    assert len(record.tests) == 11
    assert record.tests[-1].bytes_sent == sum(a.said["bytes_up"] + a.said["bytes_down"] for a in record.answers)


@pytest.mark.parametrize("numbered", [True, False])
def test_two_stages_of_one_name_stay_two(again, numbered):
    path = again()
    for name in ("events.jsonl", "metrics.jsonl"):
        kept = lines(path, name)
        for line in kept:
            if numbered:
                line["stage_index"] = ["train", "customize"].index(line["stage"])
            line["stage"] = "customize"
        rewrite(path, name, kept)
    record = Record(path)
    assert [len(stage.rounds) for stage in record.stages] == [6, 5]
    assert [len(stage.devices) for stage in record.stages] == [20, 20]
    assert sum(answer.stage == 1 for answer in record.answers) == 100


def test_what_a_resumed_run_says_twice_counts_once(again):
    path = again()
    events = lines(path, "events.jsonl")
    rewrite(path, "events.jsonl", events + events)
    twice = Record(path)
    rewrite(path, "events.jsonl", events)
    once = Record(path)
    assert len(twice.losses) == len(once.losses) == 3
    assert len(twice.picks) == len(once.picks) == 40
    assert [stage.rounds for stage in twice.stages] == [stage.rounds for stage in once.stages]


def test_where_a_turn_began_is_worked_out_when_it_was_not_kept(again):
    path = again()
    told = {(a.device, a.stage, a.round): a.began for a in Record(path).answers}
    rewrite(path, "metrics.jsonl", [{k: v for k, v in r.items() if k != "began"} for r in lines(path, "metrics.jsonl")])
    record = Record(path)
    for answer in record.answers:
        if (answer.device, answer.round) != ("phone-05", 3):  # it was still busy with the round before
            assert answer.began == pytest.approx(told[answer.device, answer.stage, answer.round])


@pytest.mark.parametrize("kept", [(), ("events.jsonl",), ("metrics.jsonl",), ("events.jsonl", "metrics.jsonl")])
def test_files_may_be_missing(again, kept):
    path = again()
    for name in ("events.jsonl", "metrics.jsonl", "summary.json", "host.json"):
        if name not in kept:
            (path / name).unlink()
    record = Record(path)
    assert record.status == "unknown"
    assert bool(record.answers) == ("metrics.jsonl" in kept)
    assert len(record.stages) == (2 if kept else 0)


def test_torn_and_foreign_lines_are_left_out(again):
    path = again()
    whole = Record(path)
    for name in ("events.jsonl", "metrics.jsonl"):
        with (path / name).open("a") as out:
            out.write('[1]\n\n{"event": "lost", "stage": "train", "rou')
    (path / "summary.json").write_text("{")
    torn = Record(path)
    assert (len(torn.answers), len(torn.losses)) == (len(whole.answers), len(whole.losses))


def test_a_file_that_is_no_longer_understood(again):
    path = again()
    (path / "resolved.yaml").write_text("name: [mine\n")
    record = Record(path)
    assert record.name == path.name
    assert sorted(record.devices) == sorted(DEVICES)
    assert usages(record)["zero-00"][0].budget == 12 * MIB


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(MissingError, match=r"no resolved\.yaml"):
        Record(tmp_path)


def test_usage_of_memory(finished, again):
    used = usages(Record(finished))
    assert [use.peak for use in used["zero-02"]] == [9 * MIB, 5 * MIB]
    assert [use.over for use in used["zero-02"]] == [True, False]
    assert used["zero-02"][0].short() == "over 12 MiB"
    assert used["pi-00"][0].short() == "9 MiB of 64 MiB"
    still = usages(Record(again(status="running")))
    assert still["pi-00"][1].peak == 5 * MIB
    assert still["pi-00"][1].budget == 64 * MIB


def test_writing_where_nothing_can_be_written(tmp_path):
    (tmp_path / "report.html").mkdir()
    with pytest.raises(FedgeError, match=r"report\.html can't be written"):
        write_beside(tmp_path / "report.html", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
