"""YAML to frozen values with the place of every mistake. Nothing here imports torch."""

from fedge.spec.catalogue import Catalogue, MethodInfo, OptionInfo
from fedge.spec.device import DeviceSpec, LinkSpec, Profile
from fedge.spec.federation import (
    DataSpec,
    EmulationSpec,
    EvaluateSpec,
    FederationSpec,
    ModelSpec,
    PartitionSpec,
    load_federation,
    resolved,
)
from fedge.spec.stage import ExportSpec, ServerSpec, StageSpec

__all__ = [
    "Catalogue",
    "DataSpec",
    "DeviceSpec",
    "EmulationSpec",
    "EvaluateSpec",
    "ExportSpec",
    "FederationSpec",
    "LinkSpec",
    "MethodInfo",
    "ModelSpec",
    "OptionInfo",
    "PartitionSpec",
    "Profile",
    "ServerSpec",
    "StageSpec",
    "load_federation",
    "resolved",
]
