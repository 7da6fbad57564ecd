"""What becomes of whole models: merged by layer, by certainty, by an outer optimizer."""

from __future__ import annotations

from functools import cache

import torch

from fedge.core.method import Rows
from fedge.core.task import Score
from fedge.data import rows as stored
from fedge.methods.customize.fedavg import FedAvg
from fedge.methods.train.fisher import Fisher
from fedge.methods.train.ldawa import LDAWA
from fedge.methods.train.photon import Photon
from fedge.models.load import Loaded, load
from fedge.testing.driver import drive
from tools.claims.claim import Claim, Figures
from tools.claims.data import located
from tools.claims.world import BATCH, digits

#: Local steps of a device that sends its model once.
ONCE = 40
#: Steps of a language model in all, on each device, and those between two exchanges where these are few.
TOKENS, APART = 80, 20
WINDOW = 32


def skewed(seed: int) -> dict[str, stored.Rows]:
    return digits(seed).parts(alpha=0.1)


def layers(seed: int) -> Figures:
    world, numbers = digits(seed), {"steps": 20, "batch": BATCH, "lr": 3e-3}
    found = {}
    for name, method in (("ldawa", LDAWA(**numbers)), ("fedavg", FedAvg(**numbers))):
        found[name] = world.accuracy(world.run(method, 4, skewed(seed)))
    return found


def certainty(seed: int) -> Figures:
    world, numbers = digits(seed), {"steps": ONCE, "batch": BATCH, "lr": 3e-3}
    found = {}
    for name, method in (("merged", Fisher(**numbers, samples=64)), ("mean", FedAvg(**numbers))):
        found[name] = world.accuracy(world.run(method, 1))
    return found


@cache
def plays(seed: int) -> tuple[Loaded, dict[str, Rows], Rows]:
    """A small GPT for bytes, four devices with a part of Shakespeare each, and windows that nobody has."""
    path = located("tiny_shakespeare")
    assert path is not None
    options = {"hidden": 32, "layers": 2, "mlp": 64, "length": WINDOW}
    loaded = load("gpt-nano", "causal-lm", options=options, seed=seed)
    text = (path / "input.txt").read_text(encoding="utf-8")[:300_000]
    ids = torch.tensor(loaded.preprocessor(text, add_special_tokens=False, verbose=False)["input_ids"])
    windows = ids[: len(ids) // WINDOW * WINDOW].view(-1, WINDOW).to(torch.int32)
    held_out = len(windows) // 10
    parts = windows[:-held_out].chunk(4)
    rows: dict[str, Rows] = {f"d{n}": stored.Rows({"input_ids": part}, "causal-lm") for n, part in enumerate(parts)}
    return loaded, rows, stored.Rows({"input_ids": windows[-held_out:][:200]}, "causal-lm")


def tokens(seed: int) -> Figures:
    torch.set_num_threads(1)
    loaded, rows, test = plays(seed)
    found, sent = {}, {}
    for name, steps in (("apart", APART), ("together", 1)):
        # the rate is that of the stage's step, so both runs see the same one
        method = Photon(steps=steps, batch=16, lr=3e-3, warmup=8, horizon=TOKENS)
        driven = drive(method, loaded.model, rows, loaded.task, TOKENS // steps, seed=seed)
        score = Score()
        with torch.no_grad():
            for batch in test.chunks(100):
                score.add(loaded.task, driven.final().eval()(**loaded.task.inputs(batch)).logits, batch["labels"])
        found[name] = score.metrics(loaded.task)["loss"]
        sent[name] = sum(sum(one.values()) for one in driven.up)
    return {
        "more loss": found["apart"] / found["together"] - 1,
        **found,
        "times less": sent["together"] / sent["apart"],
    }


CLAIMS = (
    Claim(
        method="photon",
        name="tokens",
        says="at equal tokens many local steps a round lose hardly anything against an exchange at every step",
        paper="perplexity no worse than centralised, 64 to 512 times less traffic (arXiv 2411.02908, abstract)",
        measure=tokens,
        holds=lambda seen: seen.mean("more loss") <= 0.03,
        goal="loss at H=20 at most 3 % above that at H=1, in the mean",
        unit="%",
        data=("tiny_shakespeare",),
    ),
    Claim(
        method="ldawa",
        name="accuracy",
        says="weighting layers by their cosine learns more than FedAvg from skewed labels",
        paper="CIFAR-100, ResNet-34, E=1, after self-supervised training: 61.9 against 54.8 % (arXiv 2307.07393)",
        measure=layers,
        holds=lambda seen: seen.gap("ldawa", "fedavg") > 0,
        goal="L-DAWA > FedAvg in the mean, Dirichlet 0.1, 20 local steps",
        unit="%",
    ),
    Claim(
        method="fisher",
        name="once",
        says="one merge by certainty is better than one plain mean of models trained apart",
        paper="direction (NeurIPS 2023 workshop FL@FM)",
        measure=certainty,
        holds=lambda seen: seen.gap("merged", "mean") > 0,
        goal="Fisher merging > mean after one round of 40 steps, in the mean",
        unit="%",
    ),
)
