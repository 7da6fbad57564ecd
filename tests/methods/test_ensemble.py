"""Devices that answer together: what is averaged, from which exit, and that nothing changes by it."""

from dataclasses import replace

import pytest
import torch

from fedge.errors import MethodError
from fedge.methods.deploy.ensemble import Ensemble, together
from fedge.models.exits import Form, MultiExit
from fedge.models.share import share
from fedge.testing.driver import drive
from tests.methods.conftest import rows, three

METHOD = Ensemble(exits=(1, 2), queries=5, batch=2)


def driven(found, rounds=2, **more):
    torch.manual_seed(1)
    base = MultiExit(share(found.model), (1, 2), 4, form=Form("accumulator")).requires_grad_(False)
    picks = {"a": replace(METHOD, deepest=1), "b": replace(METHOD, deepest=2), "c": METHOD}
    public = rows(found, 8, "public")
    return base, public, drive(METHOD, base, three(found), found.task, rounds, variants=picks, public=public, **more)


def test_each_device_answers_from_its_own_exit(either):
    base, public, run = driven(either)
    with torch.no_grad():
        for number, which in ((0, [0, 1, 2, 3, 4]), (1, [5, 6, 7, 0, 1])):
            batch = either.task.inputs(next(public.take(torch.tensor(which)).chunks(5)))
            said = base.eval()(**batch)
            for device, logits in zip("abc", said, strict=True):
                found = run.state["answers"][f"{number:06d}"][device]
                assert torch.allclose(found, logits, atol=1e-5)
    assert {name: len(d.model.parts.layers) for name, d in run.devices.items()} == {"a": 1, "b": 2, "c": 4}
    assert {tuple(p.parts) for sent in run.sent for payloads in sent.values() for p in payloads} == {("logits",)}


def test_whoever_is_in_time_counts(either):
    _, _, run = driven(either, lost={(0, 0): ["b"]})
    assert [sorted(answers) for answers in run.state["answers"].values()] == [["a", "c"], ["a", "b", "c"]]


def test_labels_stay_where_they_are(either):
    _, _, run = driven(either)
    run.server.round = 0
    assert "labels" not in METHOD.down(run.server, run.state, "a")["activations"]


def test_the_average_row_by_row():
    draw = torch.Generator().manual_seed(0)
    answers = {name: torch.randn(6, 3, generator=draw) * 2 for name in "abc"}
    for weigh in ("uniform", "confidence"):
        found = together(answers, weigh)
        for row in range(6):
            said = [answers[name][row].double().softmax(0) for name in "abc"]
            weights = [1.0 if weigh == "uniform" else max(p).item() for p in said]
            expected = sum(w * p for w, p in zip(weights, said, strict=True)) / sum(weights)
            assert torch.allclose(found[row], expected)
    with pytest.raises(MethodError, match="nobody"):
        together({}, "uniform")


def test_numbers_are_checked(vit):
    with pytest.raises(ValueError, match="at least 1"):
        Ensemble(queries=0)
    with pytest.raises(MethodError, match="no queries"):
        drive(METHOD, vit.model, three(vit), vit.task)
