"""Which methods are built, and where. A key is a method's common name; an alias leads from a citation to it.

Nothing is imported here, torch least of all. After a change run ``python -m fedge.methods.generate``.
"""

# our key -> 'module:Class', sorted by stage and then as a reader would look for them
BUILT: dict[str, str] = {
    "split": "fedge.methods.train.split:Split",
    "fedavg": "fedge.methods.customize.fedavg:FedAvg",
    "head": "fedge.methods.customize.head:Head",
    "bitfit": "fedge.methods.customize.bitfit:BitFit",
    "lora": "fedge.methods.customize.lora:LoRA",
    "fedmd": "fedge.methods.customize.fedmd:FedMD",
    "stages": "fedge.methods.combine.stages:Stages",
    "fedbuff": "fedge.methods.combine.fedbuff:FedBuff",
    "anytime": "fedge.methods.deploy.anytime:Anytime",
}

# the survey's key (survey.yaml), or another name in use -> our key
ALIASES: dict[str, str] = {
    "sun2022": "bitfit",
    "zhang2024a": "lora",
    "liu2022": "anytime",
}
