"""Attacks against cases whose answer is known: a linear layer gives its row away, ranks are counted by hand."""

import math

import numpy as np
import pytest
import torch

from fedge.audit import inversion, membership
from fedge.core.task import Task
from tools.bare import mlp

TASK = Task("image-classification", 10)


def one_step(rows):
    """A perceptron's change by one step of SGD on ``rows`` images, the images and the labels."""
    torch.manual_seed(5)
    model = mlp()
    images, labels = torch.rand(rows, 1, 8, 8), torch.arange(rows)
    loss = TASK.loss(model, {"pixel_values": images, "labels": labels})
    slopes = torch.autograd.grad(loss, list(model.parameters()))
    change = {name: -0.1 * slope for (name, _), slope in zip(model.named_parameters(), slopes, strict=True)}
    return model, change, images, labels


def test_a_linear_layer_gives_one_row_away_exactly():
    _, change, images, _ = one_step(1)
    first = next(iter(change)).removesuffix(".weight")
    found = inversion.linear_input(change, first)
    assert torch.allclose(found, images.flatten(), atol=1e-5)
    _, two, images, _ = one_step(2)
    assert not torch.allclose(inversion.linear_input(two, first), images[0].flatten(), atol=1e-2)


def test_inversion_finds_the_image_and_noise_hides_it():
    model, change, images, labels = one_step(1)
    drawn = torch.Generator().manual_seed(1)
    found = inversion.invert(model, TASK, change, labels, images, steps=150, generator=drawn)
    assert inversion.correlation(found, images) > 0.8
    loud = {name: t + torch.randn(t.shape, generator=drawn) * 10 * t.std() for name, t in change.items()}
    hidden = inversion.invert(model, TASK, loud, labels, images, steps=150, generator=drawn)
    assert inversion.correlation(hidden, images) < 0.6
    assert inversion.invert(model, TASK, {"other": torch.ones(1)}, labels, images) is None


def test_tokens_whose_embeddings_moved():
    table = torch.zeros(50, 4)
    table[[3, 7, 49]] = 1e-6
    assert inversion.tokens({"bert.embeddings.word_embeddings.weight": table}, 50) == {3, 7, 49}
    assert inversion.tokens({"classifier.weight": table}, 50) == set()
    assert inversion.tokens({"embeddings.position.weight": table[:20]}, 50) == set()


def test_auc_is_the_share_of_pairs_in_order():
    rng = np.random.default_rng(2)
    inside, outside = rng.normal(0.5, 1, 40).round(1), rng.normal(0, 1, 60).round(1)
    pairs = [(a > b) + 0.5 * (a == b) for a in inside for b in outside]
    assert membership.auc(inside, outside) == pytest.approx(np.mean(pairs))
    assert membership.auc(np.ones(5), np.ones(5)) == 0.5


def test_true_positives_are_counted_where_hardly_any_other_is():
    outside = np.arange(200.0)
    inside = np.array([0.0, 198.0, 198.5, 500.0])
    # two of two hundred may stand above the threshold: it lies at 197
    assert membership.tpr_at(inside, outside) == 0.75
    assert (outside > 197).sum() == 2


def test_lira_tells_members_where_one_threshold_can_not():
    """Rows of very different difficulty: what matters is how far a row is from its own models without it."""
    rng = np.random.default_rng(3)
    rows, shadows = 400, 16
    hard = rng.normal(0, 5, rows)
    inside = np.stack([rng.permutation(rows) < rows // 2 for _ in range(shadows)])
    seen = hard + 1.5 * inside + rng.normal(0, 0.7, (shadows, rows))
    mine = rng.permutation(rows) < rows // 2
    target = hard + 1.5 * mine + rng.normal(0, 0.7, rows)
    scores = membership.lira(target, seen, inside)
    assert membership.auc(scores[mine], scores[~mine]) > 0.9
    assert membership.auc(target[mine], target[~mine]) < 0.7


def test_confidence_is_the_logit_of_the_right_label():
    assert membership.confidence(np.array([math.log(2)]))[0] == pytest.approx(0)
    assert membership.confidence(-np.log(np.array([0.9])))[0] == pytest.approx(math.log(9))
