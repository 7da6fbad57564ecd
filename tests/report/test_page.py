"""The page: well-formed, self-contained, complete, and nothing in a run can break out of its place."""

import json
import re
from html.parser import HTMLParser

import pytest

from fedge.report.markup import element, join
from fedge.report.page import page, write_report
from fedge.report.record import Record
from fedge.spec import load_federation
from tests.report.made import DEVICES, LOST

VOID = {"meta", "br"}
HOSTILE = '"><script>alert(1)</script>&amp;<img src=x onerror=y>'


class Page(HTMLParser):
    """Checks that every element is closed where it was opened, and keeps what a test asks for."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.addresses, self.words = [], set(), [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]
        assert not [name for name, _ in attrs if name.startswith("on")]
        assert len({name for name, _ in attrs}) == len(attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self):
        return " ".join(self.words)


def parsed(path):
    text = page(Record(path))
    assert not re.search(r"@import|url\(", text)
    found = Page(text)
    assert not found.addresses
    assert not found.tags & {"script", "link", "iframe", "object", "img", "base", "form"}
    return found


def test_a_finished_run(finished):
    found = parsed(finished)
    for device in DEVICES:
        assert device in found.text
    for cause in LOST.values():
        assert f"lost: {cause}" in found.text
    for words in (
        "3 times a device was lost: 1 by deadline, 1 by host, 1 by memory.",
        "killed at its memory wall",
        "over 12 MiB",
        "the most preferred of 4 fits (9 MiB of 64 MiB)",
        "zero-00 … zero-05",
        "logistic regression on raw pixels",
        "majority 0.1",
        "export/exit-2/model.onnx",
        "cpu: affinity can't be set here",
        "ab" * 32,
        "seed 7",
        "- customize: {method: lora, rounds: 5}",
    ):
        assert words in found.text, words


@pytest.mark.parametrize("status", ["failed", "interrupted", "running", "infeasible"])
@pytest.mark.parametrize("tests", [True, False])
def test_a_run_that_is_not_done(again, status, tests):
    found = parsed(again(status=status, tests=tests))
    assert status in found.text
    assert "not finished" in found.text
    assert ("accuracy over bytes sent" in found.text) == tests
    if status == "failed":
        assert "ValueError: <b>no</b> & never" in found.text


def test_what_else_happened(again):
    path = again()
    with (path / "events.jsonl").open("a") as out:
        for event, device, detail in (
            ("unavailable", "box-00", None),
            ("died", "box-01", "killed by signal 9"),
            ("died", "box-01", "killed by signal 9"),
            ("abandoned", None, "2 of 20 answered"),
        ):
            said = {"event": event, "stage": "customize", "round": 4, "virtual_s": 13.0, "detail": detail}
            out.write(json.dumps({**said, "device": device} if device else said) + "\n")
    text = parsed(path).text
    assert "1 time a device was not available" in text
    assert "2 times the host lost a device's process" in text
    assert "customize round 5 was abandoned: 2 of 20 answered." in text


def test_baselines_that_would_flatten_the_curve(again):
    path = again()
    summary = json.loads((path / "summary.json").read_text())
    for name, accuracy, drawn in (("majority", 0.001, True), ("linear", 0.999, True), ("odd", -9.0, False)):
        beside = [{"name": name, "accuracy": accuracy, "detail": "…"}]
        (path / "summary.json").write_text(json.dumps({**summary, "baselines": beside}))
        assert ("outside of the drawing" in parsed(path).text) != drawn


def test_a_run_that_has_hardly_begun(again):
    path = again()
    for name in ("events.jsonl", "metrics.jsonl", "summary.json", "host.json"):
        (path / name).unlink()
    assert "zero-00" in parsed(path).text


def test_a_test_that_found_nothing_or_one_value(again):
    path = again(rounds=(1, 1))
    parsed(path)
    summary = json.loads((path / "summary.json").read_text())
    (path / "summary.json").write_text(json.dumps({**summary, "baselines": [], "exports": [], "degraded": []}))
    found = parsed(path)
    assert "Everything that was asked for was enforced." in found.text
    assert "Exports" not in found.words


def test_nothing_breaks_out(again):
    path = again(name=HOSTILE)
    for name in ("events.jsonl", "metrics.jsonl", "summary.json"):
        text = (path / name).read_text()
        for word in ("phone-05", "lora", "killed at its memory wall", "deadline", "always '1'", "exit-2", "cgroup1"):
            text = text.replace(f'"{word}"', json.dumps(HOSTILE + word))
        (path / name).write_text(text)
    found = parsed(path)
    assert HOSTILE in found.text
    assert HOSTILE + "phone-05" in found.text


def test_many_devices_and_rounds_stay_a_page_one_can_open(tmp_path):
    path = tmp_path / "big"
    path.mkdir()
    (path / "resolved.yaml").write_text("name: big\n")
    devices = [f"phone-{number:04d}" for number in range(2000)]
    events = [
        {"event": "round", "stage": "train", "round": number, "virtual_s": float(number), "cohort": devices[:500]}
        for number in range(20)
    ]
    events += [{"event": "picked", "stage": "train", "round": 0, "virtual_s": 0.0, "device": d} for d in devices]
    answers = [
        {"stage": "train", "round": number, "virtual_s": number + 1.0, "device": device, "arrival": number + 0.9}
        | {"bytes_up": 1, "bytes_down": 1}
        for number in range(20)
        for device in devices[:500]
    ]
    for name, lines in (("events", events), ("metrics", answers)):
        (path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "1,936 more devices" in parsed(path).text
    assert write_report(path).stat().st_size < 2_000_000


def test_a_large_fleet_by_profile(again):
    path = again(times=25)
    found = parsed(path)
    for words in (
        "pi-zero-2w: 150 devices, 1 of them lost at some time",
        "jetson-orin-nano-8g: 50 devices, 0 of them lost at some time",
        "1 device lost: memory",
        "150 of 150 devices at work",
        "86 more devices with fewer losses and answers not drawn",
    ):
        assert words in found.text, words
    lanes = found.text.partition("Devices over time")[2].partition("What was lost, and why")[0]
    assert "zero-002 lost in train round 3" in lanes
    assert lanes.index("phone-005 lost in") > lanes.index("android-low-3g: 200 devices")


def test_it_is_told_how_the_rates_of_each_device_are_known(finished):
    record = Record(finished)
    declared = load_federation(finished / "resolved.yaml").devices
    assert {name: text.split(", ") for name, text in record.rates.items()} == {
        device.name: [device.rates_basis, device.stack] for device in declared
    }
    words = " ".join(Page(page(record)).words)
    assert declared
    assert all(text in words for text in record.rates.values())


def test_joules_are_told_by_what_they_went_to(finished):
    record = Record(finished)
    words = Page(page(record)).words
    rounds = sum(line["device"] == record.devices[0] for stage in record.stages for line in stage.devices)
    assert rounds
    for part, joules in (("idle", 4.125), ("compute", 6.375), ("radio", 1.5)):
        assert part in words
        assert f"{rounds * joules:,.1f} J" in words


def test_drawings_have_words_and_their_figures_a_table(finished):
    text = page(Record(finished))
    drawings = re.findall(r'<svg[^>]*role="img"[^>]*>', text)
    assert len(drawings) == 4
    for drawing in drawings:
        assert len(re.search(r'aria-label="([^"]*)"', drawing)[1]) > 30
    assert text.count("<th ") == text.count('<th scope="col"') > 40
    found = parsed(finished).text
    record = Record(finished)
    curves = found.partition("The curves in figures")[2].partition("baseline")[0]
    assert all(f"{test.metrics['accuracy']:.4f}" in curves for test in record.tests)
    assert "Budgets and peaks in figures" in found
    # stages differ in shape and not in colour alone
    assert {"circle", "path"} <= parsed(finished).tags


def test_a_device_that_is_lost_again_stays_one_row(again):
    path = again()
    said = {"event": "lost", "stage": "train", "device": "phone-05", "cause": "deadline", "arrival": 9.9}
    with (path / "events.jsonl").open("a") as out:
        for number in (1, 3, 5):
            out.write(json.dumps({**said, "round": number, "virtual_s": 1.3 * number}) + "\n")
    text = parsed(path).text
    assert "6 times a device was lost: 4 by deadline" in text
    assert "2 … 4, 6" in text
    assert text.count("answer would have come at") == 1


def test_a_language_model(again):
    path = again()
    for name in ("metrics.jsonl", "summary.json"):
        (path / name).write_text((path / name).read_text().replace('"accuracy"', '"perplexity"'))
    found = parsed(path)
    assert "perplexity over emulated time" in found.text
    assert "accuracy over emulated time" not in found.text


def test_markup_escapes_what_is_not_markup():
    inner = element("b", "1 < 2")
    assert inner == "<b>1 &lt; 2</b>"
    assert element("p", inner, " & ", [inner, None], class_="a\"'<") == (
        '<p class="a&quot;&#x27;&lt;"><b>1 &lt; 2</b> &amp; <b>1 &lt; 2</b></p>'
    )
    assert join("<", None, False, 0, 1.5) == "&lt;01.5"
    assert element("meta", charset="utf-8", wrong=None) == '<meta charset="utf-8">'


def test_what_is_not_of_its_kind_is_left_out(again):
    path = again()
    odd = [
        {"event": "lost", "stage": ["train"], "round": 1, "device": "box-00", "virtual_s": 1.0},
        {"event": "lost", "stage": "train", "round": "x", "device": 3, "virtual_s": "soon"},
        {"event": "picked", "stage": "train", "round": 0, "device": "box-00", "predicted_peak": "much", "variant": 7},
        {"event": ["lost"], "stage": "train"},
    ]
    with (path / "events.jsonl").open("a") as out:
        out.writelines(json.dumps(line) + "\n" for line in odd)
    with (path / "metrics.jsonl").open("a") as out:
        out.write('{"stage": "train", "round": 0, "device": "box-00", "bytes_up": "many", "arrival": 1e400}\n')
    summary = json.loads((path / "summary.json").read_text())
    wrong = {"baselines": 3, "exports": [None, 4, {"bytes": "few"}], "limits": [], "wall_s": "long", "stages": {}}
    (path / "summary.json").write_text(json.dumps({**summary, **wrong}))
    assert "3 times a device was lost" in parsed(path).text


def test_devices_on_other_machines(again):
    path = again()
    summary = json.loads((path / "summary.json").read_text())
    device = {"joined": 2, "received": 2048, "sent": 4096, "refused": {"round": 1}, "ignored": 3}
    turned = {"key": 4, "handshake": 5, "often": 0}
    summary["remote"] = {"address": "tcp://0.0.0.0:7700", "turned_away": turned, "devices": {HOSTILE: device}}
    (path / "summary.json").write_text(json.dumps(summary))
    text = parsed(path).text
    assert "Turned away: 4 by an unlisted key, 5 in the handshake, 0 that came too often." in text
    assert "round 1" in text
