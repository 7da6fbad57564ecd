"""YAML to frozen values with the place of every mistake. Nothing here imports torch."""

from fedge.spec.catalogue import Catalogue, MethodInfo, OptionInfo
from fedge.spec.data import DataSpec, PartitionSpec
from fedge.spec.device import DeviceSpec, LinkSpec, Profile
from fedge.spec.federation import (
    EmulationSpec,
    EvaluateSpec,
    FederationSpec,
    ModelSpec,
    load_federation,
)
from fedge.spec.stage import ExportSpec, ServerSpec, StageSpec
from fedge.spec.write import resolved

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
