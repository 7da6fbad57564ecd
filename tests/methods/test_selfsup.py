"""Self-supervised methods: objectives written out, what a device keeps and merges, and how their figure is taken."""

import math

import pytest
import torch
from torch.nn import functional

from fedge.core.rng import generator
from fedge.data.rows import Rows
from fedge.data.views import view
from fedge.methods.selfsup import info_nce, moved, nt_xent, project, split
from fedge.methods.train.fedema import FedEMA
from fedge.methods.train.fedu import FedU
from fedge.models.neighbours import Neighbours
from fedge.models.variant import assemble
from fedge.testing.driver import drive, start
from tests.methods.conftest import logits, rows, three

SMALL = {"steps": 2, "batch": 4, "hidden": 8, "width": 8, "lr": 0.01}


def drawn(*shape, name):
    return torch.randn(*shape, generator=generator(name))


def test_nt_xent_is_its_sum():
    one, other = drawn(3, 5, name="one"), drawn(3, 5, name="other")
    views = [*functional.normalize(one, dim=1), *functional.normalize(other, dim=1)]
    total = 0.0
    for i, mine in enumerate(views):
        partner = (i + 3) % 6
        similar = [math.exp(float(mine @ yours) / 0.5) for yours in views]
        total -= math.log(similar[partner] / (sum(similar) - similar[i]))
    assert float(nt_xent(one, other, 0.5)) == pytest.approx(total / 6, abs=1e-5)


def test_info_nce_is_its_sum():
    query, key = drawn(3, 5, name="q"), functional.normalize(drawn(3, 5, name="k"), dim=1)
    queue = functional.normalize(drawn(7, 5, name="n"), dim=1)
    total = 0.0
    for q, k in zip(functional.normalize(query, dim=1), key, strict=True):
        right = math.exp(float(q @ k) / 0.2)
        total -= math.log(right / (right + sum(math.exp(float(q @ n) / 0.2) for n in queue)))
    assert float(info_nce(query, key, queue, 0.2)) == pytest.approx(total / 3, abs=1e-5)


def test_views_have_the_images_shape_and_are_drawn_from_the_global_state():
    images = torch.rand(5, 3, 8, 8, generator=generator("images"))
    torch.manual_seed(1)
    one, other = view(images), view(images)
    assert one.shape == images.shape
    assert not torch.allclose(one, other)
    torch.manual_seed(1)
    assert torch.equal(view(images), one)
    assert torch.allclose(view(images, crop=1.0, light=0.0, noise=0.0, flip=False), images, atol=1e-5)


def test_the_target_follows_after_each_step(vit):
    method = FedEMA(**{**SMALL, "steps": 3}, decay=0.9)
    seen = []

    class Watched(torch.optim.SGD):
        def step(self, *given):
            super().step(*given)
            seen.append([p.detach().clone() for group in self.param_groups for p in group["params"]])

    driven = start(method, vit.model, {"a": rows(vit, 8)}, vit.task)
    names = list(split(driven.server.method.init(driven.server)["weights"])[0])
    order = list(driven.devices["a"].initial)
    patched = pytest.MonkeyPatch()
    patched.setattr(FedEMA, "local_optimizer", lambda self, parameters: Watched(parameters, lr=self.lr))
    try:
        expected = {name: driven.devices["a"].initial[name].clone() for name in names}
        driven.go(1)
    finally:
        patched.undo()
    assert len(seen) == 3
    for tensors in seen:
        for name in names:
            expected[name] = 0.9 * expected[name] + 0.1 * tensors[order.index(name)]
    target = driven.devices["a"].state["target"]
    assert all(torch.allclose(target[name], expected[name], atol=1e-6) for name in names)
    assert not all(torch.equal(target[name], seen[-1][order.index(name)]) for name in names)


def beginnings(method, found, rounds, absent=None):
    """Where each device's training began in the last of some rounds, and what it had kept before."""
    driven = start(method, found.model, three(found), found.task).go(rounds - 1, absent=absent)
    kept = {name: dict(device.state) for name, device in driven.devices.items()}
    told = {name: tensor.clone() for name, tensor in driven.state["weights"].items()}
    began = {}
    plain = type(method).meet

    def watched(self, dev, received):
        target = plain(self, dev, received)
        began[dev.name] = {n: p.detach().clone() for n, p in dev.model.named_parameters() if n in told}
        return target

    patched = pytest.MonkeyPatch()
    patched.setattr(type(method), "meet", watched)
    try:
        driven.go(1)
    finally:
        patched.undo()
    return began, kept, told


def test_at_its_second_participation_a_device_keeps_the_share_tau(vit):
    began, kept, told = beginnings(FedEMA(**SMALL, tau=0.6), vit, 2)
    for device, tree in began.items():
        assert float(kept[device]["lam"] * kept[device]["moved"]) == pytest.approx(0.6, abs=1e-5)
        for name, tensor in tree.items():
            assert torch.allclose(tensor, 0.6 * kept[device]["own"][name] + 0.4 * told[name], atol=1e-6)


@pytest.mark.parametrize(("lam", "whose"), [(0.0, "global"), (1e9, "own")])
def test_the_merge_has_two_ends(lam, whose, vit):
    began, kept, told = beginnings(FedEMA(**SMALL, lam=lam), vit, 2)
    for device, tree in began.items():
        expected = told if whose == "global" else kept[device]["own"]
        assert all(torch.allclose(tensor, expected[name], atol=1e-7) for name, tensor in tree.items())


