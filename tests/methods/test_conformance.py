"""Listed means tested: every method of the catalogue, in all its variants, keeps every property of the kit."""

from functools import cache

import pytest
import torch

from fedge.methods.make import make
from fedge.methods.table import BUILT
from fedge.testing.case import Case
from fedge.testing.kit import PROPERTIES, check_property, settings_of
from fedge.testing.tiny import tiny

pytestmark = pytest.mark.kit


@cache
def case(key, setting):
    torch.set_num_threads(1)
    return Case.of(make(key), tiny(setting))


def places():
    """Each method on each setting; its properties share rounds, so they stay in one process (``--dist loadgroup``)."""
    found = [(key, setting) for key in BUILT for setting in settings_of(make(key))]
    return [pytest.param(*place, marks=pytest.mark.xdist_group("-".join(place))) for place in found]


@pytest.mark.parametrize(("key", "setting"), places())
@pytest.mark.parametrize("property", PROPERTIES)
def test_a_listed_method_conforms(key, setting, property):
    check_property(property, case(key, setting))
