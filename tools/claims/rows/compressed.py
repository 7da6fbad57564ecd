"""Methods that are what they do to their messages: bytes against the same method uncompressed, and accuracy."""

from __future__ import annotations

from functools import cache

from fedge.core.method import Method
from fedge.core.server import ServerOptimizer
from fedge.methods.customize.compeft import ComPEFT
from fedge.methods.customize.fedavg import FedAvg
from fedge.methods.customize.fedobd import FedOBD
from fedge.methods.customize.flasc import FLASC
from fedge.methods.customize.lora import LoRA
from fedge.methods.customize.omc import OMC
from fedge.models.names import tensors
from tools.claims.claim import Claim, Figures, Seen
from tools.claims.world import BATCH, ROUNDS, STEPS, digits

#: Wide enough a model that names are not what a message is made of.
WIDTH = {"layers": 4, "hidden": 64}
LOW = {"steps": STEPS, "batch": BATCH, "lr": 1e-2, "rank": 8}
FULL = {"steps": STEPS, "batch": BATCH, "lr": 3e-3}
PLAIN = {"steps": STEPS, "batch": BATCH, "lr": 0.1, "optimizer": "sgd"}


@cache
def learnt(method: Method, seed: int, optimizer: ServerOptimizer | None = None) -> tuple[float, int, int]:
    """Accuracy after the usual rounds, and the bytes up and down of the last of them, all devices together."""
    world = digits(seed, **WIDTH)
    driven = world.run(method, ROUNDS, optimizer=optimizer)
    return world.accuracy(driven), sum(driven.up[-1].values()), sum(driven.down[-1].values())


def against(ours: Method, theirs: Method, seed: int, *, down: bool = True) -> Figures:
    accuracy, up, fell = learnt(ours, seed)
    other, whole_up, whole_fell = learnt(theirs, seed)
    mine, all_of_it = up + (fell if down else 0), whole_up + (whole_fell if down else 0)
    return {"times less": all_of_it / mine, "accuracy": accuracy, "uncompressed": other}


def sparse(seed: int) -> Figures:
    return against(FLASC(**LOW, down_density=0.05, up_density=0.05), LoRA(**LOW), seed)


def ternary(seed: int) -> Figures:
    return against(ComPEFT(**LOW, density=0.1, size="mean", feedback=True), LoRA(**LOW), seed, down=False)


def blocks(seed: int) -> Figures:
    found = against(FedOBD(**FULL, drop=0.5), FedAvg(**FULL), seed)
    return {"less": 1 - 1 / found["times less"], **found}


def small_floats(seed: int) -> Figures:
    accuracy, _, _ = learnt(OMC(**PLAIN), seed)
    whole, _, _ = learnt(FedAvg(**PLAIN), seed)
    world = digits(seed, **WIDTH)
    matrices = {n: t for n, t in tensors(world.base).items() if t.dim() >= 2}
    method = OMC()
    shares = []
    for name in "abcdefgh":  # which matrices are exact is drawn anew each time
        generator = world.begin(FedAvg()).devices["d00"].generator(name)
        sent = method.packed(matrices, method.exact(matrices, generator))
        shares.append(1 - sent.nbytes / sum(4 * t.numel() for t in matrices.values()))
    return {"less of matrices": sum(shares) / len(shares), "accuracy": accuracy, "uncompressed": whole}


def within(seen: Seen, points: float) -> bool:
    return seen.gap("uncompressed", "accuracy") <= points / 100


CLAIMS = (
    Claim(
        method="flasc",
        name="traffic",
        says="sparse messages both ways learn as much as LoRA with ten times less traffic",
        paper="about 10 and up to 16 times less at LoRA's accuracy (arXiv 2406.05233)",
        measure=sparse,
        holds=lambda seen: seen.mean("times less") >= 10 and within(seen, 1),
        goal="≥ 10 times fewer bytes both ways, within 1 point of LoRA, in the mean",
        unit="×",
    ),
    Claim(
        method="compeft",
        name="traffic",
        says="a change sent as signs of one size learns as much with eight times less traffic up",
        paper="8 to 50 times smaller at the accuracy of the whole adapter (arXiv 2311.13171, abstract)",
        measure=ternary,
        holds=lambda seen: seen.mean("times less") >= 8 and within(seen, 1),
        goal="≥ 8 times fewer bytes up, within 1 point of LoRA, in the mean",
        unit="×",
    ),
    Claim(
        method="fedobd",
        name="traffic",
        says="blocks that moved most, in few levels, learn as much with most of the traffic gone",
        paper="up to 88 % less (arXiv 2208.05174)",
        measure=blocks,
        holds=lambda seen: seen.mean("less") >= 0.8 and within(seen, 1),
        goal="≥ 80 % fewer bytes both ways at drop 0.5, within 1 point of FedAvg, in the mean",
        unit="%",
    ),
    Claim(
        method="omc",
        name="traffic",
        says="eleven-bit matrices take 59 % less and learn as much",
        paper="up to 59 % less memory and traffic at comparable error (ICASSP 2023)",
        measure=small_floats,
        holds=lambda seen: abs(seen.mean("less of matrices") - 0.59) <= 0.02 and within(seen, 1),
        goal="59 ± 2 % less of the matrices, within 1 point of FedAvg by SGD, in the mean",
        unit="%",
    ),
)
