"""What the surveys say in general, and Table 3's stars measured again: from traces on MiniLM, nothing is trained."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from functools import cache

from scipy.stats import spearmanr

from fedge.core.cost import Cost
from fedge.errors import FedgeError
from fedge.methods.customize.bitfit import BitFit
from fedge.methods.customize.fedavg import FedAvg
from fedge.methods.customize.lora import LoRA
from fedge.methods.make import make
from fedge.methods.table import BUILT
from tools.claims.arms import BIAS, FEDIT
from tools.claims.claim import Claim, Figures
from tools.claims.costs import minilm, on_minilm
from tools.claims.world import learnt

#: What is asked of each kind of tuning; those that are built are counted.
SELECTIVE, ADDITIVE = ("bitfit",), ("lora", "houlsby", "promptfl", "fedprompt", "ffa_lora")
PROMPTS = ("promptfl", "fedprompt", "prompt_tuning")


def costs(keys: Sequence[str]) -> dict[str, Cost]:
    """What a round costs by those methods of ``keys`` that are built and run on MiniLM."""
    found = {}
    for key in keys:
        if key in BUILT:
            try:
                found[key] = on_minilm(make(key))
            except FedgeError:
                continue
    return found


def less_traffic(seed: int) -> Figures:
    """By how much a round's uploads shrink against full fine-tuning's, at the frame; the least and the most."""
    full = on_minilm(FedAvg())
    saved = [1 - cost.bytes_up / full.bytes_up for cost in costs((*SELECTIVE, *ADDITIVE)).values()]
    return {"least": min(saved), "most": max(saved)}


def additive(seed: int) -> Figures:
    full = on_minilm(FedAvg())
    times = [full.bytes_up / cost.bytes_up for cost in costs((*SELECTIVE, *ADDITIVE)).values()]
    return {"least": min(times), "most": max(times)}


def speed(seed: int) -> Figures:
    full, lora = on_minilm(FedAvg()), on_minilm(LoRA())
    return {"times less arithmetic": full.flops / lora.flops, "times less memory": full.peak_memory / lora.peak_memory}


def activations(seed: int) -> Figures:
    """Bytes of activations, beside LoRA's."""
    lora = on_minilm(LoRA()).parts["activations"]
    found = {f"{key} / LoRA": cost.parts["activations"] / lora for key, cost in costs(PROMPTS).items()}
    return {**found, "bias / LoRA": on_minilm(BitFit()).parts["activations"] / lora}


def bias_and_additive(seed: int) -> Figures:
    return {"bias": learnt(BIAS, seed), "LoRA": learnt(FEDIT, seed)}


@cache
def rated() -> tuple[tuple[str, tuple[int, int, int], Cost], ...]:
    """Methods of Table 3 that are built and run on MiniLM: (complexity, efficiency, scalability) and cost."""
    minilm()
    found = []
    for key in BUILT:
        method = make(key)
        stars = method.card.stars
        if stars is not None and "text-classification" in method.card.tasks:
            found += [(key, stars, cost) for cost in costs((key,)).values()]
    return tuple(found)


def stars(seed: int) -> Figures:
    """Spearman's rank correlation of stars with what they rate: efficiency with few bytes sent, scalability with
    little arithmetic and with little memory. Between −1 and 1; 0 where either does not differ at all."""
    found = rated()
    efficiency = [stars[1] for _, stars, _ in found]
    scalability = [stars[2] for _, stars, _ in found]
    return {
        "efficiency, bytes": _ranked(efficiency, [-cost.bytes_up for _, _, cost in found]),
        "scalability, arithmetic": _ranked(scalability, [-cost.flops for _, _, cost in found]),
        "scalability, memory": _ranked(scalability, [-float(cost.peak_memory) for _, _, cost in found]),
        "methods": float(len(found)),
    }


def _ranked(stars: Sequence[int], measured: Sequence[float]) -> float:
    if len(set(stars)) < 2 or len(set(measured)) < 2 or statistics.pvariance(measured) == 0:
        return 0.0
    return float(spearmanr(stars, measured).statistic)


CLAIMS = (
    Claim(
        method="survey",
        name="traffic",
        says="parameter-efficient tuning saves 98 to 99 % of the traffic",
        paper="98–99 % (arXiv 2504.21099)",
        measure=less_traffic,
        holds=lambda seen: seen.mean("least") >= 0.98,
        goal="the least saving ≥ 98 % (bias, LoRA and what else is built; MiniLM, at the frame)",
        unit="%",
        data=(),
    ),
    Claim(
        method="survey",
        name="additive",
        says="additive tuning sends 12 to 190 times less than full fine-tuning",
        paper="12–190× (arXiv 2509.05142, after FedPETuning)",
        measure=additive,
        holds=lambda seen: seen.mean("least") >= 12 and seen.mean("most") <= 190,
        goal="all within the range",
        unit="×",
        data=(),
    ),
    Claim(
        method="survey",
        name="lora-speed",
        says="LoRA trains faster and in less memory than full fine-tuning",
        paper="34.7× faster, 2.47× less memory (FLoRA, arXiv 2404.15182)",
        measure=speed,
        holds=lambda seen: seen.mean("times less arithmetic") >= 34.7 and seen.mean("times less memory") >= 2.47,
        goal="both figures, in arithmetic and peak memory of a round (MiniLM)",
        unit="×",
        data=(),
    ),
    Claim(
        method="survey",
        name="bias",
        says="bias tuning consistently outperforms additive fine-tuning",
        paper="direction (arXiv 2509.05142 on FedPEFT)",
        measure=bias_and_additive,
        holds=lambda seen: all(bias >= lora for bias, lora in zip(seen["bias"], seen["LoRA"], strict=True)),
        goal="bias ≥ LoRA on every seed",
        unit="%",
    ),
    Claim(
        method="survey",
        name="prompts",
        says="prompts suit the weakest devices",
        paper="direction (arXiv 2509.05142, 2504.21099)",
        measure=activations,
        holds=lambda seen: all(seen.mean(n) <= 1 for n in seen if not n.startswith("bias")) and len(seen) > 1,
        goal="a step with prompts holds no more activations than one with LoRA (MiniLM)",
        data=(),
    ),
    Claim(
        method="survey",
        name="stars",
        says="Table 3's stars rank methods by traffic and compute",
        paper="three columns of stars (arXiv 2509.05142, table 3)",
        measure=stars,
        holds=lambda seen: (
            min(seen.mean("efficiency, bytes"), seen.mean("scalability, arithmetic"), seen.mean("scalability, memory"))
            >= 0.5
        ),
        goal="rank correlations ≥ 0.5, over the methods that are rated, built and run on MiniLM",
        data=(),
    ),
)
