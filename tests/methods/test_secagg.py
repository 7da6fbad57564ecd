"""Secure aggregation: the sum bit for bit over dropouts of every kind, nothing else; and what it does to a method."""

import contextlib
import random

import numpy as np
import pytest
import torch

from fedge.core.method import Abandon, Replies
from fedge.core.payload import Payload
from fedge.methods.combine.layout import Layout, cells_of, read, written
from fedge.methods.combine.secagg import SecAgg
from fedge.methods.customize.fedavg import FedAvg
from fedge.methods.make import make
from fedge.plan.rehearsal import Rehearsal, Setting
from fedge.privacy import shamir
from fedge.privacy.ring import Ring, wrapping
from fedge.testing.case import Case, apart, bits
from fedge.testing.driver import start
from fedge.testing.kit import check_property
from fedge.testing.tiny import tiny

from .conftest import WITHOUT_KEYS

PATTERNS = 200
LORA = make("lora", {"steps": 2, "batch": 4})


class Fixed(FedAvg):
    """Answers are drawn, not trained: cheap, and known to the test."""

    def client(self, dev, down):
        drawn = {name: torch.randn(shape, generator=dev.generator("fixed")) for name, shape in SHAPES.items()}
        return Payload({"delta": drawn}, weight=len(dev.data))

    def update(self, srv, state, replies):
        return {"seen": next(reply["delta"] for reply in replies.values())}


SHAPES = {"a": (7, 3), "b": (40,)}


def plain_sum(method, layout, ring, driven, names, number):
    """What the masked vectors of some devices must add up to: their own vectors' sum, modulo 2^bits."""
    total = torch.zeros(layout.length, dtype=ring.dtype)
    for name in names:
        device = driven.devices[name]
        device.round, device.seed = number, (*driven.server.seed, number, name)
        vector = method.vector(device, method.inner.client(device, Payload()), layout, ring)
        into = wrapping(total)
        into += wrapping(vector)
    return total


def begun(method, count=10):
    base = tiny("image")
    rows = {f"d{n:02d}": base.rows(1 + n % 4, f"{n}") for n in range(count)}
    return start(method, base.model, rows, base.task)


@pytest.mark.parametrize("bits_", [16, 32, 64])
def test_the_sum_is_the_plain_ring_sum_over_random_dropouts(bits_, monkeypatch):
    """Devices are lost at any turn, in any number; every sum that is opened is the plain one, bit for bit."""
    method = SecAgg(inner=Fixed(), bits=bits_, largest=4.0, neighbours=4, threshold=0.6)
    driven = begun(method)
    opened = []
    original = SecAgg._mean
    monkeypatch.setattr(
        SecAgg, "_mean", lambda self, total, *rest: opened.append(total) or original(self, total, *rest)
    )
    rng = random.Random(bits_)
    count = PATTERNS if bits_ == 32 else 20
    aborted = 0
    for number in range(count):
        driven.server.round, driven.server.cohort = number, tuple(driven.devices)
        alive, at = set(driven.devices), []
        talks, session = {}, method.ask(driven.server, {}, _question(driven))
        ask, before = next(session), len(opened)
        try:
            for turn in range(4):
                lost = {name for name in alive if rng.random() < rng.choice([0.0, 0.05, 0.15])}
                alive -= lost
                at.append(alive & set(ask.to))
                answers = {n: _answer(driven, n, number, talks, ask.to[n], turn) for n in sorted(at[-1])}
                ask = session.send(Replies(answers, dict.fromkeys(answers, number), {}))
        except StopIteration:
            names = sorted(at[0])
            layout = Layout(tuple(read(written(sorted(("delta", n, s) for n, s in SHAPES.items())))))
            expected = plain_sum(method, layout, method.ring(len(names)), driven, sorted(at[2]), number)
            assert torch.equal(opened[-1], expected), number
        except Abandon:
            aborted += 1
            assert len(opened) == before, "an aborted round opened a sum"
    assert 0 < aborted < count * 0.8


def _question(driven):
    from fedge.core.method import Ask

    return Ask({name: Payload() for name in driven.devices})


def _answer(driven, name, number, talks, sent, turn):
    device = driven.devices[name]
    if turn == 0:
        device.round, device.seed = number, (*driven.server.seed, number, name)
        talks[name] = driven.server.variants[name].client(device, sent)
        return next(talks[name])
    try:
        return talks[name].send(sent)
    except StopIteration as stop:
        return stop.value


def test_the_mean_is_the_method_s_own_to_the_ring_s_step():
    plain = Case.of(LORA, tiny("image"))
    masked = Case.of(SecAgg(inner=LORA, largest=9.0), tiny("image"))
    a, b = plain.start(plain.mixed).go(2), masked.start(masked.mixed).go(2)
    assert apart(plain.logits(a), masked.logits(b)) < 1e-4
    assert bits(masked.start(masked.mixed).go(2).state) == bits(b.state), "keys are new, the sum is the same"


def test_below_the_threshold_nothing_is_opened():
    driven = begun(SecAgg(inner=Fixed(), largest=4.0, threshold=0.8))
    before = bits(driven.state)
    driven.go(1, lost={(0, 2): ["d00", "d01", "d02"]})
    assert bits(driven.state) == before
    driven.go(1, lost={(1, 3): ["d00", "d01", "d02"]})
    assert bits(driven.state) == before


