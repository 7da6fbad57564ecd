"""Each codec against a slow obvious oracle, and its length against the formula of its paper."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from fedge.codecs import bits, golomb
from fedge.codecs.chain import Chain
from fedge.codecs.largest import how_many, largest
from fedge.codecs.make import make
from fedge.core.payload import Payload
from fedge.core.rng import generator
from fedge.errors import ProtocolError


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=generator("codecs", seed))


def through(codec, tensor, rng=None, state=None):
    """What comes out of one tensor, and the bytes of tensor data that were sent for it."""
    sent, meta = codec.encode({"x": tensor}, rng or generator("codecs"), {} if state is None else state)
    return codec.decode(sent, meta)["x"], sum(t.numel() * t.element_size() for t in sent.values())


# -- packing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wide", [1, 3, 7, 8, 9, 13, 24, 31])
@pytest.mark.parametrize("count", [0, 1, 7, 65536, 65537])
def test_numbers_in_bits_come_back(wide, count):
    codes = torch.randint(1 << wide, (count,), generator=generator(wide, count))
    data = bits.pack(codes, wide)
    assert len(data) == math.ceil(count * wide / 8)
    assert torch.equal(bits.unpack(data, wide, count), codes.int())


def test_bits_stand_in_the_order_in_which_one_would_write_them():
    text = "".join(f"{code:05b}" for code in (3, 31, 0, 17, 9))
    assert bits.pack(torch.tensor([3, 31, 0, 17, 9]), 5).tolist() == [
        int(text[at : at + 8].ljust(8, "0"), 2) for at in range(0, 25, 8)
    ]


@pytest.mark.parametrize(("count", "size"), [(0, 0), (0, 9), (1, 1), (2, 1000), (300, 1000), (1000, 1000), (1, 2)])
def test_places_take_the_shorter_of_two_forms(count, size):
    places = torch.randperm(size, generator=generator(count))[:count].sort().values
    data = bits.pack_places(places, size)
    each = math.ceil(count * math.ceil(math.log2(size)) / 8) if size > 1 else 0
    assert len(data) == bits.places_nbytes(count, size) == min(each, math.ceil(size / 8))
    assert torch.equal(bits.unpack_places(data, count, size), places)


def test_places_out_of_order_or_range_are_refused():
    for bad in ([5, 5], [7, 3], [3, 1001]):
        with pytest.raises(ProtocolError, match="ascending places"):
            bits.unpack_places(bits.pack(torch.tensor(bad), 10), 2, 1001)
    with pytest.raises(ProtocolError, match="not 3 ascending places of 8"):
        bits.unpack_places(torch.tensor([0b11110000], dtype=torch.uint8), 3, 8)


def slow_golomb(places, b):
    """The bits as one would write them: remainders, then quotients in unary."""
    gaps = [here - before - 1 for before, here in zip([-1, *places], places, strict=False)]
    remainders = "".join(f"{gap % (1 << b):0{b}b}" if b else "" for gap in gaps)
    quotients = "".join("0" * (gap >> b) + "1" for gap in gaps)
    return [[int(t[at : at + 8].ljust(8, "0"), 2) for at in range(0, len(t), 8)] for t in (remainders, quotients)]


@pytest.mark.parametrize(("count", "size"), [(0, 5), (1, 1), (5, 5), (3, 400), (50, 1000), (999, 1000), (1, 10**6)])
def test_golomb_is_bit_exact_and_within_the_formula(count, size):
    places = torch.randperm(size, generator=generator("golomb", count, size))[:count].sort().values
    data = golomb.encode(places, size)
    remainders, quotients = slow_golomb(places.tolist(), golomb.parameter(count, size))
    assert data.tolist() == remainders + quotients
    assert len(data) <= golomb.most_nbytes(count, size)
    assert torch.equal(golomb.decode(data, count, size), places)


def test_golomb_is_as_long_as_its_paper_says():
    """Sattler et al. 2019, eq. 15: ``b + 1 / (1 − (1 − p)^(2^b))`` bits a place on the average."""
    for p in (0.01, 0.05, 0.2):
        size = 400_000
        places = (torch.rand(size, generator=generator("golomb", str(p))) < p).nonzero().reshape(-1)
        b = golomb.parameter(len(places), size)
        wanted = b + 1 / (1 - (1 - p) ** (1 << b))
        assert len(golomb.encode(places, size)) * 8 / len(places) == pytest.approx(wanted, rel=0.01)


def test_the_largest_are_taken_and_of_equal_ones_the_first():
    vector = torch.tensor([1.0, -3, 3, 0, 3, -1, 1])
    assert largest(vector, 2).tolist() == [1, 2]
    assert largest(vector, 4).tolist() == [0, 1, 2, 4]
    assert largest(vector, 0).tolist() == []
    assert largest(torch.zeros(5), 3).tolist() == [0, 1, 2]
    for k in (1, 10, 99, 100):
        random = drawn(100, seed=k).round(decimals=1)
        slow = sorted(sorted(range(100), key=lambda at: (-abs(random[at]), at))[:k])
        assert largest(random, k).tolist() == slow


def test_how_many_are_kept_is_exact_arithmetic():
    for size in range(1, 300):
        for share in ("0.1", "0.05", "0.3", "1"):
            assert how_many(float(share), size) == math.ceil(Fraction(share) * size)


# -- sparse ----------------------------------------------------------------------------------------------------------


def test_topk_is_idempotent_and_keeps_what_it_must():
    codec, x = make("topk", {"fraction": 0.1}), drawn(40, 50)
    once, nbytes = through(codec, x)
    twice, _ = through(codec, once)
    assert torch.equal(once, twice)
    assert int((once != 0).sum()) == 200
    assert (x - once).square().sum() <= 0.9 * x.square().sum()
    assert nbytes == 200 * 4 + min(math.ceil(200 * 11 / 8), 2000 // 8)
    assert x.abs()[once == 0].max() <= once.abs()[once != 0].min()


def test_topk_of_the_whole_tree_goes_by_size_alone():
    tree = {"small": drawn(100) * 0.01, "large": drawn(100, seed=1)}
    for scope, kept in (("tensor", [10, 10]), ("tree", [0, 20])):
        codec = make("topk", {"fraction": 0.1, "scope": scope})
        out = codec.decode(*codec.encode(tree, generator("x"), {}))
        assert [int((out[name] != 0).sum()) for name in tree] == kept


def draws(codec, x, times):
    """What comes out of ``times`` copies of a tensor, each with random numbers of its own: [times, …]."""
    sent, meta = codec.encode({str(number): x for number in range(times)}, generator("draws"), {})
    return torch.stack(list(codec.decode(sent, meta).values())).double()


def test_random_k_is_unbiased_with_the_variance_of_theory():
    codec, x, times = make("randomk", {"fraction": 0.05}), drawn(60), 4000
    seen = draws(codec, x, times)
    each = x.double().square() * (60 / 3 - 1)  # variance of a coordinate: x² (d/k − 1)
    z = (seen.mean(0) - x) / (each / times).sqrt()
    assert z.abs().max() < 4
    ratio = float((seen - x).square().sum(1).mean() / x.square().sum())
    assert ratio == pytest.approx(codec.variance({"x": x}), rel=0.05)
    assert codec.variance({"x": x}) == pytest.approx(19)


def test_random_k_sends_its_seed_in_the_places_stead():
    x = drawn(1000)
    out, nbytes = through(make("randomk", {"fraction": 0.1}), x)
    assert nbytes == 100 * 4 + 8
    kept = out != 0
    assert torch.allclose(out[kept], x[kept] * 10)
    unscaled, _ = through(make("randomk", {"fraction": 0.1, "feedback": True}), x)
    assert torch.equal(unscaled[kept], x[kept])


# -- quantised -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [1, 4, 16, 255])
def test_qsgd_is_unbiased_with_the_variance_of_theory(levels):
    codec, x, times = make("qsgd", {"levels": levels, "bucket": 200}), drawn(200), 3000
    seen = draws(codec, x, times)
    norm = x.double().norm()
    exact = levels * x.double().abs() / norm
    p = exact - exact.floor()
    each = norm**2 * p * (1 - p) / levels**2  # theory's: a level that is seldom hit has no variance in a sample
    z = (seen.mean(0) - x) / (each / times).sqrt()
    assert z.abs().max() < 5
    assert z.square().mean() == pytest.approx(1, abs=0.35)
    ratio = float((seen - x).square().sum(1).mean() / norm**2)
    assert ratio <= min(200 / levels**2, math.sqrt(200) / levels)
    assert ratio == pytest.approx(float(each.sum() / norm**2), rel=0.05)


def test_qsgd_without_its_chance_would_be_biased():
    """The contrast: rounding down loses every number that is less than a level."""
    x = drawn(1000)
    lost = (4 * x.abs() / x.norm()).floor() == 0
    assert lost.all()
    seen = draws(make("qsgd", {"levels": 4, "bucket": 1000}), x, 3000).mean(0)
    assert float((seen - x).norm() / x.norm()) < 0.2


@pytest.mark.parametrize(("levels", "wide"), [(1, 2), (7, 4), (127, 8), (255, 9), (256, 10)])
def test_qsgd_s_length_is_the_formula_s(levels, wide):
    out, nbytes = through(make("qsgd", {"levels": levels}), drawn(1300))
    assert nbytes == 3 * 4 + math.ceil(1300 * wide / 8)
    one, _ = through(make("qsgd", {"levels": levels}), torch.tensor([0.0, -5.0, 0.0]))
    assert torch.equal(one, torch.tensor([0.0, -5.0, 0.0]))  # the whole norm is the level s itself
    assert out.isfinite().all()


@pytest.mark.parametrize(("key", "top", "block"), [("int8", 127, 512), ("int4", 7, 64)])
def test_rounding_errs_by_at_most_half_a_step(key, top, block):
    x = drawn(3, 700) * torch.logspace(-3, 3, 700)
    out, nbytes = through(make(key), x)
    blocks = math.ceil(2100 / block)
    assert nbytes == blocks * 4 + (2100 if key == "int8" else 1050)
    for number in range(blocks):
        part = slice(number * block, (number + 1) * block)
        step = float(x.reshape(-1)[part].abs().max()) / top
        assert (out - x).reshape(-1)[part].abs().max() <= step / 2 * (1 + 1e-5)
        assert (out - x).reshape(-1)[part].abs().max() > step / 4


def test_nnadq_takes_the_levels_that_the_range_asks_for():
    x = drawn(5000) * 0.02
    for beta, wanted in ((1e-3, 7), (1e-4, 9)):
        out, nbytes = through(make("nnadq", {"beta": beta}), x)
        y = x - (x.max() + x.min()) / 2
        n = float(y.abs().max())
        level = max(1, int(math.sqrt(n * 32 * math.log(4) / beta)))
        assert 1 + math.ceil(math.log2(level + 1)) == wanted
        assert nbytes == math.ceil(5000 * wanted / 8) + 8 + 4
        assert float((out - x).abs().max()) == pytest.approx(n / (2 * level), rel=1e-2)
        assert (out - x).abs().max() <= n / (2 * level) * (1 + 1e-4)


def test_nnadq_on_constants_and_beyond_its_most_bits():
    same, _ = through(make("nnadq"), torch.full((9,), 3.5))
    assert torch.equal(same, torch.full((9,), 3.5))
    out, nbytes = through(make("nnadq", {"beta": 1e-12, "most": 6}), drawn(800))
    assert nbytes == 800 * 6 // 8 + 12
    assert out.isfinite().all()


def test_sign_of_nothing_is_plus_and_the_contraction_is_the_theory_s():
    codec = make("sign")
    out, nbytes = through(codec, torch.tensor([0.0, -2, 4, 0]))
    assert out.tolist() == [1.5, -1.5, 1.5, 1.5]
    x = drawn(1000)
    out, nbytes = through(codec, x)
    assert nbytes == 1000 / 8 + 4
    delta = float(x.abs().sum() ** 2 / (1000 * x.square().sum()))
    assert float((x - out).square().sum() / x.square().sum()) == pytest.approx(1 - delta, rel=1e-4)


def test_z_sign_with_uniform_noise_is_unbiased_and_clips_beyond_sigma():
    times = 6000
    x = torch.tensor([0.0, 0.1, 0.3, -0.7, 1.0, 1.5])
    seen = draws(make("zsign", {"sigma": 1.0}), x, times)
    within, beyond = seen.mean(0)[:5], seen.mean(0)[5]
    error = ((1 - x[:5].double() ** 2) / times).sqrt()
    assert ((within - x[:5]).abs() <= 4 * error + 1e-9).all()
    assert beyond == pytest.approx(1.0)
    mean = draws(make("zsign"), x, times).mean(0)
    assert (mean - x).abs().max() < 4 * 1.5 / math.sqrt(times)


def test_z_sign_with_normal_noise_has_the_bias_of_theory():
    x = torch.tensor([0.2, 0.5, 1.0, 3.0])
    seen = draws(make("zsign", {"sigma": 1.0, "noise": "normal"}), x, 6000)
    wanted = math.sqrt(math.pi / 2) * torch.erf(x / math.sqrt(2))
    assert (seen.mean(0) - wanted).abs().max() < 4 * 1.26 / math.sqrt(6000)


def test_z_sign_moves_on_where_plain_signs_stall():
    """Two devices pull a number to −1 and to +3; the plain signs cancel anywhere between, the noisy ones meet at 1."""
    codec = make("zsign", {"sigma": 6.0})
    at = plain = 0.0
    for step in range(1000):
        pulls = [-1 - at, 3 - at]
        moved = [through(codec, torch.tensor([pull]), generator("stall", step, n))[0] for n, pull in enumerate(pulls)]
        at += 0.03 * float(sum(moved)) / 2
        plain += 0.03 * (math.copysign(1, -1 - plain) + math.copysign(1, 3 - plain)) / 2
    assert plain == 0.0
    assert at == pytest.approx(1.0, abs=0.8)


def test_ternary_sends_signs_of_the_largest_of_all_and_one_scale():
    tree = {"a": drawn(30, 40), "b": drawn(200, seed=1) * 5}
    codec = make("ternary", {"fraction": 0.05})
    sent, meta = codec.encode(tree, generator("x"), {})
    out = codec.decode(sent, meta)
    flat = torch.cat([tensor.reshape(-1) for tensor in tree.values()])
    kept = largest(flat, 70)
    wanted = torch.zeros(1400)
    wanted[kept] = flat[kept].sign() * flat[kept].abs().mean()
    assert torch.equal(torch.cat([tensor.reshape(-1) for tensor in out.values()]), wanted)
    assert len(sent["ternary.places"]) <= golomb.most_nbytes(70, 1400)
    assert len(sent["ternary.signs"]) == math.ceil(70 / 8)
    compeft = make("ternary", {"scale": "std", "alpha": 3.0, "feedback": False})
    value = compeft.decode(*compeft.encode(tree, generator("x"), {}))["b"].abs().max()
    assert float(value) == pytest.approx(3 * float(flat.std(correction=0)), rel=1e-5)


def test_ternary_at_five_percent_is_near_the_entropy_s_bound():
    """``H(k) + k`` bits a number: 47.6 times less than fp16 at 5 % (ComPEFT, sec. 2.2)."""
    _, nbytes = through(make("ternary", {"fraction": 0.05}), drawn(200_000))
    entropy = -(0.05 * math.log2(0.05) + 0.95 * math.log2(0.95)) + 0.05
    assert entropy * 200_000 / 8 < nbytes < 1.03 * entropy * 200_000 / 8
    assert 200_000 * 2 / nbytes == pytest.approx(47.6, rel=0.04)


@pytest.mark.parametrize(("key", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_casts_are_torch_s_and_stay_finite(key, dtype):
    x = drawn(50) * 1000
    out, nbytes = through(make(key), x)
    assert torch.equal(out, x.to(dtype).float())
    assert nbytes == 100
    far, _ = through(make(key), torch.tensor([1e38, -1e38]))
    assert far.isfinite().all()


# -- low rank --------------------------------------------------------------------------------------------------------


def test_svd_is_the_best_of_its_rank():
    x = drawn(60, 45)
    values = torch.linalg.svdvals(x.double())
    for rank in (1, 4, 20):
        out, nbytes = through(make("svd", {"rank": rank}), x)
        best = values[rank:].square().sum().sqrt()
        assert float((x - out).double().norm()) == pytest.approx(float(best), rel=1e-5)
        assert nbytes == 4 * rank * (60 + 45)
        assert torch.linalg.matrix_rank(out) == rank


def test_what_factors_would_make_larger_goes_as_it_is():
    tree = {"bias": drawn(50), "thin": drawn(100, 4), "conv": drawn(32, 16, 3, 3)}
    for key in ("svd", "powersgd"):
        codec = make(key, {"rank": 4})
        sent, meta = codec.encode(tree, generator("x"), {})
        assert set(sent) == {f"{key}.factors", "bias", "thin"}
        assert len(sent[f"{key}.factors"]) == 4 * (32 + 144)
        assert codec.decode(sent, meta)["conv"].shape == (32, 16, 3, 3)


def test_powersgd_comes_to_the_best_of_its_rank_and_only_by_remembering():
    x = drawn(80, 60) @ torch.diag(0.8 ** torch.arange(60.0))
    best = float(torch.linalg.svdvals(x)[4:].square().sum().sqrt())
    ratios = {}
    for warm in (True, False):
        state: dict = {}
        for step in range(15):
            out, nbytes = through(make("powersgd", {"rank": 4}), x, generator("power", step), state if warm else {})
            ratios[warm, step] = float((x - out).norm()) / best
    assert ratios[True, 0] > 1.05
    assert ratios[True, 14] < 1.002
    assert min(ratios[False, step] for step in range(15)) > 1.02
    assert nbytes == 4 * 4 * (80 + 60)


def test_powersgd_is_linear_in_its_first_factor():
    """What makes it fit for sums: ``mean(M_k) Q = mean(M_k Q)``."""
    matrices, q = [drawn(20, 10, seed=n) for n in range(3)], drawn(10, 2, seed=9)
    together = torch.stack(matrices).mean(0) @ q
    assert torch.allclose(together, torch.stack([m @ q for m in matrices]).mean(0), atol=1e-5)


# -- without loss ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5])
def test_masks_take_the_bits_of_their_entropy(share):
    codec, size = make("mask"), 300_000
    mask = torch.rand(size, generator=generator("mask", str(share))) < share
    out, nbytes = through(codec, mask)
    assert torch.equal(out, mask)
    p = float(mask.double().mean())
    entropy = -(p * math.log2(p) + (1 - p) * math.log2(1 - p)) * size / 8
    assert nbytes - 8 <= min(entropy * 1.02, size / 8)


def test_constant_masks_take_nothing_and_others_go_as_they_are():
    tree = {"all": torch.ones(1000, dtype=torch.bool), "none": torch.zeros(70, dtype=torch.bool), "x": drawn(3)}
    codec = make("mask")
    sent, meta = codec.encode(tree, generator("x"), {})
    assert len(sent["mask.bits"]) == 0
    out = codec.decode(sent, meta)
    assert all(torch.equal(out[name], tree[name]) for name in tree)


def test_zstd_finds_what_repeats_and_never_adds_more_than_a_byte_and_the_sizes():
    rows, nbytes = through(make("zstd"), torch.zeros(1000, 10))
    assert nbytes < 100
    assert rows.shape == (1000, 10)
    noise = torch.randint(256, (5000,), generator=generator("noise"), dtype=torch.uint8)
    out, nbytes = through(make("zstd"), noise)
    assert torch.equal(out, noise)
    assert nbytes == 5000 + 8 + 1
    x = drawn(20_000) * 1e-3
    assert through(make("zstd"), x)[1] < 0.95 * 80_000  # signs and exponents, in planes


def test_a_frame_that_declares_too_much_is_refused_before_anything_is_allocated():
    import zstandard

    chain = Chain((make("zstd"),))
    sent = chain.encode(Payload({"delta": {"x": drawn(100)}}), generator("x"), {})
    bomb = zstandard.ZstdCompressor().compress(bytes(50 << 20))
    sent.parts["delta"] = {"zstd.data": torch.from_numpy(np.frombuffer(b"\1" + bomb, dtype=np.uint8)[:400].copy())}
    with pytest.raises(ProtocolError, match="a frame of 52428800 bytes where at most 408 belong"):
        chain.decode(sent)
