"""A remembered operation gives what torch's own fake mode gives: shapes, strides, types, aliases."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from fedge.plan.fake import RememberingMode


def _work():
    """Operations of all kinds: new, viewing, in place, several outputs, lists, numbers of several types."""
    x = torch.empty(4, 6)
    yield from (x + 1, x + 1.0, x * True, x.t(), x[1:, ::2], x.view(2, 12), x.t().contiguous(), x.double(), x.detach())
    yield from x.split(2)
    yield from torch.native_layer_norm(x, [6], None, None, 1e-5)
    yield from x.max(dim=1)
    yield torch.cat([x, x])
    yield torch.cat([x, x, x])
    y = torch.empty(4, 6)
    yield y.add_(x)
    yield y.transpose_(0, 1)
    yield y + 1
    yield torch.randn(3, generator=torch.Generator())
    yield nn.functional.scaled_dot_product_attention(*(torch.empty(2, 4, 8, 16) for _ in range(3)))
    linear = nn.Linear(6, 3)
    loss = nn.functional.cross_entropy(linear(x), torch.zeros(4, dtype=torch.long))
    loss.backward()
    yield from (linear.weight.grad, linear.bias.grad, loss)


def _seen(mode):
    with mode:
        found = list(_work())
        places = [t.untyped_storage()._cdata for t in found]
        shares = [[i for i, other in enumerate(places) if other == place] for place in places]
        return [
            (
                tuple(t.shape),
                t.stride(),
                t.dtype,
                t.storage_offset(),
                t.untyped_storage().nbytes(),
                str(t.device),
                alike,
            )
            for t, alike in zip(found, shares, strict=True)
        ]


def test_what_is_remembered_is_what_was():
    expected = _seen(FakeTensorMode())
    assert _seen(RememberingMode()) == expected
    assert _seen(RememberingMode()) == expected  # now from memory


def test_what_depends_on_numbers_is_still_refused():
    for _ in range(2):
        with RememberingMode(), pytest.raises(DataDependentOutputException):
            float(torch.empty(3).sum())


def test_numbers_that_are_known_stay_known():
    for _ in range(2):
        with RememberingMode():
            assert torch.tensor(3.0).item() == 3.0
            assert torch.tensor(4.0).item() == 4.0
