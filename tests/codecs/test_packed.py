"""The mask codec over bits that a method has packed itself: the same bits, and nearly the same bytes, as over bools."""

import pytest
import torch

from fedge.codecs.mask import Mask
from fedge.core.rng import generator
from fedge.models import mask as masks


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 1.0])
def test_packed_bits_are_coded_like_bools(share):
    mask = torch.rand(64, 125, generator=generator("packed", str(share))) < share
    packed = {"w": masks.pack(mask), "table": torch.arange(4)}
    coded, meta = Mask().encode(dict(packed), generator("codec"), {})
    plain, _ = Mask().encode({"w": mask, "table": torch.arange(4)}, generator("codec"), {})
    size, other = (sum(t.numel() * t.element_size() for t in tree.values()) for tree in (coded, plain))
    assert abs(size - other) <= 8
    found = Mask().decode(coded, meta)
    assert all(torch.equal(found[name], tensor) for name, tensor in packed.items())
    assert torch.equal(masks.unpack(found["w"], mask.shape), mask)
    outlined, foretold = Mask().outline({n: t.to("meta") for n, t in packed.items()})
    assert foretold == meta
    assert outlined["table"].shape == (4,)
