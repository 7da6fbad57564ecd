"""Low-rank adapters: what they cost, whether their mean is the mean of the updates, and what they learn."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fedge.methods.customize.fedavg import FedAvg
from fedge.methods.customize.fedex_lora import FedExLoRA
from fedge.methods.customize.fedsa_lora import FedSALoRA
from fedge.methods.customize.ffa_lora import FFALoRA
from fedge.methods.customize.flexlora import FlexLoRA
from fedge.methods.customize.flora import FLoRA
from fedge.methods.customize.head import Head
from fedge.methods.customize.hetlora import HetLoRA
from fedge.methods.customize.lora import LoRA
from fedge.methods.customize.replication_padding import ReplicationPadding
from fedge.models.names import ADAPTER_PREFIX, tensors
from fedge.testing.driver import Driven
from tools.claims.arms import ADAPTED, FEDIT, FULL, STEPPED, TARGETS
from tools.claims.claim import Claim, Figures
from tools.claims.costs import on_minilm, roberta_numbers
from tools.claims.world import STEPS, World, digits, learnt, own

FEDEX = FedExLoRA(**ADAPTED)
FLORA = FLoRA(**ADAPTED, scale=2.0)
FLEX = FlexLoRA(**ADAPTED, scale=2.0)
FFA = FFALoRA(**{**ADAPTED, "lr": 2e-2}, alpha=8.0)
FEDSA = FedSALoRA(**ADAPTED, alpha=8.0)
#: A rank for each of four devices, richest first.
RANKS = (8, 4, 2, 1)


def error_of_products(world: World, driven: Driven, scale: float, role: str, start: dict[str, Tensor]) -> float:
    """How far the weights after one round are from ``W + Σ p_k s B_k A_k``, relative to that sum; the worst module."""
    after, before = tensors(driven.final()), tensors(world.base)
    worst = 0.0
    for module in [name for name in before if name.rpartition(".weight")[0].rpartition(".")[2] in TARGETS]:
        if not module.endswith(".weight"):
            continue
        total, weight = torch.zeros_like(before[module], dtype=torch.float64), 0.0
        for payloads in driven.sent[0].values():
            a, b = (payloads[0][role][f"{ADAPTER_PREFIX}{module[:-7]}.lora_{f}.weight"].double() for f in "AB")
            if role == "delta":
                a = a + start[f"{ADAPTER_PREFIX}{module[:-7]}.lora_A.weight"].double()
            total += payloads[0].weight * scale * b @ a
            weight += payloads[0].weight
        meant = total / weight
        got = after[module].double() - before[module].double()
        worst = max(worst, float((got - meant).norm() / meant.norm()))
    return worst


def exactness(seed: int) -> Figures:
    """One round from a common start (A alike, B = 0), in float32: the three exact methods, and FedIT beside them."""
    world = digits(seed)
    found = {}
    for name, method, role in (
        ("FedEx-LoRA", FEDEX, "weights"),
        ("FLoRA", FLORA, "weights"),
        ("FlexLoRA", replace(FLEX, rank=16), "weights"),
        ("FedIT", FEDIT, "delta"),
    ):
        driven = world.begin(method)
        start = dict(driven.state.get("weights", {}))
        found[name] = error_of_products(world, driven.go(1), 2.0, role, start)
    return found


def fedit_and_local(seed: int) -> Figures:
    """On the common test rows: the federation's adapter, and the mean over devices that were trained alone."""
    world = digits(seed)
    alone = []
    for name, rows in world.parts().items():
        driven = world.run(replace(FEDIT, steps=6 * STEPS), 1, {name: rows})
        alone.append(world.accuracy(driven))
    return {"FedIT": learnt(FEDIT, seed), "alone": float(np.mean(alone))}


def fedex(seed: int) -> Figures:
    return {"FedEx-LoRA": learnt(FEDEX, seed), "FedIT": learnt(FEDIT, seed)}


def flora(seed: int) -> Figures:
    return {"FLoRA": learnt(FLORA, seed), "FedIT": learnt(FEDIT, seed)}


def flex(seed: int) -> Figures:
    """Devices of ranks 8, 4, 2, 1 beside FedIT at the lowest of these, which is all that everyone can run."""
    world = digits(seed)
    names = sorted(world.parts())
    variants = {name: replace(FLEX, rank=rank) for name, rank in zip(names, RANKS, strict=True)}
    driven = world.run(replace(FLEX, rank=max(RANKS)), variants=variants)
    return {"FlexLoRA": world.accuracy(driven), "rank 1 for all": learnt(replace(FEDIT, rank=1, alpha=2.0), seed)}


