"""What is put onto a frozen model: adapters and prompts, against full fine-tuning and the head alone."""

from __future__ import annotations

from fedge.methods.customize.houlsby import Houlsby
from fedge.methods.train.fedprompt import FedPrompt
from fedge.methods.train.promptfl import PromptFL
from fedge.models.load import MINILM, load
from fedge.models.names import trainable
from fedge.models.variant import assemble
from tools.claims.claim import Claim, Figures
from tools.claims.rows.tensors import FULL, HEAD
from tools.claims.world import BATCH, STEPS, digits, learnt

ADAPTERS = Houlsby(steps=STEPS, batch=BATCH, width=8, lr=1e-2)
PROMPTS = PromptFL(steps=STEPS, batch=BATCH, optimizer="adamw", lr=1e-2)


def adapters(seed: int) -> Figures:
    sent = len_of(trainable(assemble(ADAPTERS, digits(seed).base, seed).model))
    whole = len_of(dict(digits(seed).base.named_parameters()))
    full, head = learnt(FULL, seed), learnt(HEAD, seed)
    return {"adapters": learnt(ADAPTERS, seed), "full": full, "head": head, "share of numbers": sent / whole}


def prompts(seed: int) -> Figures:
    return {"prompts": learnt(PROMPTS, seed), "head": learnt(HEAD, seed), "full": learnt(FULL, seed)}


def share_of_minilm(seed: int) -> Figures:
    model = load(MINILM, "text-classification", classes=2, seed=seed).model
    method = FedPrompt(head=False)
    return {"share": len_of(trainable(assemble(method, model, seed).model)) / len_of(dict(model.named_parameters()))}


def len_of(tree: dict) -> int:  # type: ignore[type-arg]
    return sum(tensor.numel() for tensor in tree.values())


CLAIMS = (
    Claim(
        method="houlsby",
        name="accuracy",
        says="adapters come within 0.4 points of full fine-tuning",
        paper="GLUE 80.0 against 80.4 (arXiv 1902.00751)",
        measure=adapters,
        holds=lambda seen: seen.gap("full", "adapters") <= 0.004,
        goal="full − adapters ≤ 0.4 points in the mean",
        unit="%",
    ),
    Claim(
        method="houlsby",
        name="above-head",
        says="adapters learn more than the head alone",
        paper="direction (arXiv 1902.00751)",
        measure=adapters,
        holds=lambda seen: seen.gap("adapters", "head") > 0,
        goal="adapters > head in the mean",
        unit="%",
    ),
    Claim(
        method="promptfl",
        name="accuracy",
        says="prompts learn more than what a frozen model shows without them",
        paper="direction (arXiv 2208.11625)",
        measure=prompts,
        holds=lambda seen: seen.gap("prompts", "head") > 0,
        goal="prompts and head > head alone in the mean",
        unit="%",
    ),
    Claim(
        method="fedprompt",
        name="traffic",
        says="prompts are about 0.01 % of a language model's numbers",
        paper="0.01 % (arXiv 2208.12268)",
        measure=share_of_minilm,
        holds=lambda seen: seen.worst("share") <= 0.001,
        goal="≤ 0.1 % of MiniLM, which is a fifth of the paper's models",
        unit="%",
    ),
)
