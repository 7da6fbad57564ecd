"""Counted work and memory against what can be worked out by hand, on real and on fake tensors."""

import gc

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

from fedge.meter.work import Counter, Work


@pytest.fixture(params=[False, True], ids=["real", "fake"])
def fake(request):
    if not request.param:
        yield False
        return
    with FakeTensorMode():
        yield True


def test_a_product_of_matrices(fake):
    a, b = torch.empty(4, 8), torch.empty(8, 16)
    with Counter() as counter:
        out = a @ b
    assert counter.flops == 2 * 4 * 8 * 16
    assert counter.traffic == 4 * (a.numel() + b.numel() + out.numel())
    assert counter.ops == 1


def test_views_move_nothing(fake):
    a = torch.empty(4, 8)
    with Counter(memory=True) as counter:
        a.T.reshape(8, 4)[2:]
    assert counter.traffic == 0 or counter.peak == 4 * 32  # reshape of a transposed matrix copies it
    with Counter(memory=True) as counter:
        a.view(32)[3:].unsqueeze(0).detach()
    assert (counter.traffic, counter.flops, counter.live) == (0, 0, 0)


def test_what_lives_and_what_is_gone(fake):
    with Counter(memory=True) as counter:
        a = torch.empty(1000)
        b = a + 1
        assert counter.live == 8000
        del b
        c = a * 2
        assert (counter.live, counter.peak) == (8000, 8000)
        d = c.view(10, 100)
        del a, c
        assert counter.live == 4000
        d += 1
    del d
    gc.collect()
    assert counter.live == 0
    assert counter.peak == 8000


def test_the_frozen_base_is_not_counted_and_what_is_held_is(fake):
    base, other = torch.empty(100), torch.empty(50)
    counter = Counter(memory=True, known=[base])
    counter.hold(base)
    counter.hold(other)
    counter.hold(other[3:])
    assert counter.live == 200
    with counter:
        base.view(10, 10).add_(1)
    assert counter.live == 200
    counter.bump(77)
    assert counter.peak == 277


@pytest.mark.parametrize("backward", [False, True])
def test_attention_is_counted_as_its_products(fake, backward):
    shape = (2, 4, 16, 8)
    q, k, v = (torch.empty(shape).requires_grad_(backward) for _ in range(3))
    with Counter() as counter:
        out = functional.scaled_dot_product_attention(q, k, v)
        if backward:
            torch.autograd.grad(out, (q, k, v), torch.empty(shape))
    product = 2 * 2 * 4 * 16 * 16 * 8
    assert counter.flops == product * (2 + (5 if backward else 0))


@pytest.mark.parametrize(
    ("groups", "kernel", "kinds"),
    [(1, 3, ("conv", "conv_backward")), (1, 1, ("pointwise", "conv_backward")), (8, 3, ("depthwise", "depthwise"))],
)
def test_convolutions_are_counted_by_family(fake, groups, kernel, kinds):
    layer = nn.Conv2d(8, 8, kernel, padding=kernel // 2, groups=groups, bias=False)
    x = torch.empty(2, 8, 5, 5).requires_grad_(True)
    with Counter() as counter:
        out = layer(x)
    once = 2 * 2 * 25 * 8 * (8 // groups) * kernel**2
    assert (counter.flops, counter.work.shares) == (once, {kinds[0]: 1.0})
    with Counter() as counter:
        torch.autograd.grad(out, (x, layer.weight), torch.empty(out.shape))
    assert (counter.flops, counter.work.shares) == (2 * once, {kinds[1]: 1.0})


def test_a_fused_recurrent_layer_is_counted(fake):
    layer = nn.LSTM(6, 4, batch_first=True)
    with Counter() as counter:
        out = layer(torch.empty(3, 7, 6))[0]
    gates = 2 * 3 * 7 * (4 * 4) * (6 + 4)
    assert counter.flops == gates
    with Counter() as counter:
        torch.autograd.grad(out, tuple(layer.parameters()), torch.empty(out.shape))
    assert counter.flops == 2 * gates
    assert counter.work.shares == {"recurrent": 1.0}


def test_work_adds_up():
    work = Work(1, 2, 3) + Work(4, 5, 6) * 2 - Work(1, 1, 1)
    assert work == Work(8, 11, 14)
