"""Payload bytes are safetensors files, in both directions, and no bytes at all do worse than raise ProtocolError."""

import contextlib
import json

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedge.core.payload import DTYPES, Payload, pack, unpack
from fedge.errors import ProtocolError


def some(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    drawn = torch.randint(0, 2 if dtype == torch.bool else 100, shape, generator=torch.Generator().manual_seed(1))
    return drawn.to(dtype)


def everything() -> dict[str, torch.Tensor]:
    tensors = {f"t.{name}": some(dtype, 3, 5) for name, dtype in DTYPES.items()}
    return tensors | {
        "scalar": torch.tensor(2.5),
        "byte": torch.tensor(7, dtype=torch.uint8),
        "empty": torch.zeros(0, 4),
        "empty.bf16": torch.zeros(2, 0, dtype=torch.bfloat16),
        "ümläut / and a slash": some(torch.float32, 2),
        "odd": some(torch.uint8, 7),
        "transposed": some(torch.float32, 4, 6).T,
    }


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[n].dtype == b[n].dtype and torch.equal(a[n], b[n]) for n in a)


def test_the_library_reads_what_is_written():
    tensors = everything()
    assert same(safetensors.torch.load(bytes(pack(tensors, {"a": "b"}))), tensors)
    assert same(safetensors.torch.load(bytes(pack({}))), {})


def test_what_the_library_writes_is_read():
    tensors = {name: tensor.contiguous() for name, tensor in everything().items()}
    read, metadata = unpack(bytearray(safetensors.torch.save(tensors, {"a": "b"})))
    assert same(read, tensors)
    assert metadata == {"a": "b"}


def test_a_payload_survives_and_its_size_is_known_before():
    payload = Payload({"weights": everything(), "logits": {}}, weight=12, meta={"b": [1, None], "a": "ü"})
    data = payload.to_bytes()
    assert len(data) == payload.header_bytes + payload.nbytes
    read = Payload.from_bytes(data)
    assert same(read["weights"], payload["weights"])
    assert (read.weight, read.meta, list(read.parts), read["delta"]) == (12, payload.meta, ["weights", "logits"], {})


def test_the_header_is_counted_without_data():
    parts = {"delta": {"x": torch.zeros(3, 4)}, "mask": {"y": torch.zeros(9, dtype=torch.bool)}}
    bare = {role: {n: t.to("meta") for n, t in tree.items()} for role, tree in parts.items()}
    assert Payload(bare, 3.5).header_bytes == Payload(parts, 3.5).header_bytes
    assert Payload(bare).nbytes == 3 * 4 * 4 + 9


def test_tensors_are_views_of_what_came():
    data = Payload({"weights": {"w": torch.zeros(4)}}).to_bytes()
    view = Payload.from_bytes(data)["weights"]["w"]
    data[-4:] = torch.ones(1).numpy().tobytes()
    assert view.tolist() == [0, 0, 0, 1]


def test_read_only_bytes_are_never_written():
    data = bytes(Payload({"weights": {"w": torch.zeros(4)}}).to_bytes())
    before = bytes(bytearray(data))
    Payload.from_bytes(data)["weights"]["w"].fill_(1)
    assert data == before


def test_a_role_that_is_none_is_refused():
    with pytest.raises(ValueError, match="not a role"):
        Payload({"secrets": {}})


def framed(header: object, data: bytes = b"") -> bytearray:
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    return bytearray(len(text).to_bytes(8, "little") + text + data)