def test_what_devices_send_looks_like_nothing():
    """A masked vector is uniform, two sessions of the same answers share nothing, and no answer's bytes are in it."""
    method = SecAgg(inner=Fixed(), largest=4.0)
    sent = [begun(method, 3).go(1).sent[0]["d00"] for _ in range(2)]
    first, second = (wrapping(payloads[2]["shares"]["masked"]) for payloads in sent)
    assert not np.any(first == second)
    high = first.astype(np.float64) / 2**32
    assert 0.35 < high.mean() < 0.65
    for one, other in zip(sent[0][:2], sent[1][:2], strict=True):
        assert one.to_bytes() != other.to_bytes()


def test_distributed_noise_has_the_variance_that_the_accounts_take():
    class Still(Fixed):
        def client(self, dev, down):
            return Payload({"delta": {name: torch.zeros(shape) for name, shape in SHAPES.items()}})

    shapes = dict(SHAPES)
    SHAPES.clear()
    SHAPES["x"] = (30_000,)
    try:
        method = SecAgg(inner=Still(), noise=1.5, clip=0.5, threshold=0.6)
        driven, found = begun(method, 5), []
        layout, ring = Layout((("delta", "x", (30_000,)),)), method.ring(5)
        total = plain_sum(method, layout, ring, driven, driven.devices, 0)
        found = ring.real(total[:30_000])
        # five answered where three were enough: 5/3 of the variance
        assert float(found.var()) == pytest.approx((1.5 * 0.5) ** 2 * 5 / 3, rel=0.02)
        few = plain_sum(method, layout, ring, driven, list(driven.devices)[:3], 0)
        assert float(ring.real(few[:30_000]).var()) == pytest.approx((1.5 * 0.5) ** 2, rel=0.02)
    finally:
        SHAPES.clear()
        SHAPES.update(shapes)


def test_a_device_s_answer_is_cut_down_below_the_clip_rounding_included():
    method = SecAgg(inner=Fixed(), noise=1e-3, clip=0.01, bits=32)
    driven = begun(method, 3)
    device = driven.devices["d00"]
    device.seed = (0,)
    answer = method.inner.client(device, Payload())
    layout, ring = Layout.of([cells_of(answer.parts)]), method.ring(3)
    quiet = SecAgg(inner=Fixed(), noise=1e-300, clip=0.01)
    object.__setattr__(quiet, "_share", lambda dev, shape, ring, name: torch.zeros(shape, dtype=torch.float64))
    vector = ring.real(quiet.vector(device, answer, layout, ring)[: layout.numbers])
    assert 0.0099 < float(vector.norm()) <= 0.01


def test_rounding_in_the_ring_is_unbiased_and_cut_off():
    ring = Ring(16, 1.0, 8)
    drawn = ring.rounded(torch.full((100_000,), 0.1234567), torch.Generator().manual_seed(1))
    assert float(ring.real(drawn).mean()) == pytest.approx(0.1234567, abs=3e-6)
    far = ring.cut(torch.tensor([1e9, -1e9], dtype=torch.float64))
    assert (int(far[0]), int(far[1])) == (ring.levels, -ring.levels)
    assert 8 * ring.levels < 1 << 15


def test_any_threshold_of_shares_gives_the_secret_and_fewer_do_not():
    from sympy import isprime

    assert isprime(shamir.PRIME)
    secret = random.Random(1).randbytes(32)
    shares = shamir.split(secret, range(1, 8), 4, random.Random(2).randbytes(3 * shamir.COEFFICIENT))
    for seed in range(20):
        chosen = random.Random(seed).sample(sorted(shares), 4)
        assert shamir.joined({place: shares[place] for place in chosen}) == secret
    with contextlib.suppress(ValueError):
        assert shamir.joined({place: shares[place] for place in (1, 2, 3)}) != secret
    with pytest.raises(ValueError, match="threshold"):
        shamir.split(secret, [1, 2], 3, b"")


def test_a_rehearsed_sum_is_that_of_the_answers():
    # were a mask left on, no coordinate would be zero, and whoever rebuilds a model from them would do too much
    sums = []

    class Still(Fixed):
        def client(self, dev, down):
            return Payload({"delta": {name: torch.zeros(shape) for name, shape in SHAPES.items()}}, weight=16)

        def update(self, srv, state, replies):
            sums.append(next(reply["delta"] for reply in replies.values()))
            return state

    some, method = tiny("image"), SecAgg(inner=Still(), largest=16.0)
    setting = Setting(some.model, some.task, some.rows(9, "b"), cohort=3)
    Rehearsal(method, method, setting, some.model, fake=False).round(1, {})
    assert [{name: int(total.count_nonzero()) for name, total in tree.items()} for tree in sums] == [{"a": 0, "b": 0}]


@pytest.mark.kit
@pytest.mark.parametrize("inner", ["lora", "fedkseed"])
@pytest.mark.parametrize("property", WITHOUT_KEYS)
def test_the_kit_holds_around(inner, property):
    check_property(property, Case.of(SecAgg(inner=make(inner), largest=16.0), tiny("image")))
