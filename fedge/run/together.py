"""What the devices of a stage can't do together, told with its place in the file before anything starts."""

from __future__ import annotations

from fedge.emulation.link import transfer_seconds
from fedge.errors import ConfigError
from fedge.plan.choose import link_of
from fedge.plan.menu import Menu
from fedge.run.budgets import budget_of
from fedge.spec.federation import FederationSpec
from fedge.spec.stage import StageSpec
from fedge.units import format_bytes, format_seconds


def check(spec: FederationSpec, stage: StageSpec, menu: Menu) -> None:
    """Raise ConfigError for late answers that a method can't use, and for downloads that a link can't carry."""
    _late(spec, stage, menu)
    _carried(spec, stage, menu)


def _late(spec: FederationSpec, stage: StageSpec, menu: Menu) -> None:
    if stage.late == "carry" and menu.method.card.family != "tensors":
        message = f"'{stage.method}' can't use an answer to an earlier round's question"
        hint = "late: drop, or a method whose devices send changes of tensors, such as fedavg or lora"
        raise ConfigError(spec.problem(f"stages.{stage.index}.late", message, hint=hint))


def _carried(spec: FederationSpec, stage: StageSpec, menu: Menu) -> None:
    """In a mixed cohort everyone downloads what anyone has changed: refuse the member that makes it too much."""
    if stage.method != "auto" or stage.deadline is None:
        return
    down = min(offer.cost.bytes_down for offer in menu.offers)
    needs = {
        device.name: transfer_seconds(down, link_of(budget_of(device, stage.deadline)), "down")
        for device in spec.devices
    }
    slow = max(needs, key=lambda name: needs[name])
    if needs[slow] <= stage.deadline:
        return
    heaviest = max(menu.offers, key=lambda offer: offer.cost.trainable).method
    message = (
        f"every device downloads what any of them has changed, {format_bytes(down)} a round, for which {slow} needs "
        f"{format_seconds(needs[slow])} of {format_seconds(stage.deadline)}"
    )
    hint = f"leave out '{heaviest}', which changes most, or give a longer deadline"
    raise ConfigError(spec.problem(f"stages.{stage.index}.candidates", message, hint=hint))
