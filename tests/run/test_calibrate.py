"""Rates fitted to steps whose seconds are made up from rates that are known."""

import pytest
import yaml

from fedge.core.cost import KINDS
from fedge.emulation.roofline import Rates, compute_seconds
from fedge.meter.work import Work
from fedge.run import calibrate
from fedge.spec.device import load_profile, rates_with

TRUE = Rates(5e9, 2e9, 1e-5, tuple(zip(KINDS, (2.0, 3.0, 1.5, 40.0, 6.0), strict=True)))
WORKS = [Work(f, b, n) for f, b, n in ((1e9, 3e7, 900), (4e9, 5e7, 300), (2e7, 2e7, 2000), (8e9, 9e8, 700))]


def _timed(work, name="step", of="tiny"):
    seconds = compute_seconds(work.flops, work.traffic, work.ops, TRUE, work.shares)
    return calibrate.Timed(name, of, work, seconds)


def _family(index):
    kinds = [0.0] * len(KINDS)
    kinds[index] = 1e9
    return _timed(Work(1.2e9, 1e7, 40, tuple(kinds)), of=KINDS[index])


def test_known_rates_are_found_again():
    steps = [_timed(work) for work in WORKS]
    families = [_family(index) for index in range(len(KINDS))]
    found = calibrate.with_families(calibrate.fitted(steps), families)
    assert (found.flops, found.memory_bandwidth, found.per_op) == pytest.approx((5e9, 2e9, 1e-5), rel=1e-6)
    assert dict(found.slower) == pytest.approx(dict(TRUE.slower), rel=1e-6)
    assert calibrate.Sustained(found, (*steps, *families)).error("") < 1e-6


def test_the_profile_that_is_written_is_one(tmp_path):
    steps = tuple(_timed(work) for work in WORKS)
    path = tmp_path / "mine.yaml"
    path.write_text(calibrate.profile(calibrate.Sustained(TRUE, steps), "mine", 2))
    rates = rates_with(load_profile(path), "pytorch")
    assert (rates.basis, rates.flops, rates.memory_bandwidth) == ("measured", 5e9, 2e9)
    assert dict(rates.slower) == dict(TRUE.slower)
    assert yaml.safe_load(path.read_text())["basis"]["power"] == "E"


def test_a_probe_is_counted_and_timed():
    probe = next(iter(calibrate.transformers(["classifier"])))
    told = []
    (timed,) = calibrate.measured([probe], told.append)
    assert timed.work.flops > 0
    assert timed.seconds > 0
    assert "tiny transformer, classifier" in told[0]


@pytest.mark.slow
def test_this_machine_gets_a_profile(tmp_path):
    found = calibrate.calibrate(lambda line: None, 1)
    assert found.rates.flops > 1e8
    assert found.error("") < 0.5


def test_a_place_that_cannot_be_written_to_is_told_before_anything_is_measured(fedge, monkeypatch):
    monkeypatch.setattr(calibrate, "calibrate", lambda *about: pytest.fail("it measured"))
    code, out, err = fedge("devices", "calibrate", "--out", "nowhere/mine.yaml")
    assert (code, out) == (1, "")
    assert "nowhere/mine.yaml" in err
    assert "Traceback" not in err
