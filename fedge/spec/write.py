"""A federation written out: YAML with every default filled in."""

from __future__ import annotations

from typing import Any

import yaml

from fedge import units
from fedge.spec.availability import write_availability
from fedge.spec.device import DeviceSpec
from fedge.spec.faults import write_faults
from fedge.spec.federation import FederationSpec
from fedge.spec.stage import write_stage


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    def ignore_aliases(self, data: Any) -> bool:
        return True


def resolved(spec: FederationSpec) -> str:
    """The federation as YAML with every default filled in; read again, it gives an equal spec."""
    first: dict[str, DeviceSpec] = {}
    for device in spec.devices:
        first.setdefault(device.group, device)
    document = {
        "name": spec.name,
        "seed": spec.seed,
        "model": spec.model.model_dump(),
        "data": spec.data.model_dump(),
        "devices": {name: _write_group(device, spec.groups[name].count) for name, device in first.items()},
        **({"remote": spec.remote.model_dump()} if spec.elsewhere else {}),
        "emulation": spec.emulation.model_dump(),
        "evaluate": spec.evaluate.model_dump(),
        "stages": [write_stage(stage) for stage in spec.stages],
        **({"faults": write_faults(spec.faults)} if spec.faults else {}),
    }
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110, default_flow_style=None)


def _write_group(device: DeviceSpec, count: int) -> dict[str, Any]:
    link = device.link
    network = {
        "name": link.name,
        "trace": link.trace.file if link.trace else None,
        "down": None if link.trace else units.format_bitrate(link.down, exact=True),
        "up": None if link.trace else units.format_bitrate(link.up, exact=True),
        "latency": units.format_seconds(link.latency, exact=True),
        "jitter": units.format_seconds(link.jitter, exact=True),
        "loss": units.format_share(link.loss),
    }
    return {
        "profile": device.profile,
        "count": count,
        "network": {name: value for name, value in network.items() if value is not None},
        "memory": units.format_bytes(device.memory, exact=True),
        "compute": units.format_flops(device.flops, exact=True),
        "memory_bandwidth": units.format_byterate(device.memory_bandwidth, exact=True),
        "stack": device.stack,
        "availability": write_availability(device.availability, device.presence),
        "pin": device.pin,
        **({"remote": True} if device.remote else {}),
        "data_cap": None if device.data_cap is None else units.format_bytes(device.data_cap, exact=True),
        "energy_cap": None if device.energy_cap is None else units.format_joules(device.energy_cap, exact=True),
        "battery": None if device.battery is None else units.format_joules(device.battery, exact=True),
        "power": {
            "idle": units.format_watts(device.idle_power, exact=True),
            "active": units.format_watts(device.active_power, exact=True),
            **({} if device.radio_power is None else {"radio": units.format_watts(device.radio_power, exact=True)}),
        },
    }
