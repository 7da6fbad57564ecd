"""Chains: what is legal, what comes back, what error feedback keeps, and what damage does."""

from __future__ import annotations

import base64
import json
import tracemalloc
import zlib

import pytest
import torch

from fedge.codecs import make as makers
from fedge.codecs.chain import LIST, Chain
from fedge.codecs.make import chain, describe, make, revive
from fedge.codecs.table import BUILT
from fedge.core.payload import Payload
from fedge.core.rng import generator
from fedge.errors import ConfigError, MethodError, ProtocolError
from fedge.run.states import flatten
from fedge.run.states import revive as restored


def parsed(*words):
    return chain([(word, {}) if isinstance(word, str) else next(iter(word.items())) for word in words])


def tree(seed=0, scale=1.0):
    rng = generator("chain", seed)
    return {
        "encoder.layer.0.weight": torch.randn(48, 64, generator=rng) * scale,
        "encoder.layer.0.bias": torch.randn(64, generator=rng) * scale,
        "classifier.weight": torch.randn(4, 64, generator=rng) * scale,
        "steps": torch.arange(3),
    }


LEGAL = [
    ("topk", "int8"),
    ("svd", "topk", "int4", "zstd"),
    ("powersgd", "fp16"),
    ("randomk", "qsgd", "zstd"),
    ("nnadq", "zstd"),
    ("ternary",),
    ("topk", "sign"),
    ("topk", "zsign", "zstd"),
    ("svd", "ternary"),
    ("bf16", "zstd"),
]


@pytest.mark.parametrize("words", LEGAL, ids="-".join)
def test_a_chain_comes_back_and_its_bytes_are_those_foretold(words):
    made = parsed(*words)
    payload = Payload({"delta": tree(), "scalars": {"loss": torch.tensor([1.5])}}, 7.0, {"seen": 3})
    sent = made.encode(payload, generator("x"), {})
    data = sent.to_bytes()
    assert len(data) == sent.nbytes + sent.header_bytes
    outline = made.outline(payload)
    foretold = outline.nbytes + outline.header_bytes
    assert len(data) == foretold if all(codec.fixed for codec in made.codecs) else len(data) <= foretold
    assert len(data) < payload.nbytes
    read = made.decode(Payload.from_bytes(data))
    assert (read.weight, read.meta) == (7.0, {"seen": 3})
    assert [*read["delta"]] == [*payload["delta"]]
    for name, tensor in payload["delta"].items():
        assert (read["delta"][name].shape, read["delta"][name].dtype) == (tensor.shape, tensor.dtype)
    assert torch.equal(read["delta"]["steps"], torch.arange(3))
    assert torch.equal(read["scalars"]["loss"], torch.tensor([1.5])) or "zstd" in words


