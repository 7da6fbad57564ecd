"""What the tests of the low-rank methods share: runs in float64, and dense matrices written out."""

from dataclasses import dataclass

import torch

from fedge.data.rows import Rows
from fedge.testing.driver import drive
from tests.methods.conftest import three

#: A square and two oblong modules, so that a wrong orientation can't pass.
TARGETS = ("q_proj", "fc1", "fc2")
SMALL = {"steps": 2, "batch": 4, "lr": 1e-2, "targets": TARGETS}
PREFIX = "base_model.model."


@dataclass
class Double:
    """vit-nano in float64 with its rows."""

    model: torch.nn.Module
    task: object

    def devices(self):
        def doubled(one):
            columns = one.columns
            return Rows({**columns, "pixel_values": columns["pixel_values"].double()}, self.task.kind)

        return {device: doubled(one) for device, one in three(self).items()}


def go(method, found, rounds=1, variants=None, **more):
    data = found.devices() if isinstance(found, Double) else three(found)
    return drive(method, found.model, data, found.task, rounds, variants=variants, **more)


def modules(found):
    return [n for n, m in found.model.named_modules() if n.rpartition(".")[2] in TARGETS]


def factors(payload, module):
    """(A, B) that a device sent for a module; None where it trained none."""
    a = payload["weights"].get(f"{PREFIX}{module}.lora_A.weight")
    return None if a is None else (a.double(), payload["weights"][f"{PREFIX}{module}.lora_B.weight"].double())


def mean_product(sent, module, uniform=False):
    """``Σ p_k B_k A_k`` over those who trained the module."""
    products, weights = [], []
    for payloads in sent.values():
        pair = factors(payloads[0], module)
        if pair is not None:
            products.append(pair[1] @ pair[0])
            weights.append(1.0 if uniform else {5: 5.0, 9: 9.0, 2: 2.0, 1: 1.0}[payloads[0].weight])
    return sum(w * p for w, p in zip(weights, products, strict=True)) / sum(weights)


def dense(model):
    """Every adapted module's whole weight, by name: the frozen one and the adapter's product."""
    found = {}
    for name, module in model.named_modules():
        if hasattr(module, "lora_A"):
            a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
            found[name] = (module.base_layer.weight + module.scaling["default"] * b @ a).detach()
    return found


def apart(a, b):
    """The difference of two matrices relative to the second."""
    return float((a.double() - b.double()).norm() / b.double().norm())