def test_without_weight_on_its_own_fedema_is_fedbyol(vit):
    one = drive(FedEMA(**SMALL, lam=0.0), vit.model, three(vit), vit.task, 3)
    other = drive(FedEMA(**SMALL, merge="global"), vit.model, three(vit), vit.task, 3)
    assert all(torch.allclose(t, other.state["weights"][n], atol=1e-6) for n, t in one.state["weights"].items())


def test_who_missed_the_last_round_takes_the_global_model(vit):
    began, _, told = beginnings(FedEMA(**SMALL), vit, 3, absent={1: ["b"]})
    assert all(torch.equal(tensor, told[name]) for name, tensor in began["b"].items())
    assert not all(torch.equal(tensor, told[name]) for name, tensor in began["a"].items())


@pytest.mark.parametrize(("mu", "whose"), [(1e9, "global"), (0.0, "own")])
def test_fedu_takes_the_predictor_by_how_far_it_moved(mu, whose, vit):
    began, kept, told = beginnings(FedU(**SMALL, mu=mu), vit, 2)
    for device, tree in began.items():
        encoder, predictor = split(tree)
        assert all(torch.equal(tensor, told[name]) for name, tensor in encoder.items())
        expected = told if whose == "global" else kept[device]["predictor"]
        assert all(torch.equal(tensor, expected[name]) for name, tensor in predictor.items())
    if whose == "global":
        byol = drive(FedEMA(**SMALL, merge="global"), vit.model, three(vit), vit.task, 2)
        fedu = drive(FedU(**SMALL, mu=mu), vit.model, three(vit), vit.task, 2)
        assert all(torch.equal(t, byol.state["weights"][n]) for n, t in fedu.state["weights"].items())


def test_fedus_other_reading_sends_targets(vit):
    driven = drive(FedU(**SMALL, averages="target", replaces="target"), vit.model, three(vit), vit.task, 1)
    start_ = driven.server.method.init(driven.server)["weights"]
    for name, device in driven.devices.items():
        sent = driven.sent[0][name][-1]["delta"]
        assert all(torch.allclose(sent[n], t - start_[n], atol=1e-7) for n, t in device.state["target"].items())


def test_how_far_is_the_mean_over_weight_matrices():
    before = {"a.weight": torch.zeros(2, 3), "b.weight": torch.zeros(2, 2), "b.bias": torch.zeros(2)}
    before["projection.0.weight"] = torch.zeros(2, 2)
    after = {name: tensor + 1 for name, tensor in before.items()}
    assert float(moved(before, after)) == pytest.approx((math.sqrt(6) + 2) / 2)


@pytest.mark.parametrize("objective", ["byol", "simsiam", "simclr", "moco"])
def test_every_objective_trains_the_encoder_and_no_head(objective, vit):
    driven = drive(FedEMA(**SMALL, objective=objective, queue=16), vit.model, three(vit), vit.task, 2)
    final, base = driven.final(), vit.model.state_dict()
    assert set(final.state_dict()) == set(base)
    changed = {name for name, tensor in final.state_dict().items() if not torch.equal(tensor, base[name])}
    assert "vit.layers.0.mlp.fc1.weight" in changed
    assert not any(name.startswith("classifier") for name in changed)
    assert ("target" in driven.devices["a"].state) == (objective == "byol")
    if objective == "moco":
        queue = driven.devices["a"].state["queue"]
        assert queue.shape == (16, 8)
        assert torch.allclose(queue.norm(dim=1), torch.ones(16), atol=1e-5)


def test_a_predictor_and_a_stopped_gradient_are_what_keeps_simsiam_from_collapse(vit):
    # the monitor must tell a collapse: both views pulled together without either ends in one point
    spreads = {}
    for kind in ("simsiam", "collapse"):
        method = FedEMA(objective="simsiam", hidden=16, width=16, batch=32)
        torch.manual_seed(0)
        model = assemble(method, vit.model, 0).model
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05, momentum=0.9)
        images = torch.rand(32, 1, 8, 8, generator=generator("collapse"))

        for _ in range(60):
            z = [project(model, view(images)) for _ in range(2)]
            if kind == "simsiam":
                p = [model.predictor(one) for one in z]
                loss = -sum(functional.cosine_similarity(p[i], z[1 - i].detach(), dim=1).mean() for i in (0, 1)) / 2
            else:
                loss = -functional.cosine_similarity(z[0], z[1], dim=1).mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        with torch.no_grad():
            found = functional.normalize(project(model, images), dim=1)
        spreads[kind] = float(found.std(0).mean())
    assert spreads["collapse"] < 0.03
    assert spreads["simsiam"] > spreads["collapse"]


def test_neighbours_vote_by_how_near_they_are(vit):
    data = rows(vit, 30)
    near = Neighbours(vit.model, data.chunks(8), vit.task.classes)
    batch = next(data.chunks(30))
    votes = near.predict(vit.model, vit.task.inputs(batch))
    vectors = near.vectors
    for row in range(3):
        similar = vectors @ vectors[row]
        best = similar.argsort(descending=True)[:20]
        weights = torch.exp(similar[best] / 0.1)
        by_hand = torch.zeros(vit.task.classes).index_add_(0, batch["labels"][best], weights) / weights.sum()
        assert torch.allclose(votes[row].exp(), by_hand.clamp_min(1e-6), atol=1e-3)
    same = Neighbours(
        vit.model,
        [next(Rows({"pixel_values": torch.ones(9, 1, 8, 8), "labels": torch.arange(9) % 4}, vit.task.kind).chunks(9))],
        4,
    )
    assert same.spread < 1e-6 < near.spread
    assert logits(vit.model, vit).shape[1] == vit.task.classes


@pytest.mark.parametrize("wrong", [{"decay": 1.0}, {"depth": 0.5}, {"objective": "magic"}, {"tau": -1.0}])
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        FedEMA(**wrong)
