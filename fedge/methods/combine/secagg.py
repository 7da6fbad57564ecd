"""Secure aggregation around a linear method: the server sees the sum of the answers and no one's own.

Bonawitz et al. 2017 (CCS) with the sparse graph of Bell et al. 2020 (SecAgg+). Four turns a round:

1. the inner method's question; a device trains, and answers with two public keys and what its answer covers
2. everyone's keys, the vector's layout; a device answers with a share of two secrets for each neighbour, sealed
3. those shares; a device answers with its vector in the ring ``Z / 2^bits``, masked
4. who answered and who was lost; a device answers with its shares of the former's own masks and of the latter's keys

A device's vector is ``w̃ x`` with ``w̃ = min(rows / largest, 1)``, then ``w̃`` for what it covers; the server divides the
sums. With ``noise`` (distributed differential privacy, Kairouz et al. 2021, arXiv 2102.06387) a device cuts its answer
down to a norm of ``clip``, counts as one, and adds a discrete Gaussian of variance ``(z clip)² / m`` with m the fewest
that may be left, so that every sum that is opened has at least ``(z clip)²``.

It is longer than other methods because both sides of a protocol of four turns stand in it.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from fedge.core.method import Abandon, Ask, Card, Device, Replies, Server, State, Talk
from fedge.core.payload import Payload, Tree
from fedge.core.value import value
from fedge.errors import MethodError, ProtocolError
from fedge.methods.combine.layout import Layout, cells_of, read, written
from fedge.methods.combine.private import alone
from fedge.methods.combine.shell import Shell, as_one, block
from fedge.privacy.keys import KEY, fresh
from fedge.privacy.member import SEALED, Member, ShortError, graph, needed, unmask
from fedge.privacy.noise import clipped, discrete_gaussian, seeded
from fedge.privacy.ring import Ring, wrapping
from fedge.privacy.shamir import SIZE

_SESSION, _COVERS, _LAYOUT, _COUNT = "session", "covers", "layout", "count"
#: Levels of the ring that a device's noise must spread over, so that the sum of discrete Gaussians differs from one by
#: less than 1e-37 (Kairouz et al. 2021, theorem 1), and the standard deviations of it for which there is room.
_LEAST_LEVELS, _ROOM = 3.0, 8.0


@dataclass(frozen=True, kw_only=True)
class SecAgg(Shell):
    """``range``: where coordinates are cut off. ``largest``: rows from which on a device weighs no more."""

    threshold: float = 0.6
    bits: int = 32
    range: float = 1.0
    neighbours: int | None = None
    largest: float = 1000.0
    noise: float = 0.0
    clip: float = 1.0
    system: bool = False

    #: The messages grow with the number of neighbours.
    gathers: ClassVar[bool] = True

    @property
    def card(self) -> Card:  # type: ignore[override]
        leaves = ("public keys and sealed shares", "a masked vector, of which the sum of all alone can be read")
        return replace(self.inner.card, roles=("keys", "shares"), leaves=leaves, claims=(), family="own")

    def fewest(self, asked: int) -> int:
        """How many of those asked must be left; never one alone, who would be the sum."""
        return max(2, needed(self.threshold, asked))

    def ring(self, count: int) -> Ring:
        """The ring for ``count`` devices; noise takes room beyond the clip."""
        reach = self.range
        if self.noise:
            reach = self.clip * (1 + _ROOM * self.noise / self.fewest(count) ** 0.5)
        return Ring(self.bits, reach, count)

    # -- on a device -------------------------------------------------------------------------------------------------

    def client(self, dev: Device, down: Payload) -> Talk:
        told = dict(down.meta)
        session = bytes.fromhex(told.pop(_SESSION))
        answer = alone(self.inner, dev, replace(down, meta=told))
        party = _Rehearsed() if dev.rehearsed else _Party(dev.secrets(), session)
        if not dev.rehearsed and answer.not_finite():
            # a masked vector would spoil the sum unseen; this the coordinator refuses, by the device's name
            return Payload({"keys": {"unfit": torch.tensor(float("nan"))}})
        covers = written(cells_of(answer.parts))
        book = yield Payload({"keys": party.keys()}, meta={_COVERS: covers})
        with dev.meter.span("shares"):
            sealed = party.share(book["keys"], self.threshold)
        passed = yield Payload({"shares": {"sealed": sealed}})
        layout, ring = Layout(tuple(read(book.meta[_LAYOUT]))), self.ring(book.meta[_COUNT])
        with dev.meter.span("mask"):
            vector = self.vector(dev, answer, layout, ring)
            party.mask(passed["shares"], vector)
        who = yield Payload({"shares": {"masked": vector}})
        return Payload({"shares": party.reveal(who["keys"])})

    def vector(self, dev: Device, answer: Payload, layout: Layout, ring: Ring) -> Tensor:
        """The device's numbers in the ring, ``[layout.length]``, before they are masked."""
        weight = 1.0 if self.noise else min(answer.weight / self.largest, 1.0)
        parts = answer.parts
        if self.noise:
            room = self.clip - ring.step * layout.numbers**0.5  # rounding adds at most a level to each coordinate
            if room <= 0:
                raise MethodError(f"{self.bits} bits are too few for noise on {layout.numbers} numbers; take more bits")
            parts, _ = clipped(parts, room)
        out = torch.zeros(layout.length, dtype=ring.dtype)
        rounding = dev.generator("rounding")
        for role, name, shape, place in layout.places():
            levels = torch.zeros(shape, dtype=torch.float64)
            mine = parts.get(role, {}).get(name)
            if mine is not None:
                levels[block(mine.shape)] = ring.rounded(mine * weight, rounding)
            if self.noise:
                levels += self._share(dev, levels.shape, ring, f"{role}/{name}")
            out[place] = ring.cut(levels).flatten()
        covered = set(cells_of(answer.parts))
        for at, cell in enumerate(layout.cells):
            out[layout.numbers + at] = round(weight * ring.levels) if cell in covered else 0
        return out

    def _share(self, dev: Device, shape: torch.Size, ring: Ring, name: str) -> Tensor:
        """This device's share of the noise, in levels."""
        std = self.noise * self.clip / self.fewest(ring.count) ** 0.5 / ring.step
        if std < _LEAST_LEVELS:
            raise MethodError(f"{self.bits} bits are too few: a device's noise is {std:.2g} levels; take more bits")
        if dev.rehearsed:
            return torch.zeros(shape, dtype=torch.float64)
        rng = seeded(None if self.system else dev.generator(f"privacy {name}"))
        return torch.from_numpy(discrete_gaussian(shape.numel(), std, rng)).to(torch.float64).reshape(shape)

    # -- on the server -----------------------------------------------------------------------------------------------

    def ask(self, srv: Server, state: State, ask: Ask) -> Generator[Ask, Replies, Replies]:
        if not ask.to:
            return (yield ask)
        least = self.fewest(len(ask.to))
        session = fresh(16)
        told = {d: replace(p, meta={**p.meta, _SESSION: session.hex()}) for d, p in ask.to.items()}
        first = yield Ask(told, deadline=ask.deadline)
        names = self._enough(list(first), least, "keys")
        layout = Layout.of([read(reply.meta[_COVERS]) for reply in first.values()])
        keys = [first[name]["keys"] for name in names]
        near = graph(len(names), self.neighbours)
        second = yield Ask({n: self._book(at, keys, near[at], layout) for at, n in enumerate(names)})
        self._enough(list(second), least, "shares")
        shared = [at for at, name in enumerate(names) if name in second]
        third = yield Ask({names[at]: _passed(at, names, near, shared, second) for at in shared})
        self._enough(list(third), least, "masked vectors")
        here = [at for at in shared if names[at] in third]
        ring = self.ring(len(names))
        total = torch.zeros(layout.length, dtype=ring.dtype)
        for reply in third.values():
            _add(total, reply["shares"]["masked"])
        fourth = yield Ask({names[at]: _who(at, near, shared, here) for at in here})
        self._enough(list(fourth), least, "shares of those who answered")
        if not srv.rehearsed:
            self._open(total, session, names, keys, near, shared, here, fourth)
        parts, weight = self._mean(total, layout, ring)
        return as_one(parts, value(weight, traced=1.0), first, [names[at] for at in here])

    def _enough(self, names: Sequence[str], least: int, what: str) -> list[str]:
        if len(names) < least:
            raise Abandon(f"secure aggregation: {len(names)} sent {what}, and the threshold is {least}")
        return sorted(names)

    def _book(self, at: int, keys: Sequence[Tree], near: Sequence[int], layout: Layout) -> Payload:
        rows = [torch.cat([keys[other]["channel"], keys[other]["masking"]]) for other in near]
        told = {"place": _places([at]), "neighbours": _places(near), "book": torch.stack(rows)}
        return Payload({"keys": told}, meta={_LAYOUT: written(layout.cells), _COUNT: len(keys)})

    def _open(
        self,
        total: Tensor,
        session: bytes,
        names: Sequence[str],
        keys: Sequence[Tree],
        near: Sequence[Sequence[int]],
        shared: Sequence[int],
        here: Sequence[int],
        replies: Replies,
    ) -> None:
        own: dict[int, dict[int, bytes]] = {}
        lost: dict[int, dict[int, bytes]] = {}
        for at in here:
            if names[at] not in replies:
                continue
            told, shares = _who(at, near, shared, here)["keys"], replies[names[at]]["shares"]
            for of, share in zip([at, *told["here"].tolist()], shares["own"], strict=True):
                own.setdefault(of, {})[at] = _bytes(share)
            for of, share in zip(told["lost"].tolist(), shares["keys"], strict=True):
                lost.setdefault(of, {})[at] = _bytes(share)
        publics = {at: _bytes(tree["masking"]) for at, tree in enumerate(keys)}
        partners = {at: [v for v in near[at] if v in set(shared)] for at in shared}
        try:
            needs = {at: needed(self.threshold, len(near[at]) + 1) for at in shared}
            unmask(wrapping(total), session, publics, partners, shared, here, own, lost, needs)
        except ShortError as error:
            raise Abandon(f"secure aggregation: {error}") from error

    def _mean(self, total: Tensor, layout: Layout, ring: Ring) -> tuple[dict[str, Tree], Tensor]:
        """The mean of what was covered, and the weight of what most covered."""
        weights = total[layout.numbers :].to(torch.float64) / ring.levels
        of: dict[tuple[str, str], list[tuple[Tensor, tuple[int, ...]]]] = {}
        for weight, (role, name, shape) in zip(weights, layout.cells, strict=True):
            if value(weight, traced=1.0) > 0:  # who alone covered it may be lost
                of.setdefault((role, name), []).append((weight, shape))
        parts: dict[str, Tree] = {}
        for role, name, shape, place in layout.places():
            if (role, name) not in of:
                continue
            divisor = torch.zeros(shape, dtype=torch.float64)
            for weight, covered in of[role, name]:
                divisor[block(covered)] += weight
            extent = block([max(sizes) for sizes in zip(*(covered for _, covered in of[role, name]), strict=True)])
            sums = ring.real(total[place]).reshape(shape)[extent]
            parts.setdefault(role, {})[name] = (sums / divisor[extent].clamp_min(0.5 / ring.levels)).to(torch.float32)
        return parts, weights.sum() / max(1, len(weights)) * self.largest