def test_the_formula_of_top_k_and_int8():
    """1.25 bytes a kept number's place and value, a scale for 512, and the names."""
    made = parsed({"topk": {"fraction": 0.1}}, "int8")
    payload = Payload({"delta": {name: tensor for name, tensor in tree().items() if name != "steps"}})
    sent = made.encode(payload, generator("x"), {})
    kept = [308, 7, 26]  # a tenth of 3072, 64 and 256, rounded up
    places = [min(-(-k * bits // 8), d // 8) for k, bits, d in zip(kept, (12, 6, 8), (3072, 64, 256), strict=True)]
    assert sent.nbytes == sum(kept) + 4 * 1 + sum(places)
    assert set(sent["delta"]) == {"topk.places", "int8.codes", "int8.scales"}


def test_an_empty_chain_changes_nothing():
    payload = Payload({"delta": tree()})
    assert Chain().encode(payload, generator("x"), {}) is payload
    assert Chain().outline(payload) is payload
    assert Chain().decode(payload) is payload


def test_roles_that_no_codec_touches_go_as_they_are():
    payload = Payload({"keys": {"public": torch.arange(32, dtype=torch.uint8)}, "shares": {"s": torch.rand(5)}})
    for key in BUILT:
        assert parsed(key).encode(payload, generator("x"), {}) is payload


REFUSED = [
    (("int8", "qsgd"), "'qsgd' quantises weights, delta, logits"),
    (("int8", "topk"), "'topk' sparsifies delta, gradients after 'int8', which quantises"),
    (("zstd", "topk"), "'topk' sparsifies delta, gradients after 'zstd', which entropy-codes"),
    (("topk", "ternary"), "'ternary' sparsifies delta, gradients, as 'topk' before it does"),
    (("ternary", "zstd"), "'zstd' entropy-codes delta, gradients, as 'ternary' before it does"),
    (("topk", "svd"), "'svd' transforms delta, gradients after 'topk'"),
    (("topk", "topk"), "'topk' sparsifies delta, gradients, as 'topk' before it does"),
    (("mask", "zstd"), "'zstd' entropy-codes mask, as 'mask' before it does"),
]


@pytest.mark.parametrize(("words", "said"), REFUSED, ids=lambda value: "-".join(value) if type(value) is tuple else "")
def test_chains_out_of_order_are_refused_in_one_line(words, said):
    with pytest.raises(ConfigError) as caught:
        parsed(*words)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_different_roles_may_have_different_codecs():
    made = parsed(
        "topk", {"int8": {"only": ("delta",)}}, {"fp16": {"only": ("logits",)}}, "mask", {"zstd": {"only": ("delta",)}}
    )
    assert [codec.key for codec in made.of("delta")] == ["topk", "int8", "zstd"]
    assert [codec.key for codec in made.of("logits")] == ["fp16"]
    assert [codec.key for codec in made.of("mask")] == ["mask"]


@pytest.mark.parametrize("role", ["keys", "shares"])
@pytest.mark.parametrize("key", BUILT)
def test_no_codec_may_touch_what_is_secret(key, role):
    with pytest.raises(ConfigError, match=f"codec '{key}': '{key}' must not touch {role}; it may touch"):
        make(key, {"only": (role,)})


@pytest.mark.parametrize(
    ("key", "options", "said"),
    [
        ("top", {}, "no codec 'top' .did you mean 'topk'"),
        ("topk", {"fraction": 0}, "a share of the numbers"),
        ("topk", {"share": 0.1}, "unexpected keyword"),
        ("qsgd", {"levels": 0}, "levels must be 1 or more"),
        ("int8", {"block": 0}, "block must be 1 or more"),
        ("svd", {"rank": 0}, "rank must be 1 or more"),
        ("nnadq", {"beta": 0.0}, "beta must be above 0"),
        ("zstd", {"level": 40}, "level is from 1 to 22"),
        ("ternary", {"scale": "std"}, "feedback: false"),
        ("zsign", {"sigma": 0.0}, "sigma must be above 0"),
        ("no_such_module:Codec", {}, "No module"),
        ("builtins:dict", {}, "not a fedge codec"),
    ],
)
def test_what_can_not_be_made_is_said(key, options, said):
    with pytest.raises(ConfigError, match=said):
        make(key, options)


@pytest.mark.parametrize("words", LEGAL, ids="-".join)
def test_chains_travel_as_json(words):
    made = parsed(*words)
    assert revive(json.loads(json.dumps(describe(made)))) == made
    assert makers.chain([]) == Chain()


@pytest.mark.parametrize(
    "words",
    [
        ("topk",),
        ("topk", "int8"),
        ("svd", "topk", "int4"),
        ("powersgd", "fp16"),
        ("sign",),
        ("ternary",),
        ("topk", "qsgd", "zstd"),
        ({"randomk": {"feedback": True}}, "nnadq"),
    ],
    ids=str,
)
def test_all_that_a_chain_leaves_out_comes_later(words):
    """``Σ sent + residual = Σ given`` for the chain as a whole, whatever its codecs round off."""
    made, state = parsed(*words), {}
    given = {name: torch.zeros_like(t, dtype=torch.float64) for name, t in tree().items()}
    sums = {name: tensor.clone() for name, tensor in given.items()}
    for step in range(100):
        change = tree(step)
        read = made.decode(made.encode(Payload({"delta": change}), generator("step", step), state))
        for name in given:
            given[name] += change[name]
            sums[name] += read["delta"][name]
    for number, name in enumerate(given):
        if name == "steps":
            assert torch.equal(sums[name], given[name])
            continue
        whole = sums[name] + state["delta"]["residual"][str(number)]
        assert (whole - given[name]).abs().max() <= 1e-5 * max(1.0, float(given[name].abs().max()))
        assert (sums[name] - given[name]).abs().max() > 1e-4  # something was left out indeed


def test_top_k_telescopes_to_the_bit_on_whole_numbers():
    made, state, given, sums = parsed("topk"), {}, torch.zeros(1000), torch.zeros(1000)
    for step in range(50):
        change = torch.randint(-1000, 1000, (1000,), generator=generator("ints", step)).float()
        sums += made.decode(made.encode(Payload({"delta": {"x": change}}), generator("x"), state))["delta"]["x"]
        given += change
    assert torch.equal(sums + state["delta"]["residual"]["0"], given)


def test_feedback_is_only_kept_where_a_codec_asks_for_it():
    state: dict = {}
    parsed("qsgd", "zstd").encode(Payload({"delta": tree()}), generator("x"), state)
    assert "residual" not in state["delta"]
    parsed({"topk": {"feedback": False}}, "int8").encode(Payload({"delta": tree()}), generator("x"), state)
    assert "residual" not in state["delta"]


@pytest.mark.parametrize("words", [("topk", "int8"), ("powersgd", "qsgd")], ids="-".join)
def test_the_state_can_be_saved(words):
    made, state = parsed(*words), {}
    for step in range(3):
        made.encode(Payload({"delta": tree(step)}), generator("x", step), state)
    saved = restored(*flatten(state))
    two = [made.encode(Payload({"delta": tree(9)}), generator("y"), each).to_bytes() for each in (state, saved)]
    assert two[0] == two[1]


def test_tensors_of_other_names_start_anew():
    made, state = parsed("topk"), {}
    made.encode(Payload({"delta": {"a": torch.arange(10.0)}}), generator("x"), state)
    sent = made.encode(Payload({"delta": {"b": torch.zeros(10)}}), generator("x"), state)
    assert not made.decode(sent)["delta"]["b"].any()


def test_what_is_not_finite_is_left_for_the_server_to_refuse():
    made, state = parsed("topk", "int8"), {}
    bad = Payload({"delta": {"x": torch.tensor([1.0, float("nan")])}})
    assert made.encode(bad, generator("x"), state) is bad
    assert state == {}


def test_a_method_may_not_use_the_chain_s_key():
    with pytest.raises(MethodError, match=f"a key '{LIST}'"):
        parsed("int8").encode(Payload({"delta": tree()}, meta={LIST: 1}), generator("x"), {})


def encoded(*words):
    return parsed(*words), parsed(*words).encode(Payload({"delta": tree()}), generator("x"), {})


def listing(payload, change):
    lists = json.loads(zlib.decompress(base64.b64decode(payload.meta[LIST])))
    change(lists)
    payload.meta[LIST] = base64.b64encode(zlib.compress(json.dumps(lists).encode())).decode()


@pytest.mark.parametrize("words", LEGAL, ids="-".join)
def test_a_list_that_promises_too_much_is_refused_without_an_allocation(words):
    made, sent = encoded(*words)
    listing(sent, lambda lists: lists["delta"][0].__setitem__(2, [10**7, 10**6]))
    tracemalloc.start()
    with pytest.raises(ProtocolError, match="more than 4294967296 bytes"):
        made.decode(sent)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    made, sent = encoded(*words)
    with pytest.raises(ProtocolError, match="more than 1000 bytes"):
        made.decode(sent, 1000)


def test_a_list_that_inflates_without_end_is_refused():
    made, sent = encoded("int8")
    sent.meta[LIST] = base64.b64encode(zlib.compress(b" " * (64 << 20), 9)).decode()
    with pytest.raises(ProtocolError, match="not whole, or too long"):
        made.decode(sent)


@pytest.mark.parametrize(
    "change",
    [
        lambda lists: lists["delta"].pop(),
        lambda lists: lists["delta"][0].__setitem__(1, "F99"),
        lambda lists: lists["delta"][0].__setitem__(1, "I64"),
        lambda lists: lists["delta"][0].__setitem__(2, [-1, 4]),
        lambda lists: lists["delta"][0].__setitem__(2, [True, 4]),
        lambda lists: lists["delta"][0].__setitem__(2, [48, 65]),
        lambda lists: lists["delta"][0].__setitem__(0, 3),
        lambda lists: lists["delta"].append(lists["delta"][0]),
        lambda lists: lists["delta"].append(["more", "F32", [1] * 100]),
        lambda lists: lists.__setitem__("keys", lists.pop("delta")),
        lambda lists: lists.__setitem__("delta", 3),
        lambda lists: lists.__setitem__("gradients", []),
    ],
)
def test_a_list_that_is_not_of_what_came_is_refused(change):
    made, sent = encoded("topk", "int8")
    listing(sent, change)
    with pytest.raises(ProtocolError, match="its answer's"):
        made.decode(sent)


@pytest.mark.parametrize("text", [3, None, "", "!!", "AAAA", base64.b64encode(zlib.compress(b"[1]")).decode()])
def test_a_list_that_is_none_is_refused(text):
    made, sent = encoded("topk", "int8")
    sent.meta[LIST] = text
    with pytest.raises(ProtocolError, match="can't be read"):
        made.decode(sent)