ENTRY = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"1234567",
        (1 << 60).to_bytes(8, "little"),
        framed("not json"),
        framed("[1, 2]"),
        framed("3"),
        framed("[" * 100_000),
        framed({"__metadata__": None}),
        framed({"x": 3}),
        framed({"x": {**ENTRY, "dtype": "C64"}}, b"0000"),
        framed({"x": ENTRY}, b"000"),
        framed({"x": {**ENTRY, "shape": [-1]}}, b"0000"),
        framed({"x": {**ENTRY, "shape": [-1, -1]}}, b"0000"),
        framed({"x": {**ENTRY, "shape": [2]}}, b"0000"),
        framed({"x": {**ENTRY, "data_offsets": [4, 8]}}, b"0000"),
        framed({"x": {**ENTRY, "data_offsets": [-4, 0]}}, b"0000"),
        framed({"x": {**ENTRY, "data_offsets": [0, 0], "shape": [0, 1 << 62, 1 << 62]}}),
        framed({"x": {**ENTRY, "data_offsets": [0, 0], "shape": [0, 1 << 90]}}),
        framed({"x": {**ENTRY, "shape": ["9" * 5000]}}, b"0000"),
        framed({"x": {**ENTRY, "shape": [float("inf")]}}, b"0000"),
        framed({"x": {**ENTRY, "shape": 1}}, b"0000"),
        framed({"x": {**ENTRY, "data_offsets": [0, 4, 8]}}, b"0000"),
    ],
)
def test_malformed_files_are_protocol_errors(data):
    with pytest.raises(ProtocolError):
        unpack(data)


@pytest.mark.parametrize(
    "about",
    [
        {},
        {"weight": "heavy", "meta": {}, "roles": []},
        {"weight": float("nan"), "meta": {}, "roles": []},
        {"weight": 10**400, "meta": {}, "roles": []},
        {"weight": -1, "meta": {}, "roles": []},
        {"weight": 1, "meta": 3, "roles": []},
        {"weight": 1, "meta": {}, "roles": ["secrets"]},
        {"weight": 1, "meta": {}, "roles": [["weights"]]},
        {"weight": 1, "meta": {}, "roles": []},
        [],
    ],
)
def test_descriptions_that_make_no_payload_are_protocol_errors(about):
    data = pack({"weights/w": torch.zeros(1)}, {"fedge": json.dumps(about)})
    with pytest.raises(ProtocolError):
        Payload.from_bytes(data)


GOOD = bytes(Payload({"delta": {"a": torch.zeros(3), "b": torch.zeros(2, 2).bfloat16()}}, meta={"x": 1}).to_bytes())


def comes_through(payload):
    """What was accepted is whole: it packs again to the same tensors."""
    again = Payload.from_bytes(payload.to_bytes())
    assert {role: list(tree) for role, tree in again.parts.items()} == {
        role: sorted(tree, key=lambda name: (-tree[name].element_size(), f"{role}/{name}"))
        for role, tree in payload.parts.items()
    }
    for role, tree in payload.parts.items():
        for name, tensor in tree.items():
            assert torch.equal(again[role][name].view(torch.uint8), tensor.contiguous().view(torch.uint8))
    assert (again.weight, again.meta) == (payload.weight, payload.meta)


@settings(max_examples=400, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_give_a_payload_or_a_protocol_error(data):
    with contextlib.suppress(ProtocolError):
        comes_through(Payload.from_bytes(bytearray(data)))


@settings(max_examples=600, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), max_size=6), st.integers(0, len(GOOD)))
def test_damaged_payloads_give_a_payload_or_a_protocol_error(changes, length):
    data = bytearray(GOOD)
    for at, value in changes:
        data[at] = value
    for damaged in (data, data[:length]):
        with contextlib.suppress(ProtocolError):
            comes_through(Payload.from_bytes(damaged))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just("F32") | st.just("BOOL"),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
ENTRIES = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "BF16", "BOOL", "F64"]) | VALUES,
        "shape": st.lists(st.integers(-(2**65), 2**65) | st.integers(0, 4), max_size=5) | VALUES,
        "data_offsets": st.lists(st.integers(-(2**65), 2**65) | st.integers(0, 20), max_size=3) | VALUES,
    },
)


@settings(max_examples=600, deadline=None)
@given(st.dictionaries(st.text(max_size=3) | st.just("__metadata__"), ENTRIES | VALUES, max_size=3))
def test_any_header_gives_tensors_or_a_protocol_error(header):
    with contextlib.suppress(ProtocolError):
        tensors, _ = unpack(framed(header, bytes(20)))
        assert all(tensor.untyped_storage().nbytes() <= len(framed(header, bytes(20))) for tensor in tensors.values())
        assert all(not tensor.to(torch.float64).abs().sum() for tensor in tensors.values()), "the bytes were all zero"
