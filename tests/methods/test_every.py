"""The rules that resume, replay and mixed cohorts rest on, beside the kit that tries all that is listed."""

import json
from dataclasses import FrozenInstanceError

import pytest
import torch

from fedge.core.payload import ROLES
from fedge.core.server import ServerOptimizer
from fedge.errors import ConfigError
from fedge.methods.make import describe, difference, make, revive
from fedge.methods.table import ALIASES, BUILT
from fedge.testing.driver import drive
from tests.methods.conftest import METHODS, logits, rows, three

KEYS = sorted(METHODS)
#: Methods whose devices run the very function that the stage leaves, whatever their variant.
TENSORS = [k for k in KEYS if k not in ("split", "fedmd", "fedsa_lora", "flexlora", "hetlora", "replication_padding")]


def run(key, found, rounds=1, **more):
    more.setdefault("public", rows(found, 10, "public"))
    return drive(more.pop("method", METHODS[key]), found.model, three(found), found.task, rounds, **more)


def flat(state):
    """A state's tensors and the JSON of the rest."""
    tensors = []

    def plain(value):
        if isinstance(value, torch.Tensor):
            tensors.append(value)
            return "tensor"
        if isinstance(value, dict):
            return {str(name): plain(item) for name, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value

    return json.dumps(plain(state), sort_keys=True, allow_nan=False), tensors


def same(a, b):
    (text, ours), (other, theirs) = flat(a), flat(b)
    return text == other and all(torch.equal(x, y) for x, y in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("key", KEYS)
def test_a_round_changes_the_final_model_and_keeps_its_shape(key, vit, bert):
    either = bert if key in ("split", "lora") else vit
    driven = run(key, either, 2)
    final = driven.final()
    assert logits(final, either).shape == (6, 4)
    assert not torch.equal(logits(final, either), logits(either.model, either)) or key in ("anytime", "fedsa_lora")
    if METHODS[key].card.final == "plain":
        assert set(final.state_dict()) == set(either.model.state_dict())
        assert type(final) is type(either.model)
    assert METHODS[key].predict(final.eval(), _inputs(either)).shape == (3, 4)


def _inputs(found):
    return found.task.inputs(next(rows(found, 3).chunks(3)))


@pytest.mark.parametrize("key", KEYS)
def test_state_and_meta_can_be_saved_and_only_known_roles_leave(key, vit):
    driven = run(key, vit, 2, optimizer=ServerOptimizer("fedadam", lr=0.01))
    flat(driven.state)
    for device in driven.devices.values():
        flat(device.state)
    raw = {tensor.data_ptr() for rows in three(vit).values() for tensor in rows.columns.values()}
    for sent in driven.sent:
        for payload in [payload for payloads in sent.values() for payload in payloads]:
            assert set(payload.parts) <= set(ROLES)
            assert not {t.data_ptr() for tree in payload.parts.values() for t in tree.values()} & raw


@pytest.mark.parametrize("key", KEYS)
def test_arrival_order_does_not_matter(key, vit):
    plain = run(key, vit, 2)
    turned = run(
        key, vit, 2, order=lambda round, turn, names: sorted(names, key=lambda n: (round * ord(n)) % 5, reverse=True)
    )
    assert same(plain.state, turned.state)


@pytest.mark.parametrize("key", KEYS)
def test_variants_of_every_size_finish_a_round_together(key, vit):
    found = list(METHODS[key].variants())
    assert found[0] is not None
    picks = {device: found[-1 - at] for at, device in enumerate("ab") if at < len(found)} | {"c": found[0]}
    driven = run(key, vit, 2, variants=picks)
    assert all(torch.isfinite(tensor).all() for tensor in flat(driven.state)[1] if tensor.is_floating_point())


@pytest.mark.parametrize("key", TENSORS)
def test_a_device_that_missed_rounds_ends_where_the_others_are(key, vit):
    variants = METHODS[key].variants()
    picks = {"a": variants[0], "b": variants[-1], "c": variants[len(variants) // 2]}
    driven = run(key, vit, 3, variants=picks, absent={1: ["b"], 2: ["a", "b"]})
    outputs = {device: driven.synced(device).eval() for device in "abc"}
    final = driven.final()
    if METHODS[key].card.final == "exits":
        return  # devices of different depth; see test_anytime
    for device in "abc":
        assert torch.allclose(logits(outputs[device], vit), logits(final, vit), atol=2e-5)


@pytest.mark.parametrize("key", KEYS)
def test_a_device_may_be_lost_at_any_turn(key, vit):
    for turn in (0, 1) if key == "split" else (0,):
        driven = run(key, vit, 2, lost={(0, turn): ["b"]})
        without = run(key, vit, 1, absent={0: ["b"]})
        alone = run(key, vit, 1, lost={(0, turn): ["b"]})
        assert same(alone.state, without.state)
        assert set(driven.up[1]) == {"a", "b", "c"}


@pytest.mark.parametrize("key", KEYS)
def test_when_nobody_answers_the_state_stays(key, vit):
    driven = run(key, vit, 1, lost={(0, 0): ["a", "b", "c"]})
    assert same(driven.state, METHODS[key].init(driven.server))


@pytest.mark.parametrize("key", KEYS)
def test_a_stage_can_begin_from_what_another_left(key, vit):
    first = run("lora", vit).final()
    driven = drive(METHODS[key], first, three(vit), vit.task, public=rows(vit, 10))
    assert logits(driven.final(), vit).shape == (6, 4)


@pytest.mark.parametrize("key", KEYS)
def test_methods_are_values_that_travel_as_json(key):
    method = METHODS[key]
    for variant in method.variants():
        assert revive(json.loads(json.dumps(describe(variant)))) == variant
    with pytest.raises(FrozenInstanceError):
        method.steps = 3
    assert difference(method, method) == {}


@pytest.mark.parametrize("key", sorted(BUILT))
def test_defaults_make_a_method_whose_card_is_full(key):
    method = make(key)
    assert method == make(next((alias for alias, to in ALIASES.items() if to == key), key))
    card = method.card
    assert card.summary
    assert card.paper
    assert card.path
    assert card.leaves
    assert card.deviations
    assert card.family in ("tensors", "own")


def test_what_can_not_be_made_is_said():
    with pytest.raises(ConfigError, match="did you mean 'lora'"):
        make("loro")
    with pytest.raises(ConfigError, match="unexpected keyword"):
        make("head", {"rank": 3})
    with pytest.raises(ConfigError, match="steps must be above 0"):
        make("head", {"steps": 0})
    with pytest.raises(ConfigError, match="which is not a fedge method"):
        make("builtins:dict")
    with pytest.raises(ConfigError, match="No module"):
        make("no_such_module:thing")
    assert make("fedge.methods.customize.head:Head", {"lr": 0.5}).lr == 0.5


def test_differences_are_those_of_the_device():
    lora = METHODS["lora"]
    assert difference(lora.variants()[1], lora) == {"micro_batch": 1}
    mixed = METHODS["mixed"].variants()
    assert difference(mixed[0], METHODS["mixed"]) == {"rank": 4, "lr": 1e-2, "steps": 2, "batch": 4}
