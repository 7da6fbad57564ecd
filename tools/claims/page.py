"""METHODS.md: what is built, from the catalogue, and the table of claims, from what is stored.

python -m tools.claims.page            write it anew; nothing is run
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fedge.spec.catalogue import MethodInfo, load
from tools.claims.claim import every
from tools.claims.show import Row, markdown
from tools.claims.stored import find

PAGE = Path(__file__).resolve().parents[2] / "METHODS.md"

_HEAD = """# Methods

What fedge has built, out of `fedge methods --built`; `fedge methods NAME` shows a method's fields, what of its
card does not hold, and where it departs from its paper. Stars are the survey's (arXiv 2509.05142, Table 3):
effort to build (less is better) / little sent / light to compute. Written by `python -m tools.claims.page`."""

_CLAIMS = """## Claims

Each paper's headline claim, scaled down to nano models, two processors and small real data, three seeds or more
(`python -m tools.claims`). A claim that does not hold at this scale is written as such; nothing was tuned until
it did. Papers measure larger models for longer, so a *no* says that the effect is not seen here, not that the
paper is wrong."""


def methods() -> Iterator[str]:
    """The built methods by stage, a table row each."""
    built = [info for info in load().methods if info.built and info.package is None]
    for stage in ("train", "customize", "deploy"):
        yield f"\n## {stage.capitalize()}\n"
        yield "| method | what it does | leaves the device | stars | paper |"
        yield "|---|---|---|---|---|"
        for info in sorted((i for i in built if _home(i) == stage), key=lambda i: (i.path, i.key)):
            stars = "/".join(map(str, info.stars)) if info.stars else "–"
            also = f" ({', '.join(f'`{alias}`' for alias in info.aliases)})" if info.aliases else ""
            cells = (
                f"`{info.key}`{also}",
                info.summary,
                "; ".join(info.leaves),
                stars,
                info.paper or info.citation or "–",
            )
            yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _home(info: MethodInfo) -> str:
    """The stage in whose table a method stands: that of its path, else its first."""
    head = info.path.split("/")[0]
    return head if head in ("train", "customize", "deploy") else info.stages[0]


def claims() -> Iterator[str]:
    """The table of claims as far as there are results."""
    rows = []
    for claim in every():
        result, fresh = find(claim)
        rows.append(Row(claim, result, "" if fresh else "not run" if result is None else "older source"))
    known = [row for row in rows if row.holds is not None]
    yield f"\n{sum(bool(row.holds) for row in known)} of {len(known)} claims with a result hold at this scale.\n"
    yield from markdown(rows)


def text() -> str:
    """The whole page."""
    return "\n".join([_HEAD, *methods(), "", _CLAIMS, *claims()]) + "\n"


if __name__ == "__main__":
    PAGE.write_text(text())
    print(PAGE)
