"""ZooPFL: slopes against real gradients, a box that never sees one, and what stays on a device."""

import pytest
import torch
from torch import nn

from fedge.core.rng import generator
from fedge.errors import MissingError
from fedge.methods.train.zoopfl import ZooPFL, estimated, rewriter_of
from fedge.models.features import classifier
from fedge.models.share import share
from fedge.testing.driver import drive, start
from tests.methods.conftest import CLASSES, logits, probe, rows, three

SMALL = {"steps": 2, "batch": 4, "latent": 5, "embedding": 2, "hidden": 16, "pretrain": 1}


def test_slopes_are_the_gradient_up_to_mu_squared():
    drawn = generator("box")
    box = nn.Sequential(nn.Linear(4, 6), nn.Tanh()).double()
    head = nn.Linear(6, 3).double()
    codes = torch.randn(5, 4, generator=drawn, dtype=torch.float64).requires_grad_()
    labels = torch.tensor([0, 1, 2, 1, 0])
    loss = nn.functional.cross_entropy(head(box(codes)), labels, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, codes)
    errors = [float((estimated(box, codes.detach(), labels, head, mu) - gradient).abs().max()) for mu in (0.1, 0.01)]
    assert errors[1] < 1e-5
    assert errors[0] / errors[1] == pytest.approx(100, rel=0.2)


def test_the_encoders_gradient_is_the_chain_through_the_box(vit):
    # against back-propagation through everything, which the method itself never does
    method = ZooPFL(**{**SMALL, "steps": 1, "pretrain": 0}, optimizer="sgd", lr=1.0, mu=2e-2)
    data = {"a": rows(vit, 4, "a")}
    driven = start(method, vit.model, data, vit.task)
    model = driven.server.model()
    model.requires_grad_(True).eval()
    batch = next(data["a"].chunks(4))
    loss = vit.task.loss(model, batch)
    names = [n for n, _ in model.named_parameters() if n.startswith(("rewriter.", "classifier."))]
    held = dict(model.named_parameters())
    expected = dict(zip(names, torch.autograd.grad(loss, [held[n] for n in names]), strict=True))
    driven.go(1)
    sent = driven.sent[0]["a"][-1]["delta"]
    assert sorted(sent) == sorted(n for n in names if n.startswith("rewriter.encoder."))
    for name, change in sent.items():
        assert torch.allclose(-change, expected[name], atol=2e-2 * float(expected[name].abs().max()) + 1e-5), name
    own = driven.devices["a"].state["own"]
    assert torch.allclose(-own["rewriter.embedding"], expected["rewriter.embedding"], atol=5e-3)
    before = vit.model.state_dict()
    assert torch.allclose(
        before["classifier.weight"] - own["classifier.weight"], expected["classifier.weight"], atol=1e-4
    )


def test_the_box_gets_no_gradient_and_keeps_its_bits(vit):
    driven = drive(ZooPFL(**SMALL), vit.model, three(vit), vit.task, 3)
    base = vit.model.state_dict()
    for device in driven.devices.values():
        for name, parameter in device.model.named_parameters():
            if name.startswith("vit."):
                assert parameter.grad is None
                assert torch.equal(parameter, base[name])
    final = driven.final()
    assert all(torch.equal(tensor, base[name]) for name, tensor in final.state_dict().items() if name in base)
    assert logits(final, vit).shape == (6, CLASSES)


def test_rounds_of_reproduction_train_the_autoencoder_alone_and_then_the_decoder_rests(vit):
    driven = drive(ZooPFL(**SMALL), vit.model, three(vit), vit.task, 2)
    first, second = ({name for p in sent.values() for name in p[-1]["delta"]} for sent in driven.sent)
    assert {name.split(".")[1] for name in first} == {"encoder", "decoder"}
    assert {name.split(".")[1] for name in second} == {"encoder"}
    images = probe(vit)["pixel_values"]
    short, long = (
        drive(
            ZooPFL(**{**SMALL, "latent": 32, "hidden": 64, "pretrain": n, "steps": 60, "batch": 8}, lr=3e-3),
            vit.model,
            three(vit),
            vit.task,
            n,
        )
        for n in (1, 3)
    )
    errors = [float(((rewriter_of(d.final())(images) - images) ** 2).mean()) for d in (short, long)]
    assert errors[1] < errors[0] < float((images**2).mean())


def test_heads_and_vectors_stay_on_the_device_unless_the_survey_is_read(vit):
    paper = drive(ZooPFL(**SMALL), vit.model, three(vit), vit.task, 2)
    survey = drive(ZooPFL(**SMALL, reading="survey"), vit.model, three(vit), vit.task, 2)
    assert not any("classifier" in n for p in paper.sent[1].values() for n in p[-1]["delta"])
    assert any("classifier" in n for p in survey.sent[1].values() for n in p[-1]["delta"])
    assert set(survey.devices["a"].state["own"]) == {"rewriter.embedding"}
    head = classifier(survey.final())[1].weight
    assert not torch.equal(head, vit.model.classifier.weight)
    own = paper.personal("b")
    assert torch.equal(classifier(own)[1].weight, paper.devices["b"].state["own"]["classifier.weight"])
    assert torch.equal(rewriter_of(own).encoder[0].weight, paper.state["weights"]["rewriter.encoder.0.weight"])


def test_a_model_of_words_is_refused(bert):
    with pytest.raises(MissingError, match="sees no images"):
        ZooPFL().build(share(bert.model))
    with pytest.raises(ValueError, match="above 0"):
        ZooPFL(mu=0.0)
