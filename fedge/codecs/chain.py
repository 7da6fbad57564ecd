"""A chain of codecs between a device's answer and its bytes: what the device encodes, the server decodes.

The one thing that travels beside the encoded tensors is the list of names, types and shapes that were there before;
from it ``outline`` makes every codec's meta and every tensor's shape anew, for the device's prediction, the planner's
and the server's check. So the server allocates nothing that the list does not promise, and the list is held to a limit.

Error feedback (Seide et al. 2014; Karimireddy et al. 2019, arXiv 1901.09847) is the chain's, not a codec's: where one
codec asks for it, ``x = change + residual`` is encoded and ``residual = x − decode(encode(x))`` is kept on the device,
so what *every* codec of the chain left out comes later: ``Σ sent + residual = Σ changes``.
"""

from __future__ import annotations

import base64
import binascii
import json
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from fedge.codecs.codec import Codec, Meta, blanks, listed
from fedge.core.method import State
from fedge.core.payload import DTYPES, Payload, Tree
from fedge.core.roles import Part, refusal
from fedge.errors import ConfigError, MethodError, ProtocolError

#: The key of a payload's meta under which the encoded roles' tensors are listed.
LIST = "encoded"
#: Bytes of tensors that an answer may decode to, unless the caller knows better.
LIMIT = 4 << 30
_LIST_LIMIT = 4 << 20
_RESIDUAL, _OF = "residual", "of"
#: Name, type and shape of each tensor of a role, as JSON.
Entries = list[list[Any]]


@dataclass(frozen=True)
class Chain:
    """Codecs in the order in which a device applies them; see the module's text. An empty chain does nothing.

    Raises ConfigError for a chain that is not legal.
    """

    codecs: tuple[Codec, ...] = ()

    def __post_init__(self) -> None:
        wrong = refusal([Part(codec.key, codec.touches, codec.steps) for codec in self.codecs])
        if wrong is not None:
            raise ConfigError(f"codec {wrong[0]}: {wrong[1]} ({wrong[2]})")

    def of(self, role: str) -> tuple[Codec, ...]:
        """The codecs that touch a role."""
        return tuple(codec for codec in self.codecs if role in codec.touches)

    def feeds_back(self, role: str) -> bool:
        """Whether what a role's message left out is kept for the next."""
        return any(getattr(codec, "feedback", False) for codec in self.of(role))

    def idle(self, roles: Mapping[str, Any]) -> list[Codec]:
        """Codecs that touch none of the roles."""
        return [codec for codec in self.codecs if not set(codec.touches) & set(roles)]

    def encode(self, payload: Payload, rng: torch.Generator, state: State) -> Payload:
        """The payload as it is sent; ``state`` is this device's, a dict that is changed in place.

        A payload with numbers that are not finite goes as it is, and leaves no trace in the state: the server will
        refuse it by name.
        """
        if not self._touched(payload):
            return payload
        if not all(_finite(payload[role]) for role in self._touched(payload)):
            return payload
        return self._through(payload, lambda role, tree, of: self._encoded(role, tree, of, rng, state))

    def outline(self, payload: Payload) -> Payload:
        """What ``encode`` will give, without data: the same sizes, or for codecs that are not fixed the greatest.

        The payload's tensors need no data either.
        """
        return self._through(payload, lambda role, tree, of: self._outlines(role, tree)[-1][0])

    def decode(self, payload: Payload, limit: int = LIMIT) -> Payload:
        """What the device had encoded. ``limit``: bytes of tensors that it may come to.

        Raises ProtocolError for anything that no ``encode`` of this chain can have given.
        """
        if LIST not in payload.meta:
            return payload
        meta = dict(payload.meta)
        before = _read_list(meta.pop(LIST))
        parts = dict(payload.parts)
        for role, entries in before.items():
            if not self.of(role) or role not in parts:
                raise ProtocolError(f"its answer's list names {role}, which is not encoded")
            limit -= _nbytes(entries, limit)
            parts[role] = self._decoded(role, parts[role], entries)
        return replace(payload, parts=parts, meta=meta)

    # -- one role ----------------------------------------------------------------------------------------------------

    def _touched(self, payload: Payload) -> list[str]:
        return [role for role, tree in payload.parts.items() if tree and self.of(role)]

    def _through(self, payload: Payload, change: Callable[[str, Tree, Entries], Tree]) -> Payload:
        touched = self._touched(payload)
        if not touched:
            return payload
        if LIST in payload.meta:
            raise MethodError(f"its answer's meta has a key '{LIST}', which codecs need")
        before = {role: listed(payload[role]) for role in touched}
        parts = {**payload.parts, **{role: change(role, _numbered(payload[role]), before[role]) for role in touched}}
        return replace(payload, parts=parts, meta={**payload.meta, LIST: _written(before)})

    def _encoded(self, role: str, tree: Tree, of: Entries, rng: torch.Generator, state: State) -> Tree:
        if state.get(role, {}).get(_OF) != of:  # another model, or part of it: what was left out has no place in it
            state[role] = {_OF: of}
        mine = state[role]
        kept: Tree = mine.get(_RESIDUAL, {})
        tree = {name: tensor + kept[name] if name in kept else tensor for name, tensor in tree.items()}
        encoded, metas = tree, []
        for codec in self.of(role):
            encoded, meta = codec.encode(encoded, rng, mine.setdefault(codec.key, {}))
            metas.append((codec, meta))
        if self.feeds_back(role):
            sent = encoded
            for codec, meta in reversed(metas):
                sent = codec.decode(sent, meta)
            mine[_RESIDUAL] = {n: t.sub(sent[n]) for n, t in tree.items() if t.is_floating_point()}
        return encoded

    def _outlines(self, role: str, tree: Tree) -> list[tuple[Tree, Meta]]:
        """What lies before the chain, and after each of its codecs, with that one's meta."""
        found: list[tuple[Tree, Meta]] = [(tree, {})]
        for codec in self.of(role):
            found.append(codec.outline(found[-1][0]))
        return found

    def _decoded(self, role: str, tree: Tree, entries: Entries) -> Tree:
        codecs = self.of(role)
        try:
            outlines = self._outlines(role, _numbered(blanks(entries)))
            fixed = all(codec.fixed for codec in codecs)
            fits(tree, outlines[-1][0], exact=fixed)
            for place in reversed(range(len(codecs))):
                tree = codecs[place].decode(tree, outlines[place + 1][1])
                fixed = all(codec.fixed for codec in codecs[:place])
                fits(tree, outlines[place][0], exact=fixed)
        except MemoryError:
            raise
        except Exception as error:
            said = error.message if isinstance(error, ProtocolError) else f"{type(error).__name__}: {error}"
            raise ProtocolError(f"its answer's {role} can't be decoded: {said}") from error
        return {entry[0]: tree[str(number)] for number, entry in enumerate(entries)}


