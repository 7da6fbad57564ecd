"""The recurrent exit module against its formula written out over the whole sequence, and what it starts as."""

import pytest
import torch
from torch.nn import functional

from fedge.errors import ConfigError
from fedge.models.accumulator import HEADS, WIDTH, Accumulator
from fedge.models.exits import Form, MultiExit
from fedge.models.share import share
from tests.models.conftest import NANOS, inputs_for

FORMS = [Form("accumulator"), Form("accumulator", modulate=False), Form("accumulator", shared=False)]


def made(depth=5, hidden=32, shared=True, classes=3):
    draw = torch.Generator().manual_seed(0)
    found = Accumulator(depth, hidden, classes, draw, shared=shared)
    with torch.no_grad():  # the branches start at zero, where an error would not show
        for parameter in found.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.1)
    return found


def norm(x, module):
    return functional.layer_norm(x, (x.shape[-1],), module.weight, module.bias)


def slow(found, block, memory):
    """Every place of the sequence, head by head."""
    layer = found.layers[0 if found.shared else block]
    x = torch.cat([found.token.expand(len(memory), 1, -1), memory], 1) + found.position[: block + 2]
    q = layer.query(norm(x, layer.norm1))
    k, v = layer.key_value(norm(x, layer.norm1)).chunk(2, -1)
    size, mixed = WIDTH // HEADS, []
    for h in range(HEADS):
        at = slice(h * size, (h + 1) * size)
        scores = torch.einsum("bik,bjk->bij", q[..., at], k[..., at]) / WIDTH**0.5
        mixed.append(scores.softmax(-1) @ v[..., at])
    x = x + layer.out(torch.cat(mixed, -1))
    x = x + layer.down(functional.gelu(layer.up(norm(x, layer.norm2))))
    return x[:, 0] + memory[:, -1], x[:, -1]


@pytest.mark.parametrize("shared", [True, False])
def test_the_module_is_the_formula(shared):
    found = made(shared=shared)
    memory = torch.randn(4, 3, 32)
    for mine, theirs in zip(found(2, memory), slow(found, 2, memory), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-5)
    # the same at every position of a text
    tokens = torch.randn(4, 7, 3, 32)
    features, following = found(2, tokens)
    for at in range(7):
        for mine, theirs in zip((features, following), slow(found, 2, tokens[:, at]), strict=True):
            assert torch.allclose(mine[:, at], theirs, atol=1e-5)


def test_it_has_the_parameters_of_the_release():
    d, depth = 384, 12
    found = made(depth, d, classes=10)
    attention = 3 * 16 * (d + 1) + 16 * d + d
    feed_forward = d * int(1.35 * d) * 2 + int(1.35 * d) + d
    norms, places = 3 * 2 * d, (depth + 2) * d
    assert sum(p.numel() for p in found.parameters()) == attention + feed_forward + norms + places + 10 * (d + 1)


def wrapped(found, form, exits=(1, 2)):
    torch.manual_seed(4)
    return MultiExit(share(found.model), exits, found.task.classes, form=form).eval()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("name", "task"), NANOS)
def test_an_exit_does_not_depend_on_what_lies_deeper(loaded, name, task, form):
    found = loaded(name, task)
    inputs = inputs_for(found)
    model = wrapped(found, form)
    with torch.no_grad():
        for parameter in model.accumulator.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.05)
        logits = model(**inputs)
        for depth, count in ((1, 1), (2, 2)):
            short = model.cut(depth)
            assert len(short.parts.layers) == depth
            assert len(short.accumulator.position) == depth + 1
            assert len(short.accumulator.layers) == (1 if form.shared else depth)
            assert all(torch.equal(a, b) for a, b in zip(short(**inputs), logits[:count], strict=True))
    loss = sum(one.sum() for one in model.requires_grad_(True)(depth=1, **inputs))
    loss.backward()
    assert model.accumulator.position.grad[2:].abs().max() == 0


@pytest.mark.parametrize(("name", "task"), NANOS)
def test_at_first_nothing_is_modulated_and_the_last_exit_says_nearly_what_the_model_says(loaded, name, task):
    found = loaded(name, task)
    inputs = inputs_for(found)
    model = wrapped(found, FORMS[0])
    with torch.no_grad():
        model.accumulator.token.zero_()
        model.accumulator.position.zero_()
        found_logits, plain = model(**inputs), wrapped(found, FORMS[1])
        plain.accumulator.load_state_dict(model.accumulator.state_dict())
        for mine, theirs in zip(found_logits, plain(**inputs), strict=True):
            assert torch.allclose(mine, theirs, atol=1e-5)
        if name != "bert-nano":  # whose own heads are more than a norm and a linear layer
            assert torch.allclose(found_logits[-1], found.model(**inputs).logits, atol=1e-5)


def test_a_zero_head_is_uniform(loaded):
    found = loaded("vit-nano", "image-classification")
    model = wrapped(found, FORMS[0])
    with torch.no_grad():
        model.accumulator.classifier.weight.zero_()
        model.accumulator.classifier.bias.zero_()
        for logits in model(**inputs_for(found)):
            assert torch.equal(logits.softmax(-1), torch.full_like(logits, 1 / 4))


@pytest.mark.parametrize(("name", "task"), NANOS)
def test_modulation_changes_what_pooling_gives_by_what_is_asked(loaded, name, task):
    found = loaded(name, task)
    inputs = inputs_for(found)
    parts = wrapped(found, FORMS[0]).parts
    with torch.no_grad():
        hidden = parts.embed(inputs)
        pooled = parts.pool(hidden, inputs)
        change = torch.randn(pooled.shape)
        again = parts.pool(parts.pushed(hidden, change), inputs)
    assert torch.allclose(again - pooled, change, atol=1e-5)


def test_a_language_model_does_not_look_ahead(loaded):
    found = loaded("gpt-nano", "causal-lm")
    model = wrapped(found, FORMS[0])
    ids = torch.randint(5, 200, (2, 9))
    other = ids.clone()
    other[:, 6:] = 7
    with torch.no_grad():
        for mine, theirs in zip(model(input_ids=ids), model(input_ids=other), strict=True):
            assert torch.equal(mine[:, :6], theirs[:, :6])
            assert not torch.equal(mine[:, 6:], theirs[:, 6:])


def test_there_is_one_head_and_the_bases_is_gone(loaded):
    found = loaded("vit-nano", "image-classification")
    model = wrapped(found, FORMS[0])
    assert model.headless
    assert not [name for name in model.state_dict() if name.startswith(("classifier.", "exits.", "vit.layernorm."))]
    with pytest.raises(ConfigError, match="no exit"):
        model.cut(3)
