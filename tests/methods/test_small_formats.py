"""FedOBD and OMC: which blocks and matrices travel in which form, to the byte."""

import pytest
import torch

from fedge.codecs import bits
from fedge.codecs.byhand import decoded
from fedge.codecs.minifloat import MiniFloat, fitted
from fedge.methods.customize.fedavg import FedAvg
from fedge.methods.customize.fedobd import FedOBD, blocks, movement, select
from fedge.methods.customize.omc import OMC
from fedge.models.names import tensors
from fedge.testing.codecs import check_codec
from fedge.testing.driver import drive
from tests.methods.conftest import logits, three

SMALL = {"steps": 2, "batch": 4}


# the format ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("e", "m"), [(3, 7), (4, 14), (2, 3), (5, 2)])
def test_every_number_of_the_format_is_its_own_nearest(e, m):
    codec = MiniFloat(exponent=e, mantissa=m)
    codes = torch.arange(1 << (e + m), dtype=torch.int32)
    values = codec.value(codes)
    assert bool((values[1:] > values[:-1]).all())  # the codes are in the order of the numbers
    assert torch.equal(codec.nearest(values), codes)
    assert torch.equal(codec.value(codec.nearest(-values[1:])), -values[1:])
    between = (values[1:] + values[:-1]) / 2
    near = codec.nearest(between)
    assert bool((near % 2 == 0).all()), "ties go to the even one"
    bias = 2 ** (e - 1) - 1
    assert float(values[1]) == 2.0 ** (1 - bias - m)
    assert float(values[-1]) == (2 - 2.0**-m) * 2.0 ** (2**e - 1 - bias)


def test_the_fitted_line_is_least_squares_and_never_hurts():
    v = torch.randn(4000, generator=torch.Generator().manual_seed(1)) * 0.05
    codec = MiniFloat(exponent=2, mantissa=3)
    rounded = codec.value(codec.nearest(v))
    slope, shift = fitted(v, rounded)
    a = torch.stack([rounded, torch.ones(4000)], 1).double()
    expected = torch.linalg.lstsq(a, v.double().unsqueeze(1)).solution.flatten()
    assert torch.allclose(torch.stack([slope, shift]).double(), expected, atol=1e-6)
    assert (rounded * slope + shift - v).norm() <= (rounded - v).norm() + 1e-6
    assert torch.equal(fitted(torch.full((5,), 3.0), torch.zeros(5)), torch.tensor([1.0, 3.0]))


def test_it_is_a_codec_like_others():
    check_codec(MiniFloat())
    check_codec(MiniFloat(exponent=5, mantissa=10, least=0))


# OMC ----------------------------------------------------------------------------------------------------------------