class _Party:
    """A device's side in payloads' tensors."""

    def __init__(self, secret: bytes, session: bytes):
        self._member = Member(secret, session)
        self._near: list[int] = []

    def keys(self) -> Tree:
        channel, masking = self._member.public
        return {"channel": _tensor(channel), "masking": _tensor(masking)}

    def share(self, told: Tree, threshold: float) -> Tensor:
        self._near = told["neighbours"].tolist()
        rows = [_bytes(row) for row in told["book"]]
        book = {other: (row[:KEY], row[KEY:]) for other, row in zip(self._near, rows, strict=True)}
        sealed = self._member.share(int(told["place"]), book, threshold)
        return torch.stack([_tensor(sealed[other]) for other in self._near])

    def mask(self, told: Tree, vector: Tensor) -> None:
        senders = told["senders"].tolist()
        self._member.take({other: _bytes(row) for other, row in zip(senders, told["sealed"], strict=True)})
        self._member.mask(wrapping(vector))

    def reveal(self, told: Tree) -> Tree:
        own, keys = self._member.reveal(told["here"].tolist(), told["lost"].tolist())
        rows = [_tensor(share) for share in keys]
        return {
            "own": torch.stack([_tensor(share) for share in own]),
            "keys": torch.stack(rows) if rows else torch.zeros(0, SIZE, dtype=torch.uint8),
        }


