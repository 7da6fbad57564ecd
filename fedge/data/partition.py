"""Who holds which rows: seeded partitions in which every row has one owner and every device at least one row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from typing import TypeVar

import numpy as np

from fedge.core.rng import seed_for
from fedge.errors import ConfigError

KINDS = ("iid", "dirichlet", "shards", "by")
Labels = np.ndarray | None
_Column = TypeVar("_Column", bound=Sized)

#: No device of a Dirichlet partition holds fewer rows than this, or than half of an equal share where that is less.
FEWEST = 8


def partition(
    labels: Labels,
    keys: Sequence[str] | None,
    clients: int,
    kind: str,
    value: float | None,
    seed: int,
    n: int,
    homes: Mapping[int, Sequence[int]] | None = None,
    at_home: float = 1.0,
) -> list[np.ndarray]:
    """Divide rows ``0..n-1`` among ``clients`` devices.

    labels: int ``[n]`` (needed by dirichlet and shards); keys: a text for each row (needed by ``by``).

    - ``iid``: a random order, cut into parts that differ by one row at most.
    - ``dirichlet``: for each label, shares of its rows are drawn from Dirichlet(value, …, value) over the devices; a
      small value makes each label live on few devices. A device below the minimum (``FEWEST``, or half of an equal
      share where that is less, but always one) is then given rows by the device that has most, one at a time and from
      the giver's commonest label, until nobody is below.
    - ``shards``: rows sorted by label (in random order within a label) are cut into ``value`` shards for each device,
      dealt at random.
    - ``by``: a key's rows stay together. With more keys than devices, keys go from the largest down, each to the
      device that has fewest rows so far. With fewer, devices are given one by one to the key with most rows a device,
      and a key's rows are divided among its devices at random.

    ``homes``: for ``iid`` and ``dirichlet``, the devices that may hold a label, by label; a label that is not named is
    at home everywhere. ``at_home`` of its rows are shared among those devices alone, evenly or by the Dirichlet draw,
    the rest evenly among all devices. A device that ends up below the minimum is then given rows as above, away from
    their home.

    Returns sorted int64 indices for each device: disjoint, together all rows, never empty. The same arguments give the
    same answer. ConfigError where the rows, labels or keys do not allow it.
    """
    if kind not in KINDS:
        raise ConfigError(f"unknown partition '{kind}': one of {', '.join(KINDS)}")
    if clients < 1:
        raise ConfigError("a partition needs at least one device")
    if n < clients:
        raise ConfigError(f"{n} rows cannot be divided among {clients} devices: each needs at least one row")
    draw = np.random.default_rng(seed_for(seed, "partition", kind))
    if not 0 < at_home <= 1:
        raise ConfigError(f"the share of a label's rows that stay at home is above 0 and at most 1, not {at_home}")
    if homes:
        if kind not in ("iid", "dirichlet"):
            raise ConfigError(f"groups go with iid and dirichlet, not with {kind}")
        known = np.asarray(_needed(labels, "groups", "labels", n))
        parts = _dirichlet(known, clients, value, draw, homes, even=kind == "iid", at_home=at_home)
    elif kind == "by":
        parts = _by(_needed(keys, "by", "a column of keys", n), clients, draw)
    elif kind == "iid":
        parts = np.array_split(draw.permutation(n), clients)
    else:
        known = np.asarray(_needed(labels, kind, "labels", n))
        parts = _dirichlet(known, clients, value, draw) if kind == "dirichlet" else _shards(known, clients, value, draw)
    return [np.sort(np.asarray(part, dtype=np.int64)) for part in parts]


def _needed(values: _Column | None, kind: str, what: str, n: int) -> _Column:
    if values is None:
        raise ConfigError(f"the partition '{kind}' needs {what}, which this data does not have")
    if len(values) != n:
        raise ValueError(f"{len(values)} values for {n} rows")
    return values


def _dirichlet(
    labels: np.ndarray,
    clients: int,
    value: float | None,
    draw: np.random.Generator,
    homes: Mapping[int, Sequence[int]] | None = None,
    even: bool = False,
    at_home: float = 1.0,
) -> list[np.ndarray]:
    if not even and (value is None or not 0 < value < float("inf")):
        raise ConfigError(f"dirichlet needs a concentration above 0, such as 0.3; not {value}")
    parts: list[list[np.ndarray]] = [[] for _ in range(clients)]
    for label in np.unique(labels):
        rows = draw.permutation(np.flatnonzero(labels == label))
        shares = np.zeros(clients)
        home = list((homes or {}).get(int(label), range(clients)))
        shares[home] = 1 / len(home) if even or value is None else draw.dirichlet(np.full(len(home), float(value)))
        if label in (homes or {}):
            shares = at_home * shares + (1 - at_home) / clients
        cuts = np.cumsum(apportion(shares, len(rows)))[:-1]
        for part, piece in zip(parts, np.split(rows, cuts), strict=True):
            part.append(piece)
    joined = [np.concatenate(part) for part in parts]
    return _topped_up(joined, labels, max(1, min(FEWEST, len(labels) // (2 * clients))))


def apportion(shares: np.ndarray, total: int) -> np.ndarray:
    """Whole numbers that sum to ``total``, as near to ``shares * total`` as can be (largest remainders first)."""
    shares = np.asarray(shares, dtype=np.float64)
    exact = shares / shares.sum() * total
    counts = np.floor(exact).astype(np.int64)
    rest = int(total - counts.sum())
    counts[np.argsort(counts - exact, kind="stable")[:rest]] += 1
    return counts


def _topped_up(parts: list[np.ndarray], labels: np.ndarray, least: int) -> list[np.ndarray]:
    held = [list(part) for part in parts]
    for needy in range(len(held)):
        while len(held[needy]) < least:
            giver = max(range(len(held)), key=lambda device: (len(held[device]), -device))
            commonest = np.bincount(labels[held[giver]]).argmax()
            at = max(place for place, row in enumerate(held[giver]) if labels[row] == commonest)
            held[needy].append(held[giver].pop(at))
    return [np.array(part, dtype=np.int64) for part in held]


def _shards(labels: np.ndarray, clients: int, value: float | None, draw: np.random.Generator) -> list[np.ndarray]:
    if value is None or value != int(value) or value < 1:
        raise ConfigError(f"shards needs a whole number of shards a device, such as 2; not {value}")
    count = int(value)
    if len(labels) < clients * count:
        raise ConfigError(f"{len(labels)} rows cannot be cut into {count} shards for each of {clients} devices")
    shuffled = draw.permutation(len(labels))
    ordered = shuffled[np.argsort(labels[shuffled], kind="stable")]
    shards = np.array_split(ordered, clients * count)
    dealt = draw.permutation(len(shards)).reshape(clients, count)
    return [np.concatenate([shards[shard] for shard in hand]) for hand in dealt]


def _by(keys: Sequence[str], clients: int, draw: np.random.Generator) -> list[np.ndarray]:
    names, group = np.unique(np.asarray(keys, dtype=str), return_inverse=True)
    rows = [np.flatnonzero(group == number) for number in range(len(names))]
    if len(names) >= clients:
        return _dealt(rows, clients)
    devices = [1] * len(names)
    for _ in range(clients - len(names)):
        most = max(range(len(names)), key=lambda number: (len(rows[number]) / devices[number], -number))
        devices[most] += 1
    return [
        part
        for own, count in zip(rows, devices, strict=True)
        for part in np.array_split(draw.permutation(own) if count > 1 else own, count)
    ]


def _dealt(rows: list[np.ndarray], clients: int) -> list[np.ndarray]:
    parts: list[list[np.ndarray]] = [[] for _ in range(clients)]
    sizes = [0] * clients
    for number in sorted(range(len(rows)), key=lambda number: (-len(rows[number]), number)):
        device = min(range(clients), key=lambda device: (sizes[device], device))
        parts[device].append(rows[number])
        sizes[device] += len(rows[number])
    return [np.concatenate(part) for part in parts]


def sample(labels: Labels, n: int, count: int, *parts: str | int) -> np.ndarray:
    """``count`` of ``n`` rows, sorted, with the labels' shares kept (each label at least once where that is possible).

    ``parts`` seed the draw and say what it is for. labels None: drawn evenly.
    """
    count = min(count, n)
    draw = np.random.default_rng(seed_for(*parts))
    if labels is None:
        return np.sort(draw.permutation(n)[:count])
    found, sizes = np.unique(labels, return_counts=True)
    counts = apportion(sizes / n, count)
    if count >= len(found):
        for absent in np.flatnonzero(counts == 0):
            counts[counts.argmax()] -= 1
            counts[absent] += 1
    picked = [
        draw.permutation(np.flatnonzero(labels == label))[:taken] for label, taken in zip(found, counts, strict=True)
    ]
    return np.sort(np.concatenate(picked))


def hold_out(rows: np.ndarray, labels: Labels, share: float, seed: int, device: str) -> tuple[np.ndarray, np.ndarray]:
    """A device's ``rows`` as (to train on, to test on): ``share`` of them, at least one each where there are two.

    labels: of all rows, so that the device's mix is kept; ConfigError for a device with a single row.
    """
    if len(rows) < 2:
        raise ConfigError(f"{device} holds {len(rows)} row: too few to keep a share apart for its test")
    count = min(max(1, round(share * len(rows))), len(rows) - 1)
    own = None if labels is None else np.asarray(labels)[rows]
    kept = np.zeros(len(rows), dtype=bool)
    kept[sample(own, len(rows), count, seed, "local test", device)] = True
    return rows[~kept], rows[kept]


def label_mix(labels: np.ndarray, classes: int) -> np.ndarray:
    """The share of each class among a device's labels, float64 ``[classes]``; zeros for a device without rows."""
    counts = np.bincount(np.asarray(labels, dtype=np.int64), minlength=classes).astype(np.float64)
    return counts / max(counts.sum(), 1.0)


def mix_weights(test_labels: np.ndarray, mix: np.ndarray) -> np.ndarray:
    """A weight for each test row, summing to 1, under which the test split has the label mix ``mix``.

    A class of the mix that the test split lacks is left out and the others are scaled up; no class in common gives
    equal weights.
    """
    test_labels = np.asarray(test_labels, dtype=np.int64)
    counts = np.bincount(test_labels, minlength=len(mix))
    weights = np.asarray(mix, dtype=np.float64)[test_labels] / counts[test_labels]
    total = weights.sum()
    return weights / total if total > 0 else np.full(len(test_labels), 1.0 / max(len(test_labels), 1))


def weighted_accuracy(correct: np.ndarray, weights: np.ndarray) -> float:
    """The share of correct rows (bool ``[n]``) under ``weights`` (``[n]``, summing to 1)."""
    return float(np.dot(np.asarray(correct, dtype=np.float64), weights))
