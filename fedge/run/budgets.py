"""What a device of the file grants, as the planner takes it. No torch."""

from __future__ import annotations

from fedge.core.cost import Budget
from fedge.spec.device import DeviceSpec


def budget_of(device: DeviceSpec, deadline: float | None, rounds: int = 1) -> Budget:
    """What a device of the file grants, for one stage's deadline and number of rounds.

    The battery is spread over all rounds, as if the device took part in each.
    """
    link = device.link
    return Budget(
        memory=device.memory,
        flops=device.flops,
        memory_bandwidth=device.memory_bandwidth,
        down=link.down,
        up=link.up,
        latency=link.latency,
        jitter=link.jitter,
        loss=link.loss,
        idle_power=device.idle_power,
        active_power=device.active_power,
        radio_power=device.radio_power,
        deadline=deadline,
        data=device.data_cap,
        energy=device.energy_cap,
        battery=None if device.battery is None else device.battery / rounds,
        per_op=device.per_op,
        slower=device.slower,
    )
