"""PromptFL: soft prompts learnt together in place of a shared model (Guo et al. 2023, arXiv 2208.11625).

The paper's model is CLIP and its prompt (CoOp's) stands before the class names in the text encoder. The models here
have one encoder, so the prompt stands before the row itself: among an image's patches, or before a text's words.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from fedge.core.method import Card, Device
from fedge.core.payload import Payload
from fedge.methods.prompts import Prompts
from fedge.methods.tuning import doc, leave


@dataclass(frozen=True, kw_only=True)
class PromptFL(Prompts):
    """M vectors from N(0, 0.02²), trained by SGD and averaged alike."""

    lr: float = field(default=0.1, metadata=doc("learning rate on the device"))
    optimizer: Literal["adamw", "sgd"] = field(default="sgd", metadata=doc("on the device", "adamw", "sgd"))
    weighting: Literal["uniform", "rows"] = field(
        default="uniform", metadata=doc("what a device counts by in the mean", "uniform", "rows")
    )

    card: ClassVar[Card] = Card(
        name="PromptFL",
        summary="a frozen model; soft prompt vectors (and a new classifier) are trained and averaged",
        paper="Guo et al. 2023, arXiv 2208.11625",
        stages=("train", "customize"),
        path="train/test-time-adaptation",
        leaves=("the change of the prompt and of the classifier", "number of rows"),
        stars=(2, 1, 2),
        deviations=(
            "the paper's prompt stands before class names in CLIP's text encoder; here it stands before the row, in "
            "the one encoder that there is, and the classifier is trained too ('head: false' trains the prompt alone)",
            "a constant rate without CoOp's warm-up and cosine; a fixed number of local steps rather than an epoch",
            "one prompt for all classes",
            "the survey's one star for efficiency contradicts its own words on how little prompts send",
            "the survey lets each device fetch a model of its own; the paper has one for all, as here",
        ),
        tasks=("image-classification", "text-classification"),
        alternatives=("fedprompt", "lora", "bitfit", "fedavg"),
        family="tensors",
        final="extended",
        claims=("alone",),
    )
    linear: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weighting not in ("uniform", "rows"):
            raise ValueError(f"weighting is uniform or rows, not {self.weighting!r}")

    def client(self, dev: Device, down: Payload) -> Payload:
        start = self.enter(dev, down)
        self.train(dev, dev.task.loss, start)
        sent = leave(dev, start)
        return sent if self.weighting == "rows" else Payload(sent.parts, weight=1.0)
