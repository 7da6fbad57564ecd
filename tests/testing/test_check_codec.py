"""The codecs' kit: every codec of the table passes, and for each rule there is a codec that breaks it and is caught."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from fedge.codecs.codec import Codec, blank, blanks, floats, listed, rest
from fedge.codecs.int8 import Int8
from fedge.codecs.randomk import RandomK
from fedge.codecs.table import BUILT
from fedge.codecs.zstd import Zstd
from fedge.errors import ConfigError
from fedge.testing import check_codec


@pytest.mark.parametrize("key", BUILT)
def test_every_codec_of_the_table(key):
    check_codec(key)


@pytest.mark.parametrize(
    ("key", "options"),
    [
        ("topk", {"fraction": 1.0, "scope": "tree"}),
        ("topk", {"fraction": 0.001, "feedback": False}),
        ("randomk", {"fraction": 0.3, "feedback": True}),
        ("qsgd", {"levels": 1, "bucket": 7}),
        ("int8", {"block": 1, "only": ("logits",)}),
        ("int4", {"block": 100}),
        ("nnadq", {"beta": 1e-6, "most": 4}),
        ("zsign", {"sigma": 0.5, "noise": "normal"}),
        ("ternary", {"scale": "std", "alpha": 2.0, "feedback": False}),
        ("svd", {"rank": 1, "feedback": False}),
        ("powersgd", {"rank": 8}),
        ("zstd", {"level": 19}),
    ],
)
def test_other_numbers_than_the_usual(key, options):
    from fedge.codecs.make import make

    check_codec(make(key, options))


@dataclass(frozen=True, kw_only=True)
class Half(Codec):
    """A codec as CONTRIBUTING.md shows one."""

    key: ClassVar[str] = "half"
    roles: ClassVar[tuple[str, ...]] = ("delta",)
    steps: ClassVar[tuple[str, ...]] = ("quantise",)
    summary: ClassVar[str] = "half precision"
    paper: ClassVar[str] = "IEEE 754"

    def encode(self, tree, rng, state):
        mine = floats(tree)
        return {name: t.half().clamp(-6e4, 6e4) if name in mine else t for name, t in tree.items()}, {
            "of": listed(tree)
        }

    def decode(self, tree, meta):
        return {name: tree[name].to(like.dtype) for name, like in blanks(meta["of"]).items()}

    def outline(self, tree):
        halves = {name: blank(torch.float16, *t.shape) for name, t in floats(tree).items()}
        return {name: halves.get(name, t) for name, t in tree.items()}, {"of": listed(tree)}


def test_a_codec_of_one_s_own_by_its_name():
    check_codec(f"{__name__}:Half")
    with pytest.raises(ConfigError, match="not a fedge codec"):
        check_codec("builtins:dict")


@dataclass(frozen=True, kw_only=True)
class Writes(Int8):
    def encode(self, tree, rng, state):
        out = super().encode(tree, rng, state)
        for tensor in floats(tree).values():
            tensor.zero_()
        return out


@dataclass(frozen=True, kw_only=True)
class Guesses(Int8):
    def outline(self, tree):
        made, meta = super().outline(tree)
        return {**made, "int8.scales": blank(torch.float32, 1)}, meta


@dataclass(frozen=True, kw_only=True)
class Chance(Int8):
    def encode(self, tree, rng, state):
        sent, meta = super().encode(tree, rng, state)
        return {**sent, "int8.scales": sent["int8.scales"] * (1 + torch.rand(()) / 100)}, meta


@dataclass(frozen=True, kw_only=True)
class Exact(Int8):
    lossless: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class Honest(Int8):
    def variance(self, tree):
        return 1e-9


@dataclass(frozen=True, kw_only=True)
class Forgets(Int8):
    def decode(self, tree, meta):
        return {name: tensor for name, tensor in super().decode(tree, meta).items() if name != "0"}


@dataclass(frozen=True, kw_only=True)
class Grows(RandomK):
    """Error feedback around a codec that is no contraction."""

    feedback: bool = True

    def encode(self, tree, rng, state):
        return RandomK(fraction=self.fraction).encode(tree, rng, state)


@dataclass(frozen=True, kw_only=True)
class Endless(Zstd):
    """Takes as many numbers as it is told to."""

    def decode(self, tree, meta):
        out = super().decode(tree, meta)
        return {name: torch.cat([t.reshape(-1), t.reshape(-1)]) for name, t in out.items()}


@dataclass(frozen=True, kw_only=True)
class Secret(Int8):
    roles: ClassVar[tuple[str, ...]] = ("delta", "keys")


@dataclass(frozen=True, kw_only=True)
class Wanders(Int8):
    steps: ClassVar[tuple[str, ...]] = ("sometimes",)


@dataclass(frozen=True, kw_only=True)
class Remembers(Half):
    def encode(self, tree, rng, state):
        state["seen"] = {torch.Size([1])}
        return super().encode(tree, rng, state)


@dataclass(frozen=True, kw_only=True)
class Drops(Half):
    def encode(self, tree, rng, state):
        mine = floats(tree)
        return rest(tree, mine), {"of": listed(tree)}


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (Writes, "encode changes what it is given|other bytes"),
        (Guesses, "bytes predicted"),
        (Chance, "give other bytes"),
        (Exact, "comes back with other numbers"),
        (Honest, "biased|its variance is more"),
        (Forgets, "can't be decoded"),
        (Grows, "grows without bounds|are not what was given"),
        (Endless, "can't be decoded"),
        (Secret, "roles: keys"),
        (Wanders, "steps: sometimes"),
        (Remembers, "a state holds a set"),
        (Drops, "bytes predicted"),
    ],
)
def test_what_breaks_a_rule_is_caught(broken, said):
    with pytest.raises(Exception, match=said):
        check_codec(broken())


def test_a_codec_whose_fields_change_is_caught():
    @dataclass(kw_only=True)
    class Loose:
        pass

    with pytest.raises(AssertionError, match="interface"):
        check_codec(Loose())
