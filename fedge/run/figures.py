"""A run's figures: tests after rounds, baselines beside them, the records of ``metrics.jsonl`` and ``summary.json``."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from typing import Any

import numpy as np
import torch
from torch import nn

from fedge.core.method import Method
from fedge.data.baselines import baselines, encoder_features, features_baseline
from fedge.errors import FedgeError
from fedge.models.anatomy import anatomy
from fedge.models.exits import MultiExit
from fedge.models.names import tensors
from fedge.models.neighbours import Neighbours
from fedge.run.brief import Brief
from fedge.run.evaluate import BATCH, Tested, all_cores, by_device, share_of, test
from fedge.run.faults import total
from fedge.run.ledger import Account
from fedge.run.prepare import Prepared
from fedge.run.tally import BEHIND_S

#: Training rows among which a model without a trained head looks for neighbours, at most.
BANK_ROWS = 2000
#: Rows on which the frozen encoder's baseline is fitted and tested at most; the features take a forward pass each.
FEATURE_ROWS = (1000, 500)


def tested(prepared: Prepared, method: Method, model: nn.Module, rows: int | None) -> Tested:
    """Test a stage's model on at most ``rows`` of the held-out rows; each exit too where it has several."""
    test_rows = share_of(prepared.data.test, rows, prepared.spec.seed)
    if method.card.judged == "neighbours":
        near = neighbours(prepared, model)
        result = test(model, test_rows, prepared.data.task, near.predict)
        result.metrics["feature_spread"] = near.spread
        return result
    result = test(model, test_rows, prepared.data.task, method.predict)
    if isinstance(model, MultiExit):
        for place, point in enumerate(model.points):
            exit_only = test(model, test_rows, prepared.data.task, lambda m, x, i=place: m(**x)[i])  # type: ignore[misc]
            result.metrics[f"accuracy_exit_{point}"] = exit_only.metrics["accuracy"]
    return result


def neighbours(prepared: Prepared, model: nn.Module) -> Neighbours:
    """The training rows by whose labels a model without a trained head is tested."""
    bank = share_of(prepared.data.train, BANK_ROWS, prepared.spec.seed)
    with all_cores():
        return Neighbours(model, bank.chunks(BATCH), prepared.data.task.classes)


def per_device(prepared: Prepared, method: Method, model: nn.Module, correct: np.ndarray | None) -> dict[str, float]:
    """Each device's accuracy as the file asks: the test rows in its label mix, or its own held-out rows."""
    if prepared.own_test:
        task = prepared.data.task
        near = neighbours(prepared, model) if method.card.judged == "neighbours" else method
        return {
            device: test(model, prepared.data.train.take(rows), task, near.predict).metrics["accuracy"]
            for device, rows in prepared.own_test.items()
        }
    labels = prepared.data.test.labels
    if correct is None or labels is None or not prepared.mixes:
        return {}
    return by_device(correct, labels.numpy(), prepared.mixes)


def beside(prepared: Prepared) -> list[dict[str, Any]]:
    """The baselines: what a linear model on the raw data and the frozen encoder with a head reach on the same split."""
    found = baselines(prepared.raw, prepared.data, prepared.spec.seed)
    task = prepared.data.task
    if task.generative:
        return found
    try:
        parts = anatomy(prepared.loaded.model)
    except FedgeError:
        return found

    @torch.inference_mode()
    def features(batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        inputs = task.inputs(batch)
        hidden = parts.embed(inputs)
        mask = parts.mask(inputs, hidden)
        for index in range(parts.depth):
            hidden = parts.block(index, hidden, mask)
        return parts.pool(parts.finish(hidden), inputs)

    with all_cores():
        seed = prepared.spec.seed
        train = encoder_features(prepared.data.train, features, 64, FEATURE_ROWS[0], seed)
        held_out = encoder_features(prepared.data.test, features, 64, FEATURE_ROWS[1], seed)
    return [*found, features_baseline(*train, *held_out)]


def model_sha256(model: nn.Module) -> str:
    """A digest over a model's tensors by name, dtype, shape and bytes."""
    digest = sha256()
    for name, tensor in sorted(tensors(model).items()):
        digest.update(f"{name}|{tensor.dtype}|{list(tensor.shape)}|".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return digest.hexdigest()


def same_body(model: nn.Module, original: nn.Module) -> bool:
    """Whether all of the original but its head stands unchanged in ``model``."""
    heads = anatomy(original).head_prefixes
    here = tensors(model)
    return all(
        name.startswith(heads) or (name in here and torch.equal(here[name], tensor))
        for name, tensor in tensors(original).items()
    )


def stage_record(
    brief: Brief,
    accounts: Mapping[str, Account],
    metrics: Mapping[str, float],
    virtual_s: float,
    *,
    paced: bool = False,
) -> dict[str, Any]:
    """A stage's line in ``summary.json``; ``paced``: whether a real clock held the devices."""
    behind = {account.name: account.behind_s for account in accounts.values() if account.behind_s >= BEHIND_S}
    faults = total([account.faults for account in accounts.values()])
    took_part = [account for account in accounts.values() if account.rounds]
    return {
        "stage": brief.stage,
        "method": brief.key,
        "rounds": brief.rounds,
        "metrics": dict(metrics),
        "devices": len(took_part),
        "lost": sum(account.losses for account in accounts.values()),
        "virtual_s": virtual_s,
        "bytes_up": sum(account.bytes_up for account in accounts.values()),
        "bytes_down": sum(account.bytes_down for account in accounts.values()),
        "peak_memory": max((account.peak_memory for account in accounts.values()), default=0),
        "energy_j": sum(account.energy_j for account in accounts.values()),
        **({"behind": behind} if paced else {}),
        **({"faults": faults} if faults else {}),
        **({} if brief.trust is None else {"privacy": brief.trust.record(brief.rounds)}),
    }


def device_records(
    brief: Brief,
    accounts: Mapping[str, Account],
    profiles: Mapping[str, str],
    accuracies: Mapping[str, float],
    own: Mapping[str, Mapping[str, Any]],
    *,
    paced: bool = False,
) -> list[dict[str, Any]]:
    """Each device's line for one stage.

    own: what the test of its own model gave, where it has one. paced: whether a real clock held them.
    """
    lines = []
    for name, account in sorted(accounts.items()):
        offer = None if account.choice is None else brief.menu[account.choice]
        lines.append(
            {
                "name": name,
                "profile": profiles[name],
                "stage": brief.stage,
                "method": offer.method if offer else None,
                "variant": offer.variant if offer else {},
                "reason": account.reason,
                "rounds": account.rounds,
                "peak_memory": account.peak_memory,
                "predicted_peak_memory": offer.cost.peak_memory if offer else None,
                "budget_memory": account.budget.memory,
                "virtual_s": account.virtual_s,
                "bytes_up": account.bytes_up,
                "bytes_down": account.bytes_down,
                "energy_j": account.energy_j,
                "energy_parts": account.energy_parts,
                **({"behind_s": account.behind_s} if paced else {}),
                "accuracy": accuracies.get(name),
                "personal_accuracy": own[name]["accuracy"] if name in own else None,
                "personal_loss": own[name]["metrics"].get("loss") if name in own else None,
                "lost": account.lost,
                **({"faults": account.faults} if account.faults else {}),
            }
        )
    return lines
