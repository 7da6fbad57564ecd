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
    "ffa_lora": "fedge.methods.customize.ffa_lora:FFALoRA",
    "fedex_lora": "fedge.methods.customize.fedex_lora:FedExLoRA",
    "fedsa_lora": "fedge.methods.customize.fedsa_lora:FedSALoRA",
    "flora": "fedge.methods.customize.flora:FLoRA",
    "flexlora": "fedge.methods.customize.flexlora:FlexLoRA",
    "hetlora": "fedge.methods.customize.hetlora:HetLoRA",
    "replication_padding": "fedge.methods.customize.replication_padding:ReplicationPadding",
    "fedmd": "fedge.methods.customize.fedmd:FedMD",
    "fed3r": "fedge.methods.customize.fed3r:Fed3R",
    "fedncm": "fedge.methods.customize.fedncm:FedNCM",
    "fedkseed": "fedge.methods.customize.fedkseed:FedKSeed",
    "fedper": "fedge.methods.customize.fedper:FedPer",
    "fedrep": "fedge.methods.customize.fedrep:FedRep",
    "fedbabu": "fedge.methods.customize.fedbabu:FedBABU",
    "ditto": "fedge.methods.customize.ditto:Ditto",
    "stages": "fedge.methods.combine.stages:Stages",
    "fedbuff": "fedge.methods.combine.fedbuff:FedBuff",
    "anytime": "fedge.methods.deploy.anytime:Anytime",
    "joint": "fedge.methods.deploy.joint:Joint",
    "depthfl": "fedge.methods.deploy.depthfl:DepthFL",
}

# the survey's key (survey.yaml), or another name in use -> our key
ALIASES: dict[str, str] = {
    "sun2022": "bitfit",
    "zhang2024a": "lora",
    "fedit": "lora",
    "sun2024ffa": "ffa_lora",
    "singhal2024": "fedex_lora",
    "guo2024fedsa": "fedsa_lora",
    "wang2024flora": "flora",
    "bai2024": "flexlora",
    "cho2023": "hetlora",
    "byun2024": "replication_padding",
    "fani2023": "fed3r",
    "legate2024": "fedncm",
    "liu2022": "anytime",
}
