"""Distillation on the server: FedDF, FedAD and DENSE against what their formulas say must happen."""

from dataclasses import replace

import pytest
import torch

from fedge.core.payload import Payload
from fedge.errors import MethodError, MissingError
from fedge.methods.customize.dense import DENSE, ensemble, image_shape
from fedge.methods.customize.fedad import FedAD, together
from fedge.methods.customize.fedavg import FedAvg
from fedge.methods.customize.feddf import FedDF
from fedge.methods.distil import kd, logits_on
from fedge.models.attention import looked
from fedge.models.load import load as read_model
from fedge.models.names import load
from fedge.testing.driver import drive, start
from tests.methods.conftest import rows, three

DF = FedDF(steps=3, batch=4, lr=1e-2, digest=20, digest_batch=10)
AD = FedAD(steps=3, batch=5, lr=1e-2, digest=20)
SMALL = DENSE(steps=3, batch=4, lr=1e-2, digest=3, invert=4, images=8)


def test_softened_divergence_is_written_out():
    s, t = torch.randn(4, 3), torch.randn(4, 3)
    p, q = (t.double() / 2).softmax(-1), (s.double() / 2).softmax(-1)
    assert float(kd(s, t, 2.0)) == pytest.approx(float(4 * (p * (p / q).log()).sum() / 4), rel=1e-5)
    assert float(kd(s, s)) == 0.0


# FedDF --------------------------------------------------------------------------------------------------------------


def told(driven, public):
    """The logits of each device's model on the public rows, and the mean of the models, of a method like FedAvg."""
    model, said = driven.server.model(), []
    begun = driven.server.method.init(driven.server)["weights"]
    for payloads in driven.sent[0].values():
        load(model, {name: begun[name] + delta for name, delta in payloads[0]["delta"].items()})
        said.append(logits_on(model, driven.server.task, public))
    return said


def test_no_digestion_is_fedavg(vit):
    public = rows(vit, 10, "public")
    none = replace(FedDF(steps=3, batch=4))
    object.__setattr__(none, "digest", 0)
    ours = drive(none, vit.model, three(vit), vit.task, public=public)
    plain = drive(FedAvg(steps=3, batch=4), vit.model, three(vit), vit.task)
    assert all(torch.equal(ours.state["weights"][n], t) for n, t in plain.state["weights"].items())


@pytest.mark.parametrize("ensemble", ["logits", "probs"])
def test_the_student_nears_what_all_say_together(ensemble, vit):
    public = rows(vit, 10, "public")
    method = replace(DF, ensemble=ensemble)
    driven = drive(method, vit.model, three(vit), vit.task, public=public)
    said = told(driven, public)
    if ensemble == "logits":
        teacher = sum(said) / 3
    else:
        teacher = (sum(one.softmax(-1) for one in said) / 3).log()
    plain = drive(FedAvg(steps=3, batch=4, lr=1e-2), vit.model, three(vit), vit.task)
    before = kd(logits_on(plain.final(), vit.task, public), teacher)
    after = kd(logits_on(driven.final(), vit.task, public), teacher)
    assert after < before / 4


def test_one_device_teaches_itself_nothing_new(vit):
    public = rows(vit, 10, "public")
    ours = drive(DF, vit.model, {"a": rows(vit, 9)}, vit.task, public=public)
    plain = drive(FedAvg(steps=3, batch=4, lr=1e-2), vit.model, {"a": rows(vit, 9)}, vit.task)
    mean = logits_on(plain.final(), vit.task, public)
    assert kd(mean, told(ours, public)[0]) < 1e-9
    # Adam makes steps of the rounding that is left of the gradient, twenty of them
    assert kd(logits_on(ours.final(), vit.task, public), mean) < 0.01 * kd(logits_on(vit.model, vit.task, public), mean)


# FedAD --------------------------------------------------------------------------------------------------------------


def test_traffic_does_not_depend_on_the_model_and_no_weight_travels(vit):
    wide = read_model("vit-nano", "image-classification", classes=4, options={"hidden": 32, "layers": 2}, seed=1)
    sizes = []
    for found in (vit, wide):
        driven = drive(AD, found.model, three(found), found.task, public=rows(found, 10, "public"))
        assert all(set(p.parts) == {"logits", "statistics"} for sent in driven.sent[0].values() for p in sent)
        sizes.append(driven.up)
    assert sizes[0] == sizes[1]
    assert driven.sent[0]["a"][0].nbytes == 10 * (4 + 17) * 4 + 4 * 4


def said(logits, counts, seen):
    counts, seen = torch.tensor(counts), torch.tensor(seen)
    return Payload({"logits": {"public": torch.tensor(logits), "attention": seen}, "statistics": {"counts": counts}}, 5)


