"""What holds for every codec, whoever wrote it: ``check_codec`` runs it all, in one process and without a test runner.

Everything goes through a chain of the one codec, and through real payload bytes, as it does between device and server.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import FrozenInstanceError, fields

import torch
from torch import Tensor

from fedge.codecs.chain import Chain
from fedge.codecs.codec import Codec, floats, legal, total
from fedge.codecs.make import describe, make, revive
from fedge.core.method import State
from fedge.core.payload import Payload, Tree
from fedge.core.rng import generator
from fedge.errors import FedgeError, ProtocolError
from fedge.run.states import flatten
from fedge.run.states import revive as restored

#: Draws by which an unbiased codec's mean is taken, and messages after which error feedback is added up.
DRAWS, MESSAGES = 400, 20


def check_codec(codec: Codec | str) -> None:
    """Hold a codec (a value, a key of the table, or ``module:name``) to the interface's rules.

    Raises AssertionError, in a sentence, for the first rule that is broken; ConfigError for one that can't be made.
    """
    made = make(codec) if isinstance(codec, str) else codec
    assert isinstance(made, Codec), f"{type(made).__name__} is not of the codecs' interface, fedge.codecs.codec.Codec"
    with _naming(made, "its description"):
        _described(made)
    for role in made.touches:
        for name, tree in _trees(role).items():
            with _naming(made, f"{role}, {name}"):
                _one_message(made, role, tree)
    role = made.touches[0]
    tree = _trees(role)["several tensors"]
    for check in (_numbers_that_are_not_finite, _saved_and_taken_up, _mean, _feedback, _damage, _other_shapes):
        with _naming(made, check.__name__.strip("_").replace("_", " ")):
            check(made, role, tree)


@contextmanager
def _naming(codec: Codec, where: str) -> Iterator[None]:
    try:
        yield
    except (AssertionError, FedgeError, TypeError) as error:
        raise AssertionError(f"{codec}: {where}: {error}") from error


def _described(codec: Codec) -> None:
    legal(type(codec))
    assert codec.key, "it has no key"
    assert codec.summary, "it has no summary"
    assert codec.paper, "it names no paper or standard"
    assert set(codec.touches) <= set(codec.roles), "it touches more roles than it may"
    plain = json.loads(json.dumps(describe(Chain((codec,)))))
    assert revive(plain).codecs == (codec,), "it isn't the same after a journey as JSON"
    try:
        setattr(codec, fields(codec)[0].name, None)
    except FrozenInstanceError:
        return
    raise AssertionError("its fields can be changed; make it a frozen dataclass")


def _one_message(codec: Codec, role: str, tree: Tree) -> None:
    """Round trip, determinism, what is promised of sizes, and what is promised of the numbers."""
    chain, before = Chain((codec,)), {name: tensor.clone() for name, tensor in tree.items()}
    payload = Payload({role: tree}, 3.0, {"seen": 1})
    outlined = chain.outline(payload)
    sent, again = (_encoded(chain, payload).to_bytes() for _ in range(2))
    assert sent == again, "the same message and the same random numbers give other bytes"
    assert all(torch.equal(tensor, before[name]) for name, tensor in tree.items()), "encode changes what it is given"
    wire = Payload.from_bytes(sent)
    predicted = outlined.nbytes + outlined.header_bytes
    if codec.fixed:
        assert predicted == len(sent), f"{predicted} bytes predicted, {len(sent)} sent"
    else:
        assert len(sent) <= predicted, f"at most {predicted} bytes predicted, {len(sent)} sent"
    for name, tensor in wire[role].items():
        assert name in outlined[role], f"it sends '{name}', which outline does not know"
        assert tensor.dtype == outlined[role][name].dtype, f"'{name}' is of another type than outlined"
    read = chain.decode(wire)
    assert (read.weight, read.meta) == (3.0, {"seen": 1}), "weight or meta of the payload are lost"
    assert list(read[role]) == list(tree), "the tensors come back under other names or in another order"
    for name, tensor in tree.items():
        back = read[role][name]
        assert (back.shape, back.dtype) == (tensor.shape, tensor.dtype), f"'{name}' comes back in another form"
        if codec.lossless or not tensor.is_floating_point():
            assert torch.equal(back, tensor), f"'{name}' comes back with other numbers"
        assert not tensor.is_floating_point() or bool(back.isfinite().all()), f"'{name}' comes back not finite"


def _numbers_that_are_not_finite(codec: Codec, role: str, tree: Tree) -> None:
    if role == "mask":
        return
    bad = {**tree, "matrix": tree["matrix"].clone().fill_(math.nan)}
    state: State = {}
    sent = Chain((codec,)).encode(Payload({role: bad}), generator("kit"), state)
    assert sent[role] is bad, "a message that isn't finite must go as it is, so that the server can refuse it by name"
    assert not state, "a message that isn't finite leaves something in the state"


def _saved_and_taken_up(codec: Codec, role: str, tree: Tree) -> None:
    """What a device keeps can be saved, and goes on after as if nothing had happened."""
    chain, state = Chain((codec,)), {}
    _encoded(chain, Payload({role: tree}), state)
    saved = restored(*flatten(state))
    next_ones = [_encoded(chain, Payload({role: tree}), each, "next").to_bytes() for each in (state, saved)]
    assert next_ones[0] == next_ones[1], "a state that was saved and loaded gives another message"


def _mean(codec: Codec, role: str, tree: Tree) -> None:
    """``‖mean of N − x‖² ≤ 16 ω ‖x‖² / N``: within four standard errors, by the variance that the codec states."""
    bound = codec.variance(tree)
    mine = floats(tree)
    if bound is None or not mine:
        return
    chain, sums, spread = Chain((codec,)), {name: torch.zeros_like(t) for name, t in mine.items()}, 0.0
    for draw in range(DRAWS):
        read = chain.decode(_encoded(chain, Payload({role: tree}), {}, str(draw)))
        for name in mine:
            sums[name] += read[role][name]
            spread += float((read[role][name] - tree[name]).square().sum())
    size = _square(mine)
    off = _square({name: sums[name] / DRAWS - mine[name] for name in mine})
    assert off <= 16 * bound * size / DRAWS + 1e-9 * size, f"biased: the mean of {DRAWS} is off by {off:g} of {size:g}"
    assert spread / DRAWS <= bound * size * 1.2 + 1e-9 * size, f"its variance is more than {bound:g} times the square"


def _feedback(codec: Codec, role: str, tree: Tree) -> None:
    """With error feedback ``Σ sent + residual = Σ changes``, and the residual does not grow beyond all bounds."""
    chain = Chain((codec,))
    if not chain.feeds_back(role):
        return
    state: State = {}
    given = {name: torch.zeros_like(t, dtype=torch.float64) for name, t in floats(tree).items()}
    sums = {name: tensor.clone() for name, tensor in given.items()}
    for message in range(MESSAGES):
        drawn = generator("kit", "message", message)
        change = {
            n: torch.randn(t.numel(), generator=drawn).reshape(t.shape).to(t.dtype) if n in given else t
            for n, t in tree.items()
        }
        read = chain.decode(_encoded(chain, Payload({role: change}), state, str(message)))
        for name in given:
            given[name] += change[name]
            sums[name] += read[role][name]
    kept = dict(zip(tree, (state[role]["residual"].get(str(n)) for n in range(len(tree))), strict=True))
    off = _square({name: sums[name] + kept[name] - given[name] for name in given})
    assert off <= 1e-10 * _square(given), "what was sent and what was kept are not what was given"
    assert _square({n: kept[n] for n in given}) < 400 * MESSAGES * total(given), "what is kept grows without bounds"


def _damage(codec: Codec, role: str, tree: Tree) -> None:
    """Bytes that were cut or changed are refused as a ProtocolError, or decode to tensors of the right form."""
    chain = Chain((codec,))
    sent = _encoded(chain, Payload({role: tree})).to_bytes()
    drawn = generator("kit", "damage")
    for trial in range(200):
        bad = bytearray(sent)
        if trial % 4 == 0:
            del bad[int(torch.randint(len(bad), (1,), generator=drawn)) :]
        for _ in range(1 + trial % 3):
            if bad:
                at = int(torch.randint(len(bad), (1,), generator=drawn))
                bad[at] ^= 1 << int(torch.randint(8, (1,), generator=drawn))
        _refused_or_formed(chain, role, bad)
    data = Payload.from_bytes(sent)
    for name, tensor in data[role].items():
        for wrong in (tensor[:0], torch.cat([tensor.reshape(-1)] * 2), torch.full_like(tensor, _extreme(tensor))):
            _refused_or_formed(chain, role, Payload({role: {**data[role], name: wrong}}, 1.0, data.meta).to_bytes())
    missing = Payload({role: dict(list(data[role].items())[1:])}, 1.0, data.meta).to_bytes()
    _refused_or_formed(chain, role, missing)


def _refused_or_formed(chain: Chain, role: str, data: bytes | bytearray) -> None:
    try:
        read = chain.decode(Payload.from_bytes(data), 1 << 20)
    except ProtocolError:
        return
    assert sum(t.numel() for t in read[role].values()) <= 1 << 20, "more comes out than the limit allows"


def _other_shapes(codec: Codec, role: str, tree: Tree) -> None:
    """A device whose model has changed its shape starts anew."""
    chain = Chain((codec,))
    state: State = {}
    _encoded(chain, Payload({role: tree}), state)
    smaller = {"other": tree["matrix"][:3].clone()}
    with_old = _encoded(chain, Payload({role: smaller}), state).to_bytes()
    fresh = _encoded(chain, Payload({role: smaller}), {}).to_bytes()
    assert with_old == fresh, "what was kept for one model is added to another"


def _encoded(chain: Chain, payload: Payload, state: State | None = None, purpose: str = "") -> Payload:
    return chain.encode(payload, generator("kit", purpose), {} if state is None else state)


def _square(tree: Tree) -> float:
    return sum(float(tensor.double().square().sum()) for tensor in tree.values())


def _extreme(tensor: Tensor) -> float:
    if tensor.is_floating_point():
        return math.inf
    return 1 if tensor.dtype == torch.bool else torch.iinfo(tensor.dtype).max


def _trees(role: str) -> dict[str, Tree]:
    """Trees of tensors of every kind that a role may hold."""
    drawn = generator("kit", role)

    def numbers(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        flat = torch.randn(math.prod(shape), generator=drawn).reshape(shape)
        return flat > 1.3 if role == "mask" else flat.to(dtype)

    several = {
        "block.0.weight": numbers(24, 40),
        "matrix": numbers(16, 9) * (1 if role == "mask" else 100),
        "conv": numbers(4, 3, 3, 3),
        "bias": numbers(17),
        "one": numbers(1),
        "counts": torch.arange(7),
    }
    return {
        "several tensors": several,
        "one number": {"x": numbers()},
        "zeros": {name: torch.zeros_like(tensor) for name, tensor in several.items()},
        "tensors of nothing": {"none": numbers(0), "flat": numbers(3, 0), "some": numbers(5)},
        "other types": {
            "double": numbers(6, 20, dtype=torch.float64),
            "half": numbers(30, dtype=torch.float16),
            "brain": numbers(8, 8, dtype=torch.bfloat16),
        },
        "whole numbers alone": {"counts": torch.arange(9), "small": torch.arange(5, dtype=torch.int8)},
        "large and small": {"large": numbers(40) * (1 if role == "mask" else 1e30), "small": numbers(40) * 1},
    }
