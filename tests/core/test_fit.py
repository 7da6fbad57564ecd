"""The one training loop: pieces add up to the whole, and its two ways in are called when they should be."""

import ast
from itertools import repeat
from pathlib import Path

import pytest
import torch
from torch import nn

import fedge
from fedge.core.fit import fit
from fedge.core.task import IGNORE, Task

TASK = Task("text-classification", 3)
ROOT = Path(fedge.__file__).parent


class Linear(nn.Module):
    def __init__(self, classes=3):
        super().__init__()
        self.inner = nn.Linear(5, classes)
        with torch.no_grad():
            self.inner.weight.copy_(torch.randn(classes, 5, generator=torch.Generator().manual_seed(0)))
            self.inner.bias.zero_()

    def forward(self, x):
        return self.inner(x)


def batch(n=10, *positions):
    made = torch.Generator().manual_seed(n)
    return {
        "x": torch.randn(n, *positions, 5, generator=made),
        "labels": torch.randint(0, 3, (n, *positions), generator=made),
    }


class Kept(torch.optim.SGD):
    """SGD that keeps the gradients it was given."""

    seen: list

    def step(self, closure=None):
        self.seen.append([p.grad.clone() for group in self.param_groups for p in group["params"]])
        return super().step(closure)


def gradients(task, given, micro_batch, steps=1):
    model = Linear()
    optimizer = Kept(model.parameters(), lr=0.1)
    optimizer.seen = []
    fitted = fit(model, repeat(given), loss=task.loss, optimizer=optimizer, steps=steps, micro_batch=micro_batch)
    return optimizer.seen, fitted


@pytest.mark.parametrize("micro_batch", [1, 3, 4, 9, 10, 50])
def test_pieces_have_the_gradient_of_the_whole(micro_batch):
    whole, of_whole = gradients(TASK, batch(), None)
    parts, of_parts = gradients(TASK, batch(), micro_batch)
    for a, b in zip(whole[0], parts[0], strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    assert torch.allclose(of_whole.loss, of_parts.loss, atol=1e-6)
    assert (of_parts.rows, of_parts.steps) == (10, 1)


@pytest.mark.parametrize("kind", ["masked-lm", "causal-lm"])
def test_pieces_with_different_numbers_of_labels_count_by_these(kind):
    given = batch(6, 4)
    given["labels"][:2, 1:3] = IGNORE if kind == "masked-lm" else 1
    given["labels"][4, 3] = IGNORE if kind == "masked-lm" else 1
    task = Task(kind, 3)
    whole, of_whole = gradients(task, given, None)
    parts, of_parts = gradients(task, given, 2)
    for a, b in zip(whole[0], parts[0], strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    assert torch.allclose(of_whole.loss, of_parts.loss, atol=1e-6)


def test_after_backward_is_called_once_a_step_with_the_whole_gradient():
    whole, _ = gradients(TASK, batch(), None)
    calls = []
    model = Linear()
    fit(
        model,
        repeat(batch()),
        loss=TASK.loss,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.0),
        steps=3,
        micro_batch=2,
        after_backward=lambda m: calls.append(m.inner.weight.grad.clone()),
    )
    assert len(calls) == 3
    assert all(torch.allclose(grad, whole[0][0], atol=1e-6) for grad in calls)


def test_the_loss_is_the_mean_over_the_steps_and_few_batches_end_it():
    losses = []
    model = Linear()

    def loss(model, given):
        value = TASK.loss(model, given)
        losses.append(float(value.detach()))
        return value

    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    fitted = fit(model, [batch(4), batch(6)], loss=loss, optimizer=optimizer, steps=9)
    assert (fitted.steps, fitted.rows) == (2, 10)
    assert float(fitted.loss) == pytest.approx(sum(losses) / 2)
    assert model.training
    assert model.inner.weight.grad is None


def test_the_endless_are_not_read_beyond_their_steps():
    read = []
    model = Linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    fit(model, (read.append(1) or batch() for _ in repeat(0)), loss=TASK.loss, optimizer=optimizer, steps=2)
    assert len(read) == 2


def sources():
    return {path.relative_to(ROOT): ast.parse(path.read_text()) for path in ROOT.rglob("*.py")}


def test_there_is_one_place_that_back_propagates():
    found = set()
    for path, tree in sources().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and node.attr == "backward":
                found.add(path.as_posix())
    # the kit trains alone by a loop of its own, to hold the one training loop against it
    assert found == {"core/fit.py", "testing/rounds.py"}
