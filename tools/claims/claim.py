"""What a claim is: the paper's words and figure, and how the same is measured here."""

from __future__ import annotations

import importlib
import pkgutil
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

#: Named figures of one seed; the first is the one that the table shows first.
Figures = Mapping[str, float]


class Seen(dict[str, list[float]]):
    """Every figure by name, a value for each seed in the order of the seeds."""

    def mean(self, name: str) -> float:
        return statistics.fmean(self[name])

    def gap(self, more: str, less: str) -> float:
        """By how much one figure exceeds another, in the mean over the seeds."""
        return self.mean(more) - self.mean(less)

    def worst(self, name: str) -> float:
        """The largest value of any seed."""
        return max(self[name])


@dataclass(frozen=True)
class Claim:
    """One row of the table.

    method: a key of the catalogue, 'codec:KEY', or 'survey'. name: a slug that is unique within the method. says: what
    the paper claims. paper: its figure and the place. measure: a seed's figures, on nano models and small real data,
    all seeds in 30 s of one processor; it must not be tuned until the claim holds. holds: whether the claim holds
    given the figures of all seeds. goal: the same in words. unit: of the first figure ('%' figures are shares that are
    shown times 100). data: 'digits', or names of files and folders in the developers' shared data.
    """

    method: str
    name: str
    says: str
    paper: str
    measure: Callable[[int], Figures]
    holds: Callable[[Seen], bool]
    goal: str
    unit: str = ""
    data: tuple[str, ...] = ("digits",)
    seeds: tuple[int, ...] = (0, 1, 2)

    @property
    def key(self) -> str:
        """The claim's own name in the whole table."""
        return f"{self.method}/{self.name}"


@cache
def every() -> tuple[Claim, ...]:
    """All claims, in the order of the modules' names and of the claims within. ValueError for one that is there twice
    or has fewer than three seeds."""
    from tools.claims import rows

    modules = sorted(found.name for found in pkgutil.iter_modules(rows.__path__))
    claims = [claim for name in modules for claim in importlib.import_module(f"{rows.__name__}.{name}").CLAIMS]
    keys = [claim.key for claim in claims]
    twice = sorted({key for key in keys if keys.count(key) > 1})
    few = [claim.key for claim in claims if len(claim.seeds) < 3]
    if twice or few:
        raise ValueError(f"claims that are there twice: {twice}; with fewer than three seeds: {few}")
    return tuple(claims)


def chosen(words: Sequence[str]) -> tuple[Claim, ...]:
    """The claims of some methods ('lora'), or single ones ('lora/traffic'); all where no words are given.

    ValueError for a word that names none.
    """
    picked = [claim for claim in every() if not words or {claim.method, claim.key} & set(words)]
    named = {name for claim in picked for name in (claim.method, claim.key)}
    unknown = sorted(set(words) - named)
    if unknown:
        raise ValueError(f"no claim of {', '.join(unknown)}; there are claims of {', '.join(sorted(methods()))}")
    return tuple(picked)


def methods() -> set[str]:
    """The methods that have claims."""
    return {claim.method for claim in every()}
