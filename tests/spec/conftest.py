"""A small catalogue of its own, so that these tests don't change with the methods."""

import pytest

from fedge.spec.catalogue import Catalogue, CodecInfo, MethodInfo, OptionInfo

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
        roles=("delta",),
        linear=True,
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
        roles=("statistics",),
        linear=True,
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
        roles=("delta",),
        linear=True,
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
        roles=("delta",),
        nearest="anytime",
        final="exits",
        fields={"exits": OptionInfo("list[int]", (2, 4), "blocks with an exit")},
    ),
    MethodInfo(key="cho2023", name="HetLoRA", stages=("customize",), path="customize/fine-tune", nearest="lora"),
)

CHANGES, NUMBERS = ("delta", "gradients"), ("weights", "delta", "logits", "gradients")
ONLY = {"only": OptionInfo("list[str]", (), "roles to touch")}
FEEDBACK = OptionInfo("bool", True, "add what is left out later")


def codec(key, roles, steps, **fields):
    main = next(iter(fields), None)
    return CodecInfo(key, f"c:{key}", "small", "paper", roles, steps, fields={**fields, **ONLY}, main=main)


CODECS = (
    codec("svd", CHANGES, ("transform",), rank=OptionInfo("int", 4, "rank of what is sent"), feedback=FEEDBACK),
    codec("topk", CHANGES, ("sparsify",), fraction=OptionInfo("float", 0.1, "share that is sent"), feedback=FEEDBACK),
    codec("fp16", NUMBERS, ("quantise",)),
    codec("int8", NUMBERS, ("quantise",), block=OptionInfo("int", 512, "numbers that share a scale")),
    codec("qsgd", NUMBERS, ("quantise",), levels=OptionInfo("int", 127, "levels")),
    codec("ternary", CHANGES, ("sparsify", "quantise", "entropy"), fraction=OptionInfo("float", 0.05, "share")),
    codec("zstd", (*NUMBERS, "mask"), ("entropy",), level=OptionInfo("int", 3, "effort")),
)


@pytest.fixture(scope="session")
def catalogue():
    return Catalogue(METHODS, CODECS)
