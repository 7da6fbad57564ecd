"""Word vectors: whether topics' words find each other, learnt apart and in one place."""

from __future__ import annotations

import csv
import re
from collections import Counter
from functools import cache
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn

from fedge.core.method import Rows
from fedge.core.task import Task
from fedge.data import rows as stored
from fedge.methods.train.word2vec import Word2Vec
from fedge.testing.driver import drive
from tools.claims.claim import Claim, Figures
from tools.claims.data import located

#: Words that are told apart, tokens in a window, rounds, and how often a word must be seen to be judged.
WORDS, WINDOW, ROUNDS, OFTEN = 1500, 16, 150, 20


class Nothing(nn.Module):
    """A base of which word vectors use the number of tokens alone."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(vocab_size=WORDS + 1)


@cache
def topics() -> tuple[list[Rows], np.ndarray]:
    """Windows of each topic's news, and how often each word occurs in each topic ``[words, topics]``."""
    path = located("ag_news")
    assert path is not None
    texts: dict[str, list[str]] = {}
    with (path / "train.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            texts.setdefault(row["label"], []).extend(re.findall(r"[a-z]+", row["text"].lower()))
    counts = Counter(word for words in texts.values() for word in words)
    number = {word: at for at, (word, _) in enumerate(counts.most_common(WORDS))}
    found: list[Rows] = []
    table = np.zeros((WORDS + 1, len(texts)))
    for topic, label in enumerate(sorted(texts)):
        ids = torch.tensor([number.get(word, WORDS) for word in texts[label]], dtype=torch.int32)
        windows = ids[: len(ids) // WINDOW * WINDOW].view(-1, WINDOW)
        found.append(stored.Rows({"input_ids": windows}, "causal-lm"))
        table[:, topic] = np.bincount(ids.numpy(), minlength=WORDS + 1)
    return found, table


def purity(u: torch.Tensor, table: np.ndarray) -> float:
    """Of the ten nearest of each topical word (half of its uses in one topic), the share that are of its topic."""
    shares = table / table.sum(1, keepdims=True).clip(1)
    topical = np.flatnonzero((shares.max(1) >= 0.5) & (table.sum(1) >= OFTEN))
    topical = topical[topical < WORDS]
    own = shares.argmax(1)[topical]
    unit = nn.functional.normalize(u[topical], dim=1)
    near = (unit @ unit.T).fill_diagonal_(-2).topk(10, dim=1).indices.numpy()
    return float((own[near] == own[:, None]).mean())


def nearness(seed: int) -> Figures:
    torch.set_num_threads(1)
    rows, table = topics()
    task = Task("causal-lm", WORDS + 1)
    joined = stored.Rows({"input_ids": torch.cat([part.columns["input_ids"] for part in rows])}, "causal-lm")  # type: ignore[attr-defined]
    numbers = {"lr": 20.0, "width": 32, "negatives": 5, "window": 5, "words": WORDS}
    apart = drive(
        Word2Vec(**numbers, batch=32), Nothing(), dict(zip("abcd", rows, strict=True)), task, ROUNDS, seed=seed
    )
    one = drive(Word2Vec(**numbers, batch=128), Nothing(), {"a": joined}, task, ROUNDS, seed=seed)
    begun = apart.server.method.init(apart.server)["vectors"]["u"]
    return {
        "federated": purity(apart.state["vectors"]["u"], table),
        "one place": purity(one.state["vectors"]["u"], table),
        "chance": purity(begun, table),
    }


CLAIMS = (
    Claim(
        method="word2vec",
        name="nearness",
        says="vectors learnt apart, each device with a topic of its own, are as good as those learnt in one place",
        paper="quality and convergence do not fall behind centralised training (arXiv 2105.00831, abstract)",
        measure=nearness,
        holds=lambda seen: (
            seen.gap("one place", "federated") <= 0.05 and seen.mean("federated") >= 2 * seen.mean("chance")
        ),
        goal="neighbours of topical words share the topic within 5 points of one place, and twice as often as chance",
        unit="%",
        data=("ag_news",),
    ),
)
