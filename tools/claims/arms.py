"""The methods as the claims set them beside each other: one optimizer, and a learning rate for each kind."""

from __future__ import annotations

from fedge.methods.customize.bitfit import BitFit
from fedge.methods.customize.fedavg import FedAvg
from fedge.methods.customize.head import Head
from fedge.methods.customize.lora import LoRA
from tools.claims.world import BATCH, STEPS

#: As the ViT of the digits has them: attention's inputs, and the first of the MLP.
TARGETS = ("q_proj", "v_proj", "fc1")
STEPPED = {"steps": STEPS, "batch": BATCH}
#: Rank 4, s = 2, as in the calibration of the specifications.
ADAPTED = {**STEPPED, "rank": 4, "lr": 1e-2, "targets": TARGETS}

FULL = FedAvg(**STEPPED, lr=3e-3)
HEAD = Head(**STEPPED, lr=1e-2)
BIAS = BitFit(**STEPPED, lr=1e-2)
FEDIT = LoRA(**ADAPTED, alpha=8.0)
