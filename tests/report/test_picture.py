"""The live view's lines, drawn from a recorded snapshot at two widths, and at widths that are too small."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.cells import cell_len

from fedge.report.picture import picture, shortened, sparkline
from fedge.report.snapshot import PHASES, STATES, Snapshot

#: The quickstart's ten devices in their second stage, as the launcher wrote it; with a curve, a sender and a loss.
FOUND = Snapshot.from_json(json.loads((Path(__file__).parent / "progress.json").read_text()))
DEVICES = {device.name: device for device in FOUND.devices}
DEVICES["phone-00"] = replace(DEVICES["phone-00"], state="sending")
DEVICES["zero-02"] = replace(DEVICES["zero-02"], state="lost", lost="memory", losses=1)
CURVE = (0.75, 0.8125, 0.9375, 0.9721, 0.9749, 0.9721)
RECORDED = replace(FOUND, measure="accuracy", curve=CURVE, devices=tuple(DEVICES.values()))


def drawn(snapshot, columns, now=0.0, passing=""):
    return [line.plain for line in picture(snapshot, passing, columns, snapshot.at + now if snapshot else now)]


def test_80_columns():
    assert drawn(RECORDED, 80, now=2.0) == [
        "customize · auto  round 3 of 4  stage 2 of 3  " + "━" * 34,
        "10 devices: 2 computing, 1 sending, 6 waiting, 1 lost",
        "computing: box-00, box-01",
        "accuracy 0.9721  best 0.9749  ▁▃▇███",
        "7 min 09 s elapsed  about 1 min 16 s to the end  10.2 s emulated",
    ]


def test_160_columns():
    first, *rest = drawn(RECORDED, 160, now=2.0)
    assert first == "customize · auto  round 3 of 4  stage 2 of 3  " + "━" * 40
    assert rest == drawn(RECORDED, 80, now=2.0)[1:]


def test_the_bar_is_full_when_the_stage_is():
    line = picture(RECORDED, "", 80, RECORDED.at)[0]
    bar = line.plain.rpartition("  ")[2]
    done = {span.style: span.end - span.start for span in line.spans}
    assert done["green"] == len(bar) // 2, "two rounds of four are done in the third"
    closing = picture(replace(RECORDED, phase="closing", round=4), "", 80, RECORDED.at)[0]
    assert "bright_black" not in {span.style for span in closing.spans if span.end > span.start}


@pytest.mark.parametrize("columns", [1, 2, 10, 24, 33, 40, 57, 79, 80, 120, 160, 300])
@pytest.mark.parametrize("phase", PHASES)
def test_no_line_is_wider_than_the_terminal(columns, phase):
    for snapshot in (
        replace(RECORDED, phase=phase),
        replace(RECORDED, phase=phase, stage=None, devices=()),
        replace(RECORDED, federation="f" * 200, method="m" * 200),
    ):
        for line in drawn(snapshot, columns, passing="reading " * 30):
            assert cell_len(line) <= columns


@pytest.mark.parametrize("columns", range(12, 100))
def test_what_has_no_room_is_left_out_whole(columns):
    """A number that is cut would be another number."""
    whole = {part for line in drawn(RECORDED, 300) for part in line.replace(": ", ", ").replace(", ", "  ").split("  ")}
    for line in drawn(RECORDED, columns):
        parts = [part for part in line.replace(": ", ", ").replace(", ", "  ").split("  ") if part]
        for part in parts:
            drawing = not set(part) - set("━▁▂▃▄▅▆▇█")
            assert part.rstrip(":") in whole or part.endswith("…") or drawing, line


def test_every_state_is_counted():
    line = drawn(RECORDED, 200)[1]
    named = {word: int(number) for number, word in (part.split() for part in line.partition(": ")[2].split(", "))}
    assert named == {state: RECORDED.count(state) for state in STATES if state != "picking"}
    picking = replace(RECORDED, devices=tuple(replace(device, state="picking") for device in RECORDED.devices))
    assert "10 picking" in drawn(picking, 80)[1]


def test_before_anything_is_known():
    assert drawn(None, 80) == ["fedge is starting"]
    early = Snapshot("runs/x", "clinic", at=5.0, elapsed_s=2.0, phase="planning")
    assert drawn(early, 80, now=1.0, passing="plan: tracing lora (3 of 12)") == [
        "clinic  planning",
        "plan: tracing lora (3 of 12)",
        "3 s elapsed",
    ]


def test_the_clock_goes_on_between_snapshots_and_stands_at_the_end():
    assert drawn(RECORDED, 80, now=100.0)[-1].startswith("8 min 47 s elapsed  about 1 s to the end")
    assert drawn(replace(RECORDED, phase="ended"), 80, now=500.0)[-1] == "7 min 07 s elapsed  10.2 s emulated"
    assert drawn(replace(RECORDED, left_s=None, elapsed_s=3700), 80)[-1] == "1 h 02 min elapsed  10.2 s emulated"


def test_for_perplexity_less_is_better():
    line = drawn(replace(RECORDED, measure="perplexity", curve=(30.0, 12.5, 14.0)), 80)[3]
    assert line == "perplexity 14.00  best 12.50  █▁▂"


def test_one_value_is_no_curve():
    assert drawn(replace(RECORDED, curve=(0.5,)), 80)[3] == "accuracy 0.5000"


def test_a_sparkline_keeps_the_first_height_and_the_last_value():
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 10) == "▁▂▃▄▅▆▇█"
    assert sparkline([2.0, 2.0], 10) == "▄▄"
    assert sparkline([], 10) == ""
    many = sparkline([*range(999), -5.0], 10)
    assert len(many) == 10
    assert many[-1] == "▁"


def test_names_are_cut_with_an_ellipsis_by_cells():
    assert shortened("phone-00", 8) == "phone-00"
    assert shortened("phone-00", 6) == "phone…"
    assert cell_len(shortened("端末端末端末", 6)) <= 6
