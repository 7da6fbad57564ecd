"""Private methods against plain arithmetic: what is released, what leaves, and what the noise is."""

import pytest
import torch

from fedge.core.method import Replies
from fedge.core.payload import Payload
from fedge.errors import MethodError
from fedge.methods.combine.private import Private, alone
from fedge.methods.combine.shell import bare, widened
from fedge.methods.make import make
from fedge.privacy.noise import norm
from fedge.testing.case import Case, bits
from fedge.testing.kit import check_property
from fedge.testing.tiny import tiny

from .conftest import WITHOUT_KEYS

LORA = make("lora", {"steps": 2, "batch": 4})


def case(**fields):
    return Case.of(Private(inner=LORA, **fields), tiny("image"))


def replies(**deltas):
    """Answers of devices from trees, as a coordinator would hand them over."""
    answers = {name: Payload({"delta": tree}, weight=9.0) for name, tree in deltas.items()}
    return Replies(answers, dict.fromkeys(answers, 0), {})


def test_central_noise_is_on_the_sum_of_what_was_cut_down():
    driven = case(clip=1.0, noise=0.0, expected=4.0).start()
    method, srv = driven.server.method, driven.server
    trees = {
        "a": {"x": torch.tensor([3.0, 4.0]), "y": torch.zeros(2, 2)},
        "b": {"x": torch.tensor([0.0, 0.5]), "y": torch.zeros(1, 2)},  # trains the first slot alone
    }
    state, seen = method.combine(srv, {"clip": 1.0, "outline": {}, "tree": {}}, replies(**trees))
    # (0.6, 0.8) + (0, 0.5), over the expected four
    assert torch.allclose(seen["a"]["delta"]["x"], torch.tensor([0.6, 1.3]) / 4)
    assert seen["a"].weight == 4.0
    assert seen["b"].weight == 0.0
    assert state["outline"] == {"delta": {"x": [2], "y": [2, 2]}}


def test_the_noise_of_a_round_has_its_variance():
    driven = case(clip=0.5, noise=2.0, expected=3.0).start()
    method, srv = driven.server.method, driven.server
    trees = {name: {"x": torch.zeros(100_000)} for name in "abc"}
    found = []
    for number in range(2):
        srv.round = number
        state = {"clip": 0.5, "outline": {}, "tree": {}}
        found.append(method.combine(srv, state, replies(**trees))[1]["a"]["delta"]["x"])
    for noise in found:
        assert float(noise.double().std()) == pytest.approx(2.0 * 0.5 / 3.0, rel=0.01)
    assert float((found[0] * found[1]).double().mean()) < 1e-3
    system = Private(inner=LORA, clip=0.5, noise=2.0, expected=3.0, system=True)
    drawn = [system.combine(srv, state, replies(**trees))[1]["a"]["delta"]["x"] for _ in range(2)]
    assert not torch.equal(drawn[0], drawn[1])


def test_nobody_s_round_is_noise_like_any_other():
    driven = case(noise=1.0, expected=2.0).start().go(1)
    before = bits(driven.state["inner"])
    method, srv = driven.server.method, driven.server
    srv.round, srv.cohort = 1, ()
    talk = method.round(srv, driven.state)
    assert dict(next(talk).to) == {}
    with pytest.raises(StopIteration) as stop:
        talk.send(Replies({}, {}, {}))
    assert bits(stop.value.value["inner"]) != before


def test_local_answers_are_cut_down_and_noised_and_say_no_rows():
    quiet = case(where="local", clip=1e-3, noise=0.0).start().go(1)
    for payloads in quiet.sent[0].values():
        assert float(norm(payloads[0].parts)) == pytest.approx(1e-3, rel=1e-4)
        assert payloads[0].weight == 1.0
    loud = case(where="local", clip=1e-3, noise=5.0).start().go(1)
    added = torch.cat(
        [
            (loud.sent[0][name][0]["delta"][tensor] - quiet.sent[0][name][0]["delta"][tensor]).flatten()
            for name in loud.sent[0]
            for tensor in loud.sent[0][name][0]["delta"]
        ]
    )
    assert float(added.double().std()) == pytest.approx(5e-3, rel=0.1)


def test_private_bytes_are_the_bare_method_s():
    bared = Case.of(LORA, tiny("image")).start().go(2)
    for fields in ({}, {"where": "local"}):
        assert case(**fields).start().go(2).down == bared.down
    assert case().start().go(2).up == bared.up


def test_a_tree_s_rounds_end_where_the_prefix_s_noise_is():
    """DP-FTRL: after t rounds the weights are those without noise plus popcount(t) nodes over the cohort's size."""
    method = case(noise=1.0, expected=1.0, epoch=8, clip=1.0).start().server.method
    srv = case().start().server
    state = {"clip": 1.0, "outline": {}, "tree": {}}
    total = torch.zeros(50_000)
    for number in range(8):
        srv.round = number
        state, seen = method.combine(srv, state, replies(a={"x": torch.zeros(50_000)}))
        total = total + seen["a"]["delta"]["x"]
        nodes = bin(number + 1).count("1")
        assert float(total.double().var()) == pytest.approx(nodes, rel=0.03)
    srv.round = 8  # another pass, another tree: what the first left stays
    state, seen = method.combine(srv, state, replies(a={"x": torch.zeros(50_000)}))
    assert float((total + seen["a"]["delta"]["x"]).double().var()) == pytest.approx(2, rel=0.03)


def test_an_adaptive_clip_moves_to_its_quantile():
    driven = case().start()
    srv = driven.server
    method = Private(inner=LORA, clip=10.0, noise=0.5, expected=100.0, quantile=0.5)
    state = {"clip": 10.0, "outline": {}, "tree": {}}
    trees = {f"d{n:02d}": {"x": torch.tensor([(n + 1) / 100])} for n in range(100)}
    for number in range(120):
        srv.round = number
        state, _ = method.combine(srv, state, replies(**trees))
    assert state["clip"] == pytest.approx(0.5, rel=0.25)
    # Andrew et al. 2021, theorem 1: both noises together cost what the one of z does
    assert method.for_sum**-2 + (2 * method.for_count) ** -2 == pytest.approx(0.5**-2)


def test_what_is_not_a_tensor_is_refused():
    class Talkative:
        card = LORA.card

        def client(self, dev, down):
            return Payload({"delta": {}}, meta={"rows": 3})

    with pytest.raises(MethodError, match="rows"):
        alone(Talkative(), None, Payload())
    assert bare(Private(inner=Private(inner=LORA))) is LORA
    assert widened({"delta": {"x": [2, 3]}}, {"delta": {"x": torch.zeros(4, 1)}}) == {"delta": {"x": [4, 3]}}


@pytest.mark.kit
@pytest.mark.parametrize("where", ["central", "local"])
@pytest.mark.parametrize("property", WITHOUT_KEYS)
def test_the_kit_holds_around_lora(where, property):
    method = Private(inner=LORA, where=where, clip=1e3, noise=1e-9, expected=3.0)
    check_property(property, Case.of(method, tiny("image")))
