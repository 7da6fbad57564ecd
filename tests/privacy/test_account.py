"""Epsilon against published figures and the library's own accountants; noise that is found keeps its budget."""

import math
from dataclasses import replace

import dp_accounting
import pytest
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant

from fedge.privacy.account import Release, multiplier, spent
from fedge.privacy.budget import Budgeted, sentence

#: Sampling probability, noise, rounds: settings that papers and the library's own documents use, at delta 1e-5.
SETTINGS = [(0.01, 1.0, 1000), (0.01, 1.1, 10_000), (1.0, 4.0, 1), (0.1, 1.0, 200), (0.05, 1.5, 400)]


@pytest.mark.parametrize(("sampling", "noise", "rounds"), SETTINGS)
def test_epsilon_is_the_library_s(sampling, noise, rounds):
    accountant = PLDAccountant()
    event = dp_accounting.PoissonSampledDpEvent(sampling, dp_accounting.GaussianDpEvent(noise))
    accountant.compose(event, rounds)
    assert spent([(Release(noise, sampling), rounds)], 1e-5) == pytest.approx(accountant.get_epsilon(1e-5), abs=1e-3)


def test_one_gaussian_is_the_analytic_one():
    """Balle & Wang 2018 (arXiv 1805.06530, theorem 8): delta of a Gaussian of noise z at epsilon."""
    noise, delta = 4.0, 1e-5
    epsilon = spent([(Release(noise), 1)], delta)

    def below(x):
        return 0.5 * math.erfc(-x / math.sqrt(2))

    found = below(0.5 / noise - epsilon * noise) - math.exp(epsilon) * below(-0.5 / noise - epsilon * noise)
    assert found == pytest.approx(delta, rel=1e-3)


def test_a_tree_costs_its_depth():
    """64 rounds of a tree: a device is in 7 nodes, so the tree is seven Gaussians (Kairouz et al. 2021)."""
    accountant = RdpAccountant()
    accountant.compose(dp_accounting.GaussianDpEvent(4.0), 7)
    assert spent([(Release(4.0, epoch=64), 64)], 1e-5) == pytest.approx(accountant.get_epsilon(1e-5), abs=1e-3)
    two = spent([(Release(4.0, epoch=64), 128)], 1e-5)
    assert spent([(Release(4.0, epoch=64), 65)], 1e-5) < two < 2 * spent([(Release(4.0, epoch=64), 64)], 1e-5)


@pytest.mark.parametrize(
    ("release", "rounds", "epsilon"),
    [(Release(1, 0.3), 20, 8.0), (Release(1), 5, 1.0), (Release(1, epoch=4), 20, 8.0)],
)
def test_the_noise_that_is_found_keeps_the_budget_and_less_does_not(release, rounds, epsilon):
    noise = multiplier(release, rounds, epsilon, 1e-5)
    keeps = replace(release, noise=noise)
    assert spent([(keeps, rounds)], 1e-5) <= epsilon
    less = replace(release, noise=noise * 0.98)
    assert spent([(less, rounds)], 1e-5) > epsilon


def test_spending_grows_and_no_noise_spends_all():
    release = Release(1.2, 0.3)
    curve = [spent([(release, rounds)], 1e-5) for rounds in range(4)]
    assert curve[0] == 0
    assert curve == sorted(curve)
    assert spent([(Release(0.0), 1)], 1e-5) == math.inf
    assert spent([(release, 3)], 1e-5) < spent([(release, 3), (Release(2.0), 1)], 1e-5)


def test_the_card_tells_what_is_covered_and_what_is_not():
    told = Budgeted("central", 0.5, 1e-5, Release(1.2, 0.3))
    text = sentence([("train", None, 3), ("customize", told, 4)])
    assert f"epsilon {told.epsilon(4):.3f} at delta 1e-05" in text
    assert "The stages train had none" in text
    assert sentence([("train", None, 3)]) is None
    assert Budgeted.from_json(vars(told) | {"release": vars(told.release)}) == told