def het(seed: int) -> Figures:
    world = digits(seed)
    method = HetLoRA(**{**ADAPTED, "rank": max(RANKS)}, scale=2.0)
    names = sorted(world.parts())
    variants = {name: replace(method, rank=rank) for name, rank in zip(names, RANKS, strict=True)}
    return {
        "HetLoRA": world.accuracy(world.run(method, variants=variants)),
        "rank 1 for all": learnt(replace(FEDIT, rank=1, alpha=2.0), seed),
        "rank 8 for all": learnt(replace(FEDIT, rank=8, alpha=16.0), seed),
    }


def ffa(seed: int) -> Figures:
    driven = digits(seed).begin(FFA)
    before = {n: t.clone() for n, t in tensors(driven.devices["d00"].model).items() if "lora_A" in n}
    driven.go(3)
    after = tensors(driven.server.method.adapter(driven.server, driven.state))  # type: ignore[arg-type]
    return {"change of A": max(float((after[name] - tensor).abs().max()) for name, tensor in before.items())}


def ffa_traffic(seed: int) -> Figures:
    """Without the classifier, which both send, and without the frames."""
    head = roberta_numbers(Head())[0]
    return {"share of LoRA": (roberta_numbers(FFALoRA())[0] - head) / (roberta_numbers(LoRA())[0] - head)}


def ffa_accuracy(seed: int) -> Figures:
    return {"FFA-LoRA": learnt(FFA, seed), "FedIT": learnt(FEDIT, seed)}


def fedsa(seed: int) -> Figures:
    world = digits(seed)
    local = world.alone(FEDIT, world.parts(), 6 * STEPS)
    return {"FedSA-LoRA": own(FEDSA, seed), "FedIT": own(FEDIT, seed), "alone": float(np.mean(list(local.values())))}


def lora_traffic(seed: int) -> Figures:
    trained, whole = roberta_numbers(LoRA())
    return {"times less": whole / trained}


def lora_frame(seed: int) -> Figures:
    return {"times less": on_minilm(FedAvg()).bytes_up / on_minilm(LoRA()).bytes_up}


def replication(seed: int) -> Figures:
    """Ten devices, one of which is rich after the first round: what they send beside all at the higher rank."""
    world = digits(seed)
    method = ReplicationPadding(**STEPPED, lr=1e-2, targets=TARGETS, rank=20, low=5, rich=0.1)
    driven = world.run(method, 3, world.parts(10))
    sizes = []
    for payloads in driven.sent[-1].values():
        sizes.append(sum(t.numel() for n, t in payloads[0]["weights"].items() if ".lora_" in n))
    high = max(sizes)
    return {"share of rank 20 for all": float(np.mean(sizes)) / high}


def full_and_fedit(seed: int) -> Figures:
    return {"full": learnt(FULL, seed), "FedIT": learnt(FEDIT, seed)}


