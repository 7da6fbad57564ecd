"""Rules around methods: what stands in for the mean, and that attackers are what they say."""

import pytest
import torch

from fedge.methods.combine.robust import Robust
from fedge.methods.make import make
from fedge.testing.attacks import Attack
from fedge.testing.case import Case, bits
from fedge.testing.driver import start
from fedge.testing.kit import check_property
from fedge.testing.tiny import tiny

from .conftest import WITHOUT_KEYS

INNER = make("bitfit", {"steps": 2, "batch": 4})


def driven(method, attackers=(), kind="sign_flip", count=7, public=True):
    base = tiny("image")
    rows = {f"d{n}": base.rows(6, f"{n}") for n in range(count)}
    variants = {name: Attack(inner=INNER, kind=kind, scale=1e4) if name in attackers else method for name in rows}
    return start(
        method, base.model, rows, base.task, variants=variants, public=base.rows(20, "public") if public else None
    )


def moved(begun):
    before = {name: tensor.clone() for name, tensor in begun.state["inner"]["weights"].items()}
    begun.go(1)
    after = begun.state["inner"]["weights"]
    return max(float((after[name] - before[name]).abs().max()) for name in before)


@pytest.mark.parametrize("rule", ["median", "trimmed", "krum", "multikrum", "clip", "fltrust"])
def test_two_of_seven_that_send_ten_thousandfold_hardly_move_the_model(rule):
    # without a rule they move it by thousands of a device's step
    assert moved(driven(Robust(inner=INNER, rule=rule), attackers=("d2", "d5"))) < 0.02


def test_without_a_rule_they_do():
    class Mean(Robust):
        def combine(self, srv, state, replies):
            return state, replies

    assert moved(driven(Mean(inner=INNER), attackers=("d2", "d5"))) > 1


def test_attackers_send_what_they_say():
    honest = driven(Robust(inner=INNER)).go(1).sent[0]["d2"][0]
    flipped = driven(Robust(inner=INNER), attackers=("d2",)).go(1).sent[0]["d2"][0]
    free = driven(Robust(inner=INNER), attackers=("d2",), kind="free_rider").go(1).sent[0]["d2"][0]
    for name, tensor in honest["delta"].items():
        assert torch.allclose(flipped["delta"][name], -1e4 * tensor, rtol=1e-4)
    spread = torch.cat([tensor.flatten() for tensor in free["delta"].values()])
    assert float(spread.std()) == pytest.approx(1e-3, rel=0.2)


def test_a_rule_that_has_too_few_answers_leaves_the_state():
    begun = driven(Robust(inner=INNER, rule="krum", attackers=0.4))
    before = bits(begun.state)
    begun.go(1, lost={(0, 0): ["d0", "d1"]})  # five answers, of which two may be hostile: seven are needed
    assert bits(begun.state) == before
    begun.go(1)
    assert bits(begun.state) != before


@pytest.mark.kit
@pytest.mark.parametrize("rule", ["median", "multikrum", "clip", "fltrust"])
@pytest.mark.parametrize("property", WITHOUT_KEYS)
def test_the_kit_holds_around_bitfit(rule, property):
    check_property(property, Case.of(Robust(inner=INNER, rule=rule, attackers=0.1), tiny("image")))
