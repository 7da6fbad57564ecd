import pytest
import torch

from fedge.meter.spans import PHASES, NullMeter, SpanMeter


def test_the_slot_holds_the_innermost_phase():
    meter = SpanMeter()
    with meter.span("load"):
        assert PHASES[meter.slot[0]] == "load"
        with meter.span("forward"):
            assert PHASES[meter.slot[0]] == "forward"
        assert PHASES[meter.slot[0]] == "load"
    assert PHASES[meter.slot[0]] == "idle"


def test_a_phase_that_fails_is_left():
    meter = SpanMeter()
    with pytest.raises(ZeroDivisionError), meter.span("backward"):
        raise ZeroDivisionError
    assert meter.slot[0] == 0
    assert "backward" in meter.seconds


def test_a_phase_of_a_method_s_own_is_another():
    meter = SpanMeter()
    with meter.span("distil"):
        assert PHASES[meter.slot[0]] == "other"
    assert set(meter.seconds) == {"distil"}


def test_counts_add_up_and_are_taken_once():
    meter = SpanMeter()
    meter.count("loss", torch.tensor(1.5))
    meter.count("loss", 2)
    with meter.span("pack"):
        pass
    taken = meter.take()
    assert taken["counts"] == {"loss": 3.5}
    assert set(taken["seconds"]) == {"pack"}
    assert meter.take() == {"seconds": {}, "counts": {}}


def test_nothing_is_noted_where_nobody_asks():
    meter = NullMeter()
    meter.count("loss", torch.tensor(1.0))
    with meter.span("x"), meter.span("y"):
        pass
