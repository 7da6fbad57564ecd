"""Federated Word2Vec against the step that one place would take on all windows at once."""

import pytest
import torch

from fedge.core.rng import generator
from fedge.data.rows import Rows
from fedge.errors import MissingError
from fedge.methods.train.word2vec import Word2Vec, pairs
from fedge.testing.driver import drive, start
from fedge.testing.tiny import tiny

FOUND = tiny("causal")
SMALL = {"batch": 4, "width": 8, "window": 2, "negatives": 3, "words": 300, "lr": 0.5}


def three(n=4):
    return {name: FOUND.rows(n, name) for name in "abc"}


def test_pairs_are_all_neighbours():
    centre, context = pairs(torch.tensor([[1, 2, 3, 4]]), 2)
    found = sorted(zip(centre[0].tolist(), context[0].tolist(), strict=True))
    assert found == [(1, 2), (1, 3), (2, 1), (2, 3), (2, 4), (3, 1), (3, 2), (3, 4), (4, 2), (4, 3)]


def test_the_vocabulary_is_merged():
    rows = {
        "a": Rows({"input_ids": torch.tensor([[5, 5, 5, 6, 7, 7]], dtype=torch.int32)}, "causal-lm"),
        "b": Rows({"input_ids": torch.tensor([[7, 7, 7, 8, 8, 9]], dtype=torch.int32)}, "causal-lm"),
    }
    union = drive(Word2Vec(**{**SMALL, "words": 2}), FOUND.model, rows, FOUND.task)
    assert union.state["counts"].nonzero().flatten().tolist() == [5, 7, 8]
    assert union.state["counts"][[5, 7, 8]].tolist() == [3, 5, 2]
    both = drive(Word2Vec(**{**SMALL, "words": 3, "merge": "intersection"}), FOUND.model, rows, FOUND.task)
    assert both.state["counts"].nonzero().flatten().tolist() == [7]
    assert [list(payload.parts) for payload in union.sent[0]["a"]] == [["statistics"], ["delta"]]


def by_hand(driven, rows, method, rounds):
    """Vectors after steps in float64 on all devices' batches joined, with the devices' own negatives."""
    begun = method.init(driven.server)["vectors"]
    u, o = (begun[name].double().requires_grad_() for name in "uo")
    counts = driven.state["counts"].double()
    chance = driven.state["counts"].pow(0.75).cumsum(0)
    for number in range(rounds):
        loss = 0.0
        for name, held in rows.items():
            seed = (*driven.server.seed, number, name)
            ids = next(held.batches(method.batch, generator(*seed, "batches")))["input_ids"]
            centre, context = pairs(ids, method.window)
            drawn = torch.rand((*centre.shape, method.negatives), generator=generator(*seed, "negatives"))
            against = torch.searchsorted(chance, drawn * chance[-1])
            for row in range(len(ids)):
                for at in range(centre.shape[1]):
                    c, far = int(centre[row, at]), int(context[row, at])
                    if not counts[c] or not counts[far]:
                        continue
                    loss = loss - torch.log(torch.sigmoid(o[far] @ u[c])) / centre.numel() / len(rows)
                    for n in against[row, at].tolist():
                        loss = loss - torch.log(torch.sigmoid(-(o[n] @ u[c]))) / centre.numel() / len(rows)
        slopes = torch.autograd.grad(loss, [u, o])
        u, o = ((x - method.lr * slope).detach().requires_grad_() for x, slope in zip((u, o), slopes, strict=True))
    return {"u": u.detach(), "o": o.detach()}


def test_a_round_is_a_step_on_all_batches_at_once():
    method = Word2Vec(**{**SMALL, "words": 40, "lr": 5.0})
    rows = three()
    driven = drive(method, FOUND.model, rows, FOUND.task, 2)
    expected = by_hand(driven, rows, method, 2)
    for name in "uo":
        assert torch.allclose(driven.state["vectors"][name].double(), expected[name], atol=1e-6), name
    begun = method.init(driven.server)["vectors"]
    assert (driven.state["vectors"]["o"] - begun["o"]).abs().max() > 1e-3


def test_only_rows_that_moved_travel_and_they_are_all_that_did():
    method = Word2Vec(**{**SMALL, "words": 20})
    driven = drive(method, FOUND.model, three(), FOUND.task, 2)
    begun = method.init(driven.server)["vectors"]
    moved = {name: (driven.state["vectors"][name] != begun[name]).any(1) for name in "uo"}
    words = driven.state["counts"] > 0
    assert bool((moved["u"] | moved["o"]).any())
    assert not bool(((moved["u"] | moved["o"]) & ~words).any()), "a token outside of the vocabulary moved"
    sent = driven.sent[1]["a"][0]["delta"]
    count = len(sent["rows"])
    assert 0 < count < FOUND.task.classes
    assert driven.sent[1]["a"][0].nbytes == count * (4 + 2 * 8 * 4)
    assert bool((torch.cat([sent["u"], sent["o"]], 1) != 0).any(1).all())


def test_who_lacks_a_word_still_gets_what_others_learn_of_it():
    low = Rows({"input_ids": torch.randint(5, 60, (8, 12), dtype=torch.int32)}, "causal-lm")
    high = Rows({"input_ids": torch.randint(60, 120, (8, 12), dtype=torch.int32)}, "causal-lm")
    driven = drive(Word2Vec(**SMALL), FOUND.model, {"a": low, "b": high}, FOUND.task, 2)
    begun = start(Word2Vec(**SMALL), FOUND.model, {"a": low, "b": high}, FOUND.task).state["vectors"]
    down = driven.server.method.down(driven.server, driven.state, "a")
    told = set(down["weights"]["rows"].tolist())
    assert {word for word in told if word >= 60}
    assert not torch.equal(driven.state["vectors"]["o"][60:120], begun["o"][60:120])


def test_it_learns_which_tokens_stand_together():
    ids = torch.arange(8 * 16).view(8, 16) % 2 + 2 * (torch.arange(8) % 4).view(8, 1) + 10
    rows = {name: Rows({"input_ids": ids.to(torch.int32)}, "causal-lm") for name in "ab"}
    method = Word2Vec(**{**SMALL, "lr": 2.0, "batch": 8})
    driven = drive(method, FOUND.model, rows, FOUND.task, 120)
    guess = driven.final()(ids)[:, :-1, 10:18].argmax(-1) + 10  # among the tokens that there are
    assert float((guess // 2 == ids[:, :-1] // 2).float().mean()) > 0.95


def test_a_base_that_tells_no_vocabulary_is_refused():
    with pytest.raises(MissingError, match="how many tokens"):
        Word2Vec(**SMALL).build(torch.nn.Linear(2, 2))


def test_numbers_out_of_range_are_refused():
    with pytest.raises(ValueError, match="width must be above 0"):
        Word2Vec(width=0)
    with pytest.raises(ValueError, match="union or intersection"):
        Word2Vec(merge="both")
