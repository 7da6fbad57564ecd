"""L-DAWA and Fisher merging against their formulas, written out in float64."""

import pytest
import torch

from fedge.core.method import Replies
from fedge.core.payload import Payload
from fedge.methods.customize.fedavg import FedAvg
from fedge.methods.train.fisher import Fisher
from fedge.methods.train.ldawa import LDAWA
from fedge.models.names import tensors, trainable
from fedge.models.variant import assemble
from fedge.testing.driver import drive, start
from tests.methods.conftest import rows, three

SMALL = {"steps": 2, "batch": 4}


def replied(driven, method, changes, **more):
    """The server's weights after devices of equal rows sent ``changes``."""
    payloads = {
        name: Payload({"delta": {"x": change}, **more.get(name, {})}, weight=more.get("weight", 4.0))
        for name, change in changes.items()
    }
    state = {"weights": {"x": more["before"]}, "changed": [], "moments": {}}
    return method.update(driven.server, state, Replies(payloads, dict.fromkeys(payloads, 0), {}))["weights"]["x"]


@pytest.mark.parametrize("normalise", [False, True])
def test_a_layer_counts_by_its_cosine(vit, normalise):
    method = LDAWA(**SMALL, normalise=normalise)
    before = start(method, vit.model, three(vit), vit.task).state["weights"]
    driven = drive(method, vit.model, three(vit), vit.task)
    for name, w in before.items():
        own = [w.double() + sent[0]["delta"][name].double() for sent in driven.sent[0].values()]
        cosines = [
            1.0 if not w.norm() * k.norm() else min(1.0, float((k * w).sum() / (k.norm() * w.double().norm())))
            for k in own
        ]
        total = sum(cosines) if normalise else len(own)
        expected = sum(c * k for c, k in zip(cosines, own, strict=True)) / total
        assert torch.allclose(driven.state["weights"][name].double(), expected, atol=1e-6), name


def test_what_stays_stays_and_what_is_orthogonal_counts_nothing(vit):
    driven, w = start(LDAWA(**SMALL), vit.model, three(vit), vit.task), torch.tensor([3.0, 4.0])
    same = replied(driven, LDAWA(**SMALL), dict.fromkeys("ab", torch.zeros(2)), before=w)
    assert torch.allclose(same, w, atol=1e-6)
    aside = torch.tensor([-4.0, 3.0]) - w
    half = replied(driven, LDAWA(**SMALL), {"a": torch.zeros(2), "b": aside}, before=w)
    assert torch.allclose(half, w / 2, atol=1e-6)
    away = -2 * w
    assert torch.allclose(replied(driven, LDAWA(**SMALL), {"a": away}, before=w), w, atol=1e-6)  # −1 · −w
    kept = replied(driven, LDAWA(**SMALL, clamp=True, normalise=True), {"a": away}, before=w)
    assert torch.equal(kept, w)
    zero = replied(driven, LDAWA(**SMALL), {"a": torch.ones(2), "b": 3 * torch.ones(2)}, before=torch.zeros(2))
    assert torch.allclose(zero, torch.full((2,), 2.0))


def test_noise_makes_a_layer_shrink_by_the_mean_cosine(vit):
    drawn = torch.Generator().manual_seed(1)
    w = torch.randn(20_000, generator=drawn)
    noise = {name: 0.5 * torch.randn(20_000, generator=drawn) for name in "abcd"}
    driven = start(LDAWA(**SMALL), vit.model, three(vit), vit.task)
    ours = replied(driven, LDAWA(**SMALL), noise, before=w)
    plain = w + sum(noise.values()) / 4
    cosine = sum(torch.cosine_similarity(w, w + n, dim=0) for n in noise.values()) / 4
    assert float(ours.norm() / plain.norm()) == pytest.approx(float(cosine), abs=1e-3)
    assert cosine < 0.92


def test_equal_certainty_is_the_plain_mean(vit):
    ours = drive(Fisher(**SMALL, floor=1e9), vit.model, three(vit), vit.task)
    plain = drive(FedAvg(**SMALL), vit.model, three(vit), vit.task)
    for name, tensor in plain.state["weights"].items():
        assert torch.allclose(ours.state["weights"][name], tensor, atol=1e-6), name


def test_the_merge_is_the_mean_of_gaussians(vit):
    drawn = torch.Generator().manual_seed(2)
    w = torch.randn(7, generator=drawn)
    own = {name: torch.randn(7, generator=drawn) for name in "ab"}
    sure = {name: torch.rand(7, generator=drawn) + 0.1 for name in "ab"}
    sure["b"][0] = 1e-12  # who knows nothing of a weight has no say in it
    driven = start(Fisher(**SMALL), vit.model, three(vit), vit.task)
    more = {name: {"statistics": {"x": sure[name]}} for name in "ab"}
    found = replied(driven, Fisher(**SMALL), {name: own[name] - w for name in "ab"}, before=w, **more)
    expected = sum(sure[n].double() * own[n].double() for n in "ab") / sum(sure[n].double() for n in "ab")
    assert torch.allclose(found.double(), expected, atol=1e-6)
    assert torch.allclose(found[0], own["a"][0], atol=1e-6)


@pytest.mark.parametrize("targets", ["observed", "drawn"])
def test_information_is_the_mean_square_of_each_rows_gradient(vit, targets):
    method = Fisher(steps=1, batch=4, samples=5, targets=targets, normalise=False, floor=1e-30)
    data = {"a": rows(vit, 5)}
    driven = start(method, vit.model, data, vit.task)
    device = driven.devices["a"]
    found = method.information(device)
    model = assemble(method, vit.model, 0, "stage", 0).model.eval()
    total = {name: torch.zeros_like(p) for name, p in trainable(model).items()}
    if targets == "observed":
        for row in data["a"].chunks(1):
            loss = vit.task.loss(model, row)
            for name, slope in zip(total, torch.autograd.grad(loss, list(trainable(model).values())), strict=True):
                total[name] += slope**2 / 5
        assert all(torch.allclose(found[name], total[name], rtol=1e-4, atol=1e-12) for name in total)
    else:  # the head's bias has gradient p − e_x̂: a draw squares to p² or (1 − p)²
        with torch.no_grad():
            chances = torch.cat([model(**vit.task.inputs(row)).logits.softmax(-1) for row in data["a"].chunks(1)])
        squares = found["classifier.bias"] * 5
        low, high = (
            torch.minimum(chances**2, (1 - chances) ** 2).sum(0),
            torch.maximum(chances**2, (1 - chances) ** 2).sum(0),
        )
        assert bool((squares >= low - 1e-5).all() and (squares <= high + 1e-5).all())


def test_masked_words_have_an_information_too():
    from fedge.testing.tiny import tiny

    found = tiny("masked")
    method = Fisher(steps=1, batch=4, samples=2)
    driven = drive(method, found.model, {"a": found.rows(5, "a"), "b": found.rows(9, "b")}, found.task)
    sent = driven.sent[0]["a"][0]
    assert set(sent["statistics"]) == set(sent["delta"])
    assert sum(float(t.square().sum()) for t in sent["statistics"].values()) == pytest.approx(1.0, rel=1e-3)
    assert any(not torch.equal(t, tensors(found.model)[n]) for n, t in tensors(driven.final()).items())
