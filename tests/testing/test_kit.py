"""The kit itself: a good method passes it, and every property catches the methods that break it."""

import pytest

from fedge.errors import ConfigError
from fedge.testing import PROPERTIES, NotConforming, check_method
from fedge.testing.kit import settings_of
from tests.testing.culprits import CAUGHT, Good, NoPaper


@pytest.mark.parametrize(
    ("culprit", "property", "words"),
    [
        pytest.param(*row, id=row[0].__name__, marks=[pytest.mark.slow] if row[1] in ("export", "bytes") else [])
        for row in CAUGHT
    ],
)
def test_a_property_catches_its_culprit(culprit, property, words):
    # texts where it is texts that differ: their columns, and the names of their blocks
    setting = "text" if property in ("raw", "absent") else "image"
    with pytest.raises(NotConforming) as caught:
        check_method(culprit(), settings=[setting], properties=[property])
    (line,) = caught.value.broken
    assert line.startswith(f"  {property} ({setting}): ")
    assert words in line


def test_every_property_has_a_culprit():
    assert {property for _, property, _ in CAUGHT} == set(PROPERTIES)


def test_the_good_one_keeps_what_its_culprits_break():
    names = [name for name in PROPERTIES if name not in ("export", "bytes")]
    checked = check_method(Good(), settings=["image"], properties=names)
    assert [(one.property, one.setting) for one in checked] == [(name, "image") for name in names]
    assert not [one for one in checked if one.why]


@pytest.mark.slow
def test_the_good_one_is_planned_and_exported():
    assert not [one for one in check_method(Good(), properties=["bytes", "export"]) if one.why]


def test_all_that_is_wrong_is_said_at_once():
    with pytest.raises(NotConforming) as caught:
        check_method(NoPaper(), settings=["image"], properties=["card", "value"])
    (line,) = caught.value.broken
    for words in ("'deltas' is none of", "'sorting' is none of", "'lost' is none of", "'strange' is not explained"):
        assert words in line
    assert str(caught.value).startswith("tests.testing.culprits:NoPaper\n")


def test_a_waiver_is_told_and_only_some_may_be_waived():
    from dataclasses import replace

    card = replace(Good.card, waives=(("still", "its answers are drawn"),))
    waiving = type("Waiving", (Good,), {"card": card})()
    (checked,) = check_method(waiving, settings=["image"], properties=["still"])
    assert checked.why == "waived: its answers are drawn"


def test_what_is_not_claimed_is_not_asked_for():
    checked = check_method("split", settings=["image"], properties=["alone", "linear"])
    assert [one.why for one in checked] == ["not claimed (card.claims)", "not claimed (linear)"]


def test_methods_are_named_as_everywhere():
    with pytest.raises(ConfigError, match="did you mean 'lora'"):
        check_method("loro")
    with pytest.raises(ValueError, match="no property stil"):
        check_method("head", properties=["stil"])
    assert settings_of(Good()) == ["image", "text"]
    assert check_method("head", {"lr": 0.1}, settings=["image"], properties=["value"])
