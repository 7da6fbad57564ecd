"""MOON and FedPCL: their losses written out, what they reduce to, and what leaves a device."""

import math

import pytest
import torch
from torch.nn import functional

from fedge.core.rng import generator
from fedge.meter.spans import NullMeter
from fedge.methods.customize.fedavg import FedAvg
from fedge.methods.train.fedpcl import FedPCL
from fedge.methods.train.moon import MOON, contrastive
from fedge.methods.tuning import start_of
from fedge.models.features import features
from fedge.models.names import trainable
from fedge.models.projected import project, projection_of
from fedge.models.share import own, share
from fedge.testing.driver import drive, start
from tests.methods.conftest import CLASSES, logits, rows, three

SMALL = {"steps": 2, "batch": 4}


def test_moons_contrast_is_its_formula():
    z, ours, previous = (torch.randn(6, 9, generator=generator(name)) for name in ("z", "ours", "previous"))
    each = []
    for a, b, c in zip(z, ours, previous, strict=True):
        near = math.exp(float(a @ b / (a.norm() * b.norm())) / 0.5)
        far = math.exp(float(a @ c / (a.norm() * c.norm())) / 0.5)
        each.append(-math.log(near / (near + far)))
    assert float(contrastive(z, ours, previous, 0.5)) == pytest.approx(sum(each) / 6, abs=1e-6)


def test_moons_first_step_is_as_far_from_one_as_from_the_other(vit):
    # in the first round the model, what was received and the previous one are the same
    method = MOON(steps=1, batch=4, lr=1e-9, width=16, mu=1.0)
    seen = []

    class Ears(NullMeter):
        def count(self, name, value, unit=""):
            seen.append(float(value))

    data = {"a": rows(vit, 4, "a")}
    driven = start(method, vit.model, data, vit.task)
    driven.devices["a"].meter = Ears()
    driven.go(1)
    driven.built["a"].reset()
    plain = vit.task.loss(driven.built["a"].model.eval(), next(data["a"].chunks(4))).detach()
    assert seen[0] - float(plain) == pytest.approx(math.log(2), abs=1e-4)


def test_moon_without_contrast_is_fedavg_with_a_projection(either):
    base = own(project(share(either.model), 16).requires_grad_(True)).requires_grad_(False)
    moon = drive(MOON(**SMALL, mu=0, width=16), base, three(either), either.task, 2)
    plain = drive(FedAvg(**SMALL), base, three(either), either.task, 2)
    assert all(torch.equal(tensor, plain.state["weights"][name]) for name, tensor in moon.state["weights"].items())
    assert not moon.devices["a"].state
    other = drive(MOON(**SMALL, mu=5, width=16), base, three(either), either.task, 2)
    assert not torch.equal(logits(other.final(), either), logits(plain.final(), either))


def test_moon_keeps_the_model_of_a_devices_last_round_and_trains_no_other(vit):
    driven = drive(MOON(**SMALL, width=16), vit.model, three(vit), vit.task, 1)
    for name, device in driven.devices.items():
        start = driven.server.method.init(driven.server)["weights"]
        sent = driven.sent[0][name][-1]["delta"]
        assert set(device.state["previous"]) == set(sent)
        assert all(torch.allclose(device.state["previous"][n], start[n] + sent[n], atol=1e-6) for n in sent)


def test_before_its_first_round_moons_previous_model_is_the_one_that_the_stage_began_with(vit):
    seen = []

    class Ears(NullMeter):
        def count(self, name, value, unit=""):
            seen.append(float(value))

    def z(model, batch):
        return features(model, vit.task.inputs(batch)).detach()

    method, data = MOON(steps=1, batch=4, lr=1e-2, width=16), {"a": rows(vit, 4, "a"), "b": rows(vit, 4, "b")}
    driven = start(method, vit.model, data, vit.task).go(1, absent={0: ["b"]})
    batch, initial, received = next(data["b"].chunks(4)), driven.server.model(), driven.final().eval()
    expected = vit.task.loss(received, batch) + contrastive(
        z(received, batch), z(received, batch), z(initial, batch), method.tau
    )
    driven.devices["b"].meter = Ears()
    driven.go(1)
    assert seen[0] == pytest.approx(float(expected.detach()), abs=1e-5)
    assert abs(seen[0] - float(vit.task.loss(received, batch).detach()) - math.log(2)) > 1e-4, "not the received one"


def test_moons_frozen_models_stay_where_they_were_when_a_device_trains_more_than_before(vit):
    driven = start(MOON(**SMALL, width=16), vit.model, three(vit), vit.task)
    device, batch = driven.devices["a"], next(driven.devices["a"].data.chunks(4))
    received = start_of(device.model)
    top = [name for name in received if "layers.0." not in name and "layer.0." not in name]
    assert len(top) < len(received)
    device.state["previous"] = {name: received[name] + 0.1 for name in top}
    loss = driven.server.method.contrast(device, received)
    judged = driven.server.model()
    before = float(loss(judged, batch).detach())
    with torch.no_grad():
        for parameter in trainable(device.model).values():
            parameter.add_(0.5)
    assert float(loss(judged, batch).detach()) == before


def tables(driven, number):
    return {name: payloads[-1]["prototypes"] for name, payloads in driven.sent[number].items()}