def _numbered(tree: Tree) -> Tree:
    """Tensors by their number: names are listed once, and the pieces that codecs add can't clash with them."""
    return {str(number): tensor for number, tensor in enumerate(tree.values())}


def fits(tree: Tree, outline: Tree, *, exact: bool) -> None:
    """Raise ProtocolError unless the tensors are as outlined, or, where lengths vary, at most as long."""
    if set(tree) != set(outline):
        raise ProtocolError(f"it holds {', '.join(sorted(tree)) or 'nothing'}, not {', '.join(sorted(outline))}")
    for name, tensor in tree.items():
        wanted = outline[name]
        shorter = not exact and tensor.dim() == wanted.dim() == 1 and len(tensor) <= len(wanted)
        if tensor.dtype != wanted.dtype or (tensor.shape != wanted.shape and not shorter):
            got, due = ([*tensor.shape], tensor.dtype), ([*wanted.shape], wanted.dtype)
            raise ProtocolError(f"'{name}' is {got[0]} of {got[1]}, not {due[0]} of {due[1]}")


def _finite(tree: Tree) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tree.values() if tensor.is_floating_point())


def _written(lists: Mapping[str, Entries]) -> str:
    """Lists of tensors as text; names repeat each other, so they are deflated."""
    return base64.b64encode(zlib.compress(json.dumps(lists, separators=(",", ":")).encode(), 9)).decode("ascii")


def _read_list(text: object) -> dict[str, Entries]:
    try:
        inflate = zlib.decompressobj()
        data = inflate.decompress(base64.b64decode(str(text), validate=True), _LIST_LIMIT)
        if not inflate.eof:
            raise ValueError("it is not whole, or too long")
        lists = json.loads(data)
        for entries in lists.values():
            for name, dtype, shape in entries:
                if not (isinstance(name, str) and dtype in DTYPES and all(type(n) is int and n >= 0 for n in shape)):
                    raise ValueError("an entry is not a name, a type and a shape")
        names = [[entry[0] for entry in entries] for entries in lists.values()]
        if any(len(set(each)) != len(each) for each in names):
            raise ValueError("a tensor stands in it twice")
    except (ValueError, TypeError, AttributeError, RecursionError, zlib.error, binascii.Error) as error:
        raise ProtocolError(f"its answer's list of encoded tensors can't be read: {error}") from error
    return lists


def _nbytes(entries: Entries, limit: int) -> int:
    """Bytes that the listed tensors take. ProtocolError beyond the limit."""
    found = 0
    for _, dtype, shape in entries:
        count = 1
        for size in shape:
            count *= size
        found += count * torch.empty((), dtype=DTYPES[dtype]).element_size()
        if found > limit:
            raise ProtocolError(f"its answer would come to more than {limit} bytes")
    return found
