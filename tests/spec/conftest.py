"""A small catalogue of its own, so that these tests don't change with the methods."""

import pytest

from fedge.spec.catalogue import Catalogue, MethodInfo, OptionInfo

LR = OptionInfo("float", 1e-3, "learning rate on the device")
STEPS = OptionInfo("int", 8, "optimizer steps a round")
METHODS = (
    MethodInfo(
        key="fedavg",
        name="FedAvg",
        stages=("train", "customize"),
        path="train/entire",
        built=True,
        module="m:FedAvg",
        nearest="fedavg",
        fields={"lr": LR, "steps": STEPS},
    ),
    MethodInfo(
        key="head",
        name="Head",
        stages=("customize",),
        path="customize/fine-tune",
        built=True,
        module="m:Head",
        nearest="head",
        fields={"lr": LR, "freeze_norm": OptionInfo("bool", True, "keep the norms")},
    ),
    MethodInfo(
        key="lora",
        name="LoRA",
        stages=("customize",),
        path="customize/fine-tune/additive/lora",
        built=True,
        module="m:Lora",
        aliases=("zhang2024a",),
        nearest="lora",
        fields={
            "lr": LR,
            "steps": STEPS,
            "rank": OptionInfo("int", 8, "rank of the adapters"),
            "targets": OptionInfo("list[str] | None", None, "modules that get adapters"),
            "optimizer": OptionInfo("str", "adamw", "on the device", ("adamw", "sgd")),
        },
    ),
    MethodInfo(
        key="anytime",
        name="Anytime",
        stages=("deploy",),
        path="deploy",
        built=True,
        module="m:Anytime",
        nearest="anytime",
        final="exits",
        fields={"exits": OptionInfo("list[int]", (2, 4), "blocks with an exit")},
    ),
    MethodInfo(key="cho2023", name="HetLoRA", stages=("customize",), path="customize/fine-tune", nearest="lora"),
)


@pytest.fixture(scope="session")
def catalogue():
    return Catalogue(METHODS)