def test_fedpcl_sends_class_means_and_nothing_of_rows(either):
    data = three(either)
    driven = drive(FedPCL(**SMALL, width=8), either.model, data, either.task, 1)
    model = driven.built["a"].model
    driven.built["a"].reset()
    for name, found in tables(driven, 0).items():
        batch = next(data[name].chunks(1000))
        inputs = either.task.inputs(batch)
        held = sorted(set(batch["labels"].tolist()))
        assert found["classes"].tolist() == held
        assert found["z"].numel() == 8 * len(held)
        # the first round only gathers, so the projection is the one from which all begin
        z = projection_of(model).project(features(model, inputs, projection_of(model))).detach()
        for row, label in enumerate(held):
            mine = z[batch["labels"] == label]
            assert torch.allclose(found["z"][row], mine.mean(0), atol=1e-5)
            assert int(found["counts"][row]) == len(mine)


def test_fedpcls_global_prototypes_are_means_by_class(vit):
    driven = drive(FedPCL(**SMALL, width=8), vit.model, three(vit), vit.task, 1)
    down = driven.server.method.down(driven.server, driven.state, "a")["prototypes"]
    found = tables(driven, 0)
    for label in range(CLASSES):
        have = [
            (t["z"][i], int(t["counts"][i])) for t in found.values() for i, c in enumerate(t["classes"]) if c == label
        ]
        assert bool(down["there"][label]) == bool(have)
        if have:
            mean = sum(z * n for z, n in have) / sum(n for _, n in have)
            assert torch.allclose(down["z"][label], functional.normalize(mean, dim=0), atol=1e-6)
    assert sum(name.endswith(".z") for name in down) == 3
    assert torch.isfinite(logits(driven.final(), vit)).all()


def test_of_one_device_the_global_prototypes_are_its_own(vit):
    driven = drive(FedPCL(**SMALL, width=8), vit.model, {"a": rows(vit, 9)}, vit.task, 2)
    down = driven.server.method.down(driven.server, driven.state, "a")["prototypes"]
    assert torch.allclose(down["z"][down["0.classes"]], functional.normalize(down["0.z"], dim=-1), atol=1e-6)


def test_fedpcls_loss_is_its_formula(vit):
    method = FedPCL(width=8, tau=0.5)
    model = method.build(share(vit.model))
    x, labels = torch.randn(5, 64, generator=generator("x")), torch.tensor([0, 1, 3, 3, 2])
    z = projection_of(model).project(x).detach()
    sets = []
    for number, classes in enumerate(([0, 1, 2, 3], [1, 3])):
        prototypes = torch.zeros(CLASSES, 8)
        prototypes[classes] = torch.randn(len(classes), 8, generator=generator("p", number))
        there = torch.zeros(CLASSES, dtype=torch.bool)
        there[classes] = True
        sets.append((prototypes, there))
    expected = 0.0
    for prototypes, there in sets:
        for row, label in zip(z, labels.tolist(), strict=True):
            if there[label]:
                similar = {
                    c: float(row @ functional.normalize(prototypes[c], dim=0)) / 0.5
                    for c in there.nonzero().flatten().tolist()
                }
                expected -= math.log(math.exp(similar[label]) / sum(map(math.exp, similar.values()))) / 5
    found = method.contrast(model, {"features": x, "labels": labels}, sets)
    assert float(found.detach()) == pytest.approx(expected, abs=1e-5)


def test_fedpcl_keeps_the_backbone_and_each_device_its_projection(vit):
    driven = drive(FedPCL(**SMALL, width=8), vit.model, three(vit), vit.task, 3)
    final = driven.final()
    base = vit.model.state_dict()
    assert all(torch.equal(t, base[n]) for n, t in final.state_dict().items() if "projected" not in n)
    own = [device.state["h"] for device in driven.devices.values()]
    assert not any(torch.equal(own[0][name], own[1][name]) for name in own[0])
    assert {role for sent in driven.sent for p in sent.values() for role in p[-1].parts} == {"prototypes"}
    for with_ in ("local", "global"):
        method = FedPCL(**SMALL, width=8, predict_with=with_)
        driven.server.variants = dict.fromkeys("abc", method)
        model = driven.personal("c").eval()
        told = logits(model, vit).argmax(-1)
        if with_ == "local":
            assert set(told.tolist()) <= set(driven.state["tables"]["c"]["classes"].tolist())
    driven.devices["c"].state = {}
    assert driven.personal("c") is None


def test_the_order_of_devices_changes_no_prototype(vit):
    method = FedPCL(width=8)
    made = {
        n: {
            "z": torch.randn(2, 8, generator=generator(n)),
            "classes": torch.tensor([0, 2]),
            "counts": torch.tensor([3, 4]),
        }
        for n in "xyz"
    }
    one, two = (method.together({n: made[n] for n in order}, CLASSES) for order in ("xyz", "zyx"))
    assert torch.equal(one["z"], two["z"])
    assert not one["there"][1]


def test_a_device_whose_answer_never_counted_has_no_model_by_global_prototypes(vit):
    driven = drive(FedPCL(**SMALL, width=8, predict_with="global"), vit.model, three(vit), vit.task, 1)
    assert driven.personal("a") is not None
    driven.state = driven.server.method.init(driven.server)
    assert driven.personal("a") is None


def test_fedpcl_knows_no_global_weights_to_pull_towards():
    with pytest.raises(ValueError, match="prox and calibrate are 0"):
        FedPCL(prox=0.1)


@pytest.mark.parametrize("make", [lambda: MOON(tau=0), lambda: FedPCL(width=0), lambda: FedPCL(depth=0.5)])
def test_numbers_out_of_range_are_refused(make):
    with pytest.raises(ValueError, match="above 0"):
        make()
