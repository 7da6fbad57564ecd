"""What the measuring tools make of what they measured, and that the bare loop learns what it trains."""

from __future__ import annotations

import json
import os
from itertools import pairwise

import pytest
import torch

from tools.bare import Bare, Mlp
from tools.figures import figure, show
from tools.kernel import cpu_seconds, memory, name, tree
from tools.overhead import DEVICES, Pairs, figures


def test_pairs_are_compared_one_by_one():
    pairs = Pairs(fedge=[1.1, 2.4, 3.3], bare=[1.0, 2.0, 3.0], fedge_cpu=[2.0, 2.0, 2.0], bare_cpu=[1.0, 1.5, 1.0])
    assert pairs.ratios == pytest.approx([1.1, 1.2, 1.1])
    assert pairs.extra_ms == pytest.approx([1000 / DEVICES, 500 / DEVICES, 1000 / DEVICES])
    free = Pairs(fedge=[1.0], bare=[0.5], fedge_cpu=[1.0], bare_cpu=[0.5])
    lines = {line["name"]: line for line in figures({("vit-nano", "auto"): pairs, ("vit-nano", "none"): free})}
    walled = lines[f"round of {DEVICES} × vit-nano against the bare loop (malloc pinned, wall up)"]
    assert (walled["value"], walled["n"], walled["holds"], walled["goal"]) == (1.1, 3, True, "<= 1.15")
    assert lines["what pinned malloc costs the bare loop, vit-nano"]["value"] == 2.0


def test_a_figure_is_the_median_beside_its_goal():
    assert figure("x", [3.0, 1.0, 2.0], "s", 1.5) == {
        "name": "x",
        "value": 2.0,
        "unit": "s",
        "goal": "<= 1.5",
        "holds": False,
        "spread": 2.0,
        "n": 3,
    }


def test_a_goal_that_does_not_hold_is_told_by_the_exit_code(capsys):
    good, bad = figure("good", [1.0], "s", 2.0), figure("bad", [3.0], "s", 2.0)
    assert show([good], as_json=False) == 0
    assert capsys.readouterr().out == "good: 1.0 s, spread 0.0, n 1  (goal <= 2)\n"
    assert show([good, bad], as_json=True) == 1
    assert json.loads(capsys.readouterr().out) == {"figures": [good, bad]}


def test_the_kernel_tells_of_this_process():
    mine = os.getpid()
    assert mine in list(tree(mine))
    assert mine in tree(mine, without=(mine,))
    before = cpu_seconds([mine])
    sum(range(10**6))
    assert cpu_seconds([mine]) > before
    assert memory(mine, "Pss") > 2**20
    assert name(mine)
    assert memory(2**22 + 1, "Pss") == 0


@pytest.mark.slow
def test_the_bare_loop_trains():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    bare = Bare(Mlp(), 4, pinned=False)
    try:
        seen = [bare._weights.clone()]
        for _ in range(3):
            bare.round()
            seen.append(bare._weights.clone())
    finally:
        bare.close()
    assert all((later - earlier).norm() > 0.01 for earlier, later in pairwise(seen))
    assert all(weights.isfinite().all() for weights in seen)