def test_eleven_bits_take_59_per_cent_less():
    assert pytest.approx(0.590625) == 1 - (0.9 * 11 / 32 + 0.1)
    tree = {f"m{n}": torch.randn(200, 300) for n in range(20)}
    method = OMC()
    sent = method.packed(tree, method.exact(tree, torch.Generator().manual_seed(3)))
    assert sent.nbytes == 2 * 60_000 * 4 + 18 * (60_000 * 11 // 8 + 8)
    assert 1 - sent.nbytes / (20 * 60_000 * 4) == pytest.approx(0.5906, abs=0.002)


def test_matrices_travel_rounded_and_the_rest_exactly(vit):
    method = OMC(**SMALL)
    driven = drive(method, vit.model, three(vit), vit.task)
    begun = method.init(driven.server)["weights"]
    matrices = [name for name, tensor in begun.items() if tensor.dim() >= 2]
    exact, total = {}, 0.0
    for device, payloads in driven.sent[0].items():
        read = method.unpacked(payloads[0], begun)
        exact[device] = {list(begun)[at] for at in payloads[0].meta["exact"]}
        assert exact[device] <= set(matrices)
        assert len(exact[device]) == len(matrices) - round(0.9 * len(matrices))
        flat = sum(begun[n].numel() for n in begun if n not in matrices)
        whole = sum(begun[n].numel() for n in exact[device])
        rest = [n for n in matrices if n not in exact[device]]
        coded = sum(bits.nbytes(begun[n].numel(), 11) + 8 for n in rest)
        assert payloads[0].nbytes == 4 * (flat + whole) + coded
        for name in rest:  # what arrives is on a line of few numbers
            assert len(read[name].unique()) <= min(2**11, read[name].numel())
        total += payloads[0].weight
    assert len(set(map(frozenset, exact.values()))) > 1
    reads = [(p[0].weight, method.unpacked(p[0], begun)) for p in driven.sent[0].values()]
    for name, tensor in driven.state["weights"].items():
        mean = sum(weight * read[name].double() for weight, read in reads) / total
        assert torch.allclose(tensor.double(), mean, atol=1e-5), name


def test_wide_enough_numbers_are_fedavg(vit):
    ours = drive(OMC(**SMALL, lr=0.1, exponent=8, mantissa=14), vit.model, three(vit), vit.task, 2)
    plain = drive(FedAvg(**SMALL, optimizer="sgd", lr=0.1), vit.model, three(vit), vit.task, 2)
    for name, tensor in plain.state["weights"].items():
        assert torch.allclose(ours.state["weights"][name], tensor, atol=2e-4), name


# FedOBD -------------------------------------------------------------------------------------------------------------


def test_the_most_important_come_first_within_the_budget():
    sizes = [50, 30, 15, 5]
    assert select([1.0, 3.0, 2.0, 0.5], sizes, drop=0.5) == [1, 2, 3]
    assert select([4.0, 3.0, 2.0, 0.5], sizes, drop=0.5) == [0]
    assert select([4.0, 3.0, 2.0, 0.5], sizes, drop=0.0) == [0, 1, 2, 3]
    assert select([4.0, 3.0, 2.0, 0.5], sizes, drop=0.99) == [0]  # nothing fits, and still something goes on
    for importance in ([1.0, 3.0, 2.0, 0.5], [9.0, 1.0, 5.0, 2.0]):
        chosen = select(importance, sizes, 0.4)
        used = sum(sizes[at] for at in chosen)
        assert used <= 60
        assert all(used + sizes[at] > 60 for at in range(4) if at not in chosen)


def test_importance_is_the_movement_of_a_weight(vit):
    names = [name for name, _ in vit.model.named_parameters()]
    parts = blocks(vit.model, names)
    assert sorted(name for part in parts for name in part) == sorted(names)
    assert len(parts) == 4 + 2
    change = {name: torch.randn(t.shape) for name, t in tensors(vit.model, names).items()}
    found = movement(change, parts)
    for part, value in zip(parts, found, strict=True):
        flat = torch.cat([change[name].flatten() for name in part]).double()
        assert value == pytest.approx(float(flat.norm()) / len(flat))
    double = movement({name: 2 * t for name, t in change.items()}, parts)
    assert double == pytest.approx([2 * value for value in found])


@pytest.mark.parametrize("reading", ["paper", "survey"])
def test_blocks_are_averaged_over_those_who_sent_them(reading, vit):
    method = FedOBD(**SMALL, drop=0.6, reading=reading, lr=1e-2)
    driven = drive(method, vit.model, three(vit), vit.task)
    begun = method.init(driven.server)["weights"]
    parts = blocks(vit.model, begun)
    size = sum(tensor.numel() for tensor in begun.values())
    sums, weights = {}, {}
    for payloads in driven.sent[0].values():
        chosen = payloads[0].meta["blocks"]
        like = {name: begun[name] for at in chosen for name in parts[at]}
        assert 0 < sum(t.numel() for t in like.values()) <= 0.4 * size
        assert payloads[0].nbytes < 0.4 * size * 2  # two bytes a number at most, where four would be exact
        for name, tensor in decoded(method.codec, payloads[0]["delta"], like).items():
            sums[name] = sums.get(name, 0) + payloads[0].weight * tensor.double()
            weights[name] = weights.get(name, 0) + payloads[0].weight
    for name, tensor in driven.state["weights"].items():
        expected = begun[name].double() + (sums[name] / weights[name] if name in sums else 0.0)
        assert torch.allclose(tensor.double(), expected, atol=1e-6)
    assert set(driven.state["changed"]) == set(sums)


def test_in_the_second_phase_nothing_is_dropped(vit):
    method = FedOBD(**SMALL, drop=0.6, second=1)
    driven = drive(method, vit.model, three(vit), vit.task, 2)
    assert all(len(payloads[0].meta["blocks"]) == 6 for payloads in driven.sent[1].values())
    assert all(len(payloads[0].meta["blocks"]) < 6 for payloads in driven.sent[0].values())


def test_with_nothing_dropped_and_fine_levels_it_is_nearly_fedavg(vit):
    numbers = {**SMALL, "lr": 1e-3}
    ours = drive(FedOBD(**numbers, drop=0.0, beta=1e-9), vit.model, three(vit), vit.task)
    plain = drive(FedAvg(**numbers), vit.model, three(vit), vit.task)
    gap = (logits(ours.final(), vit) - logits(plain.final(), vit)).norm()
    assert gap < 0.02 * (logits(plain.final(), vit) - logits(vit.model, vit)).norm()