class _Rehearsed:
    """The same shapes without any secret, for whoever counts what a round costs; masking moves the bytes it would."""

    def keys(self) -> Tree:
        return {name: torch.zeros(KEY, dtype=torch.uint8) for name in ("channel", "masking")}

    def share(self, told: Tree, threshold: float) -> Tensor:
        return torch.zeros(len(told["neighbours"]), SEALED, dtype=torch.uint8)

    def mask(self, told: Tree, vector: Tensor) -> None:
        for _ in range(len(told["senders"]) + 1):
            vector += 0  # nobody takes it off again

    def reveal(self, told: Tree) -> Tree:
        return {
            "own": torch.zeros(1 + len(told["here"]), SIZE, dtype=torch.uint8),
            "keys": torch.zeros(len(told["lost"]), SIZE, dtype=torch.uint8),
        }


def _passed(
    at: int, names: Sequence[str], near: Sequence[Sequence[int]], shared: Sequence[int], replies: Replies
) -> Payload:
    """The shares that a device's neighbours sealed for it."""
    senders = [other for other in near[at] if other in set(shared)]
    rows = [replies[names[other]]["shares"]["sealed"][list(near[other]).index(at)] for other in senders]
    sealed = torch.stack(rows) if rows else torch.zeros(0, SEALED, dtype=torch.uint8)
    return Payload({"shares": {"senders": _places(senders), "sealed": sealed}})


def _who(at: int, near: Sequence[Sequence[int]], shared: Sequence[int], here: Sequence[int]) -> Payload:
    """Of a device's neighbours, those who answered and those who were lost after they had shared."""
    answered = [other for other in near[at] if other in set(here)]
    gone = [other for other in near[at] if other in set(shared) - set(here)]
    return Payload({"keys": {"here": _places(answered), "lost": _places(gone)}})


def _add(total: Tensor, vector: Tensor) -> None:
    """Add a masked vector, in place; sums in the ring wrap."""
    if vector.shape != total.shape or vector.dtype != total.dtype:
        raise ProtocolError(f"a masked vector is {list(vector.shape)} of {vector.dtype}, not {list(total.shape)}")
    if isinstance(total, FakeTensor):
        total += vector
    else:
        into = wrapping(total)
        into += wrapping(vector.contiguous())


def _places(places: Sequence[int]) -> Tensor:
    return torch.tensor(list(places), dtype=torch.int32)


def _tensor(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().numpy().tobytes()