CLAIMS = (
    Claim(
        method="lora",
        name="traffic",
        says="less traffic than full fine-tuning of RoBERTa-base, rank 8 on query and value",
        paper="141× (FedPETuning, ACL Findings 2023)",
        measure=lora_traffic,
        holds=lambda seen: abs(seen.mean("times less") - 141) <= 1,
        goal="within 1 of 141×",
        unit="×",
        data=(),
    ),
    Claim(
        method="lora",
        name="frame",
        says="the same for MiniLM, counted at the frame",
        paper="–",
        measure=lora_frame,
        holds=lambda seen: seen.mean("times less") >= 100,
        goal="≥ 100×",
        unit="×",
        data=(),
    ),
    Claim(
        method="lora",
        name="local",
        says="federated instruction tuning beats tuning alone (FedIT)",
        paper="direction (arXiv 2305.05644, GPT-4 as judge)",
        measure=fedit_and_local,
        holds=lambda seen: seen.gap("FedIT", "alone") > 0,
        goal="FedIT > alone on the common test rows, in the mean",
        unit="%",
    ),
    Claim(
        method="lora",
        name="full",
        says="close to full fine-tuning",
        paper="about 95 % of full's score (FedPETuning)",
        measure=full_and_fedit,
        holds=lambda seen: seen.mean("FedIT") >= 0.95 * seen.mean("full"),
        goal="≥ 95 % of full's accuracy",
        unit="%",
    ),
    Claim(
        method="fedex_lora",
        name="exact",
        says="the aggregated weight is the mean of the products; FedIT's is not",
        paper="exact (arXiv 2410.09432, section 4)",
        measure=exactness,
        holds=lambda seen: seen.worst("FedEx-LoRA") <= 1e-4 < min(seen["FedIT"]),
        goal="relative error ≤ 1e-4 in float32 (≤ 1e-6 in float64 is tested), FedIT's larger",
    ),
    Claim(
        method="fedex_lora",
        name="accuracy",
        says="better than FedIT",
        paper="85.99 against 83.57 (Llama-3.2 3B, commonsense)",
        measure=fedex,
        holds=lambda seen: seen.gap("FedEx-LoRA", "FedIT") > 0,
        goal="> FedIT in the mean",
        unit="%",
    ),
    Claim(
        method="flora",
        name="exact",
        says="stacking is the mean of the products",
        paper="exact (arXiv 2409.05976, section 3)",
        measure=exactness,
        holds=lambda seen: seen.worst("FLoRA") <= 1e-4,
        goal="relative error ≤ 1e-4 in float32 (≤ 1e-6 in float64 is tested)",
    ),
    Claim(
        method="flora",
        name="accuracy",
        says="better than FedIT",
        paper="MMLU and MT-bench, homogeneous and heterogeneous ranks (table 1)",
        measure=flora,
        holds=lambda seen: seen.gap("FLoRA", "FedIT") > 0,
        goal="> FedIT in the mean",
        unit="%",
    ),
    Claim(
        method="flexlora",
        name="exact",
        says="at a rank that holds all updates nothing is lost",
        paper="exact (arXiv 2402.11505, section 3)",
        measure=exactness,
        holds=lambda seen: seen.worst("FlexLoRA") <= 1e-4,
        goal="relative error ≤ 1e-4 in float32 (≤ 1e-6 in float64 is tested)",
    ),
    Claim(
        method="flexlora",
        name="accuracy",
        says="devices of several ranks do better than all at the lowest",
        paper="better than FedIT-like baselines in every mix of ranks (table 2)",
        measure=flex,
        holds=lambda seen: seen.gap("FlexLoRA", "rank 1 for all") > 0,
        goal="> rank 1 for all, in the mean",
        unit="%",
    ),
    Claim(
        method="hetlora",
        name="accuracy",
        says="better than one rank for all, at either extreme",
        paper="direction (arXiv 2401.06432, figure 4)",
        measure=het,
        holds=lambda seen: seen.mean("HetLoRA") > max(seen.mean("rank 1 for all"), seen.mean("rank 8 for all")),
        goal="> both, in the mean",
        unit="%",
    ),
    Claim(
        method="replication_padding",
        name="traffic",
        says="with one rich device in ten, traffic falls to a third of everyone's at the higher rank",
        paper="0.69 MB against 2.11 MB, 0.327 (arXiv 2406.17477)",
        measure=replication,
        holds=lambda seen: abs(seen.mean("share of rank 20 for all") - 0.325) <= 0.01,
        goal="0.325 ± 0.01 (ranks 20 and 5)",
    ),
    Claim(
        method="ffa_lora",
        name="frozen",
        says="A never changes, so that the mean of products is the product of means",
        paper="exact (arXiv 2403.12313)",
        measure=ffa,
        holds=lambda seen: seen.worst("change of A") == 0,
        goal="= 0 after three rounds",
    ),
    Claim(
        method="ffa_lora",
        name="traffic",
        says="half of LoRA's traffic",
        paper="half (arXiv 2403.12313)",
        measure=ffa_traffic,
        holds=lambda seen: abs(seen.mean("share of LoRA") - 0.5) <= 0.01,
        goal="0.5 ± 0.01, the classifier apart (RoBERTa-base)",
        data=(),
    ),
    Claim(
        method="ffa_lora",
        name="accuracy",
        says="better than LoRA averaged by factors, without noise",
        paper="17.1 against 15.3 (GSM8K, LLaMA)",
        measure=ffa_accuracy,
        holds=lambda seen: seen.gap("FFA-LoRA", "FedIT") > 0,
        goal="> FedIT in the mean, at twice its learning rate",
        unit="%",
    ),
    Claim(
        method="fedsa_lora",
        name="personal",
        says="sharing A alone serves each device better than sharing both factors",
        paper="best mean over GLUE of all baselines (arXiv 2410.01463, table 1)",
        measure=fedsa,
        holds=lambda seen: seen.gap("FedSA-LoRA", "FedIT") > 0,
        goal="> FedIT on the devices' own mixes; beside it, training alone",
        unit="%",
    ),
)