def test_each_class_is_judged_by_who_has_it():
    a = said([[1.0, 2.0, 4.0]], [3.0, 0.0, 0.0], [[0.0, 1.0]])
    b = said([[5.0, 8.0, 2.0]], [1.0, 2.0, 0.0], [[0.5, 0.25]])
    found = together([a, b], by_class=True)
    assert found["logits"].tolist() == [[0.75 * 1 + 0.25 * 5, 8.0, 3.0]]
    assert found["all"].tolist() == [[0.0, 0.25]]
    assert found["any"].tolist() == [[0.5, 1.0]]
    assert together([a, b], by_class=False)["logits"].tolist() == [[3.0, 5.0, 3.0]]


def test_looking_where_the_others_look_costs_nothing(either):
    model = start(AD, either.model, {"a": rows(either, 5)}, either.task, public=rows(either, 4)).server.model()
    inputs = either.task.inputs(next(rows(either, 6).chunks(6)))
    with torch.no_grad():
        logits, seen = looked(model.eval(), inputs)
        assert torch.allclose(logits, model(**inputs).logits)
    assert seen.shape[0] == 6
    assert float(seen.min()) == 0.0
    assert torch.allclose(seen.amax(1), torch.ones(6))
    if "attention_mask" in inputs:
        assert not seen[inputs["attention_mask"] == 0].any()
    batch = {**inputs, "logits": logits, "all": seen, "any": seen}
    assert float(AD.loss(model, batch).detach()) == pytest.approx(0.0, abs=1e-6)
    other = torch.rand(seen.shape)
    apart = AD.loss(model, {**batch, "all": other, "any": other})
    assert float(apart.detach()) == pytest.approx(float((other - seen).abs().mean()), rel=1e-4)


def test_the_student_nears_the_ensemble(vit):
    public = rows(vit, 10, "public")
    driven = drive(AD, vit.model, three(vit), vit.task, public=public)
    teacher = together([payloads[0] for payloads in driven.sent[0].values()], by_class=True)["logits"]
    before, after = (kd(logits_on(m, vit.task, public), teacher) for m in (vit.model, driven.final()))
    assert after < before / 4


@pytest.mark.parametrize("method", [DF, AD])
def test_public_rows_are_needed(method, vit):
    with pytest.raises(MethodError, match="rows that all share"):
        drive(method, vit.model, three(vit), vit.task)


# DENSE --------------------------------------------------------------------------------------------------------------


def test_where_student_and_ensemble_agree_there_is_nothing_to_gain():
    teacher = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    labels = torch.tensor([0, 1])
    alike = SMALL.wanted(torch.tensor([[0.1, 0.0], [0.0, 9.0]]), teacher, labels)
    assert alike == torch.nn.functional.cross_entropy(teacher, labels)
    other = torch.tensor([[0.0, 3.0], [0.0, 9.0]])
    p, q = teacher.softmax(-1)[0], other.softmax(-1)[0]
    gap = float((p * (p / q).log()).sum())
    assert float(SMALL.wanted(other, teacher, labels)) == pytest.approx(float(alike) - gap / 2, rel=1e-5)


def test_the_pool_grows_by_a_batch_an_epoch_and_its_pixels_stay_in_range(vit):
    driven = start(replace(SMALL, low=-1.0, high=2.0), vit.model, three(vit), vit.task)
    server = driven.server
    teachers = [server.model().requires_grad_(False).eval() for _ in range(2)]
    student = server.model()
    pool = server.method.learn(student, teachers, server)
    assert pool.shape == (3 * 8, 1, 8, 8)
    assert -1 <= float(pool.min()) < float(pool.max()) <= 2
    assert not any(p.grad is not None for model in teachers for p in model.parameters())
    assert all(p.requires_grad for p in student.parameters())


def test_the_student_learns_the_ensemble_from_invented_images_alone(vit):
    method = replace(SMALL, steps=20, digest=8, invert=10, images=32)
    driven = drive(method, vit.model, three(vit), vit.task)
    model, begun = driven.server.model(), method.init(driven.server)["weights"]
    teachers = []
    for payloads in driven.sent[0].values():
        teachers.append(driven.server.model().eval())
        load(teachers[-1], {name: begun[name] + delta for name, delta in payloads[0]["delta"].items()})
    images = torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        teacher = ensemble(teachers, images)
        load(model, mean_of(driven, begun))
        before = kd(model.eval()(pixel_values=images).logits, teacher)
        after = kd(driven.final().eval()(pixel_values=images).logits, teacher)
    assert after < before / 2


def mean_of(driven, begun):
    sent = [payloads[0] for payloads in driven.sent[0].values()]
    total = sum(p.weight for p in sent)
    return {name: t + sum(p.weight * p["delta"][name] for p in sent) / total for name, t in begun.items()}


def test_it_needs_to_know_the_images(bert):
    with pytest.raises(MissingError, match="not known"):
        image_shape(bert.model)
