"""FedPCL: frozen backbones, a projection of each device's own, and class prototypes exchanged (Tan et al. 2022).

arXiv 2209.10083. A device's prototype of a class is the mean of its rows' projections z (of unit length). It trains its
projection h by ``L = L_G + Σ_p L_p``, the contrast of each row with the global prototypes and with every device's::

    L_S(x, y) = −log e^{z·c_y/τ} / Σ_{a in S} e^{z·c_a/τ}

over the classes that the set S has. h never leaves the device, no embedding of a row does.

It is longer than other methods because its answer depends on which classes a device holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedge.core.fit import Batch
from fedge.core.method import Card, Device, Method, Replies, Rows, Server, State
from fedge.core.payload import Payload, Tree
from fedge.core.value import value
from fedge.data import rows as data
from fedge.methods.tuning import Tuning, doc
from fedge.models.features import features
from fedge.models.names import load, trainable
from fedge.models.projected import project, projection_of

#: What is added to the logit of a class that has no prototype, in units of 1/τ: below any cosine's.
_NONE = -2.0


@dataclass(frozen=True, kw_only=True)
class FedPCL(Tuning):
    """Prototypes up; down the global ones and those of every device. The first round only gathers them."""

    batch: int = field(default=32, metadata=doc("rows in a step"))
    weight_decay: float = field(default=1e-4, metadata=doc("on the device"))
    tau: float = field(default=0.07, metadata=doc("τ: temperature of the contrast"))
    width: int = field(default=256, metadata=doc("numbers in a prototype"))
    weighting: Literal["rows", "uniform"] = field(
        default="rows", metadata=doc("what a device counts by in a class's global prototype", "rows", "uniform")
    )
    predict_with: Literal["local", "global"] = field(
        default="local", metadata=doc("the prototypes by which a device's own model predicts", "local", "global")
    )

    card: ClassVar[Card] = Card(
        name="FedPCL",
        summary="a frozen backbone; devices exchange class prototypes and train projections of their own against them",
        paper="Tan et al. 2022, arXiv 2209.10083",
        stages=("train", "customize"),
        path="train/partial/additive",
        leaves=("the mean projection of each class that the device holds", "the number of its rows in each class"),
        stars=(1, 2, 2),
        deviations=(
            "one backbone; the paper concatenates the embeddings of several",
            "the model that the stage leaves for all has the projection from which everyone began and the global "
            "prototypes; a device's own model is its personal one",
            "one view of each row; the release augments",
            "a device's set says nothing of a class that it lacks; the release fills it in from the global prototypes",
            "a device that misses rounds stays in the tables with its last prototypes",
            "the survey lets devices share embeddings of rows; the paper's are class prototypes",
        ),
        tasks=("image-classification", "text-classification"),
        alternatives=("fedncm", "head", "fed3r"),
        roles=("prototypes",),
        final="extended",
        waives=(
            ("still", "prototypes are computed whether a device trained or not"),
            ("bytes", "a device sends the classes that it holds; the plan is for all of them"),
        ),
    )
    gathers: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tau <= 0 or self.width <= 0 or self.depth != 1:
            raise ValueError(f"tau and width above 0, depth 1, not {self.tau}, {self.width}, {self.depth}")
        if self.prox or self.calibrate:
            raise ValueError("a projection stays on its device and learns from prototypes: prox and calibrate are 0")

    def variants(self) -> Sequence[Method]:
        return [self, replace(self, micro_batch=max(1, self.batch // 8))]

    def build(self, base: nn.Module) -> nn.Module:
        model = project(base, self.width, self.tau).requires_grad_(False)
        own = projection_of(model).projected
        for layer in (own.first, own.second):
            layer.requires_grad_(True)
        return model

    def init(self, srv: Server) -> State:
        return {"tables": {}}

    def down(self, srv: Server, state: State, device: str) -> Payload:
        """The global prototypes, and each device's by its number among those who have sent some."""
        tables = state["tables"]
        sent = {} if not tables else self.together(tables, srv.task.classes)
        for number, name in enumerate(sorted(tables)):
            sent |= {f"{number}.{piece}": tables[name][piece] for piece in ("z", "classes")}
        return Payload({"prototypes": sent})

    def together(self, tables: dict[str, Tree], classes: int) -> Tree:
        """``c_y``, the mean over the devices that hold y, of unit length; and which classes there are."""
        total = torch.zeros(classes, self.width)
        weights = torch.zeros(classes)
        for name in sorted(tables):
            table = tables[name]
            share = table["counts"].float() if self.weighting == "rows" else torch.ones(len(table["counts"]))
            total.index_add_(0, table["classes"], table["z"] * share[:, None])
            weights.index_add_(0, table["classes"], share)
        means = functional.normalize(total / weights.clamp_min(1)[:, None], dim=-1)
        return {"z": means, "there": weights > 0}

    def client(self, dev: Device, down: Payload) -> Payload:
        load(dev.model, dev.state.get("h", {}))
        rows, sets = self.kept_rows(dev), _sets(down["prototypes"], dev.task.classes)
        if sets:
            self.train(dev, lambda model, batch: self.contrast(model, batch, sets), {}, rows)
        dev.state["h"] = {name: parameter.detach().clone() for name, parameter in trainable(dev.model).items()}
        return Payload({"prototypes": self.prototypes(dev, rows)}, weight=len(dev.data))

    def kept_rows(self, dev: Device) -> Rows:
        """What enters the projection for each row, computed once: nobody trains what comes before."""
        if "features" not in dev.state:
            size, into = self.micro_batch or self.batch, projection_of(dev.model)
            found = [(features(dev.model, dev.task.inputs(c), into), c["labels"]) for c in dev.data.chunks(size)]
            dev.state["features"], dev.state["labels"] = (torch.cat(column) for column in zip(*found, strict=True))
        return data.Rows({name: dev.state[name] for name in ("features", "labels")}, dev.task.kind)

    def contrast(self, model: nn.Module, batch: Batch, sets: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """``L_G + Σ_p L_p``, each the mean over the rows; a row whose class a set lacks counts 0 in it."""
        z = projection_of(model).project(batch["features"])
        total = torch.zeros(())
        for prototypes, there in sets:
            logits = (z @ functional.normalize(prototypes, dim=-1).T / self.tau).masked_fill(~there, -1e9)
            each = functional.cross_entropy(logits, batch["labels"], reduction="none")
            total = total + (each * there[batch["labels"]]).mean()
        return total

    @torch.no_grad()
    def prototypes(self, dev: Device, rows: Rows) -> Tree:
        """The mean projection of each class that the device holds, and its number of rows."""
        model = dev.model.eval()
        sums = torch.zeros(dev.task.classes, self.width)
        counts = torch.zeros(dev.task.classes, dtype=torch.int64)
        for chunk in rows.chunks(self.batch):
            sums.index_add_(0, chunk["labels"], projection_of(model).project(chunk["features"]))
            counts.index_add_(0, chunk["labels"], torch.ones_like(chunk["labels"]))
        held = torch.tensor([c for c in range(len(counts)) if value(counts[c], traced=1.0) > 0])
        return {"z": sums[held] / counts[held][:, None], "classes": held, "counts": counts[held]}

    def update(self, srv: Server, state: State, replies: Replies) -> State:
        return {"tables": {**state["tables"], **{name: dict(reply["prototypes"]) for name, reply in replies.items()}}}

    def final(self, srv: Server, state: State) -> nn.Module:
        model = srv.model()
        if state["tables"]:
            found = self.together(state["tables"], srv.task.classes)
            self.fill(model, found["z"], found["there"])
        return model.requires_grad_(False)

    def personal(self, dev: Device, down: Payload) -> nn.Module | None:
        if "h" not in dev.state:  # it never took part
            return None
        load(dev.model, dev.state["h"])
        if self.predict_with == "global":
            found = down["prototypes"]
            if not found:  # no round has come to an end
                return None
        else:
            found = self.together({dev.name: self.prototypes(dev, self.kept_rows(dev))}, dev.task.classes)
        self.fill(dev.model, found["z"], found["there"])
        return dev.model

    @torch.no_grad()
    def fill(self, model: nn.Module, prototypes: Tensor, there: Tensor) -> None:
        """Let the model tell classes by these prototypes; what it shares with others is not written."""
        last = projection_of(model).projected.last
        last.weight.data = prototypes.to(last.weight.dtype)
        last.bias.data = torch.where(there, 0.0, _NONE / self.tau).to(last.bias.dtype)


def _sets(sent: Tree, classes: int) -> list[tuple[Tensor, Tensor]]:
    """Every set of prototypes as ``[classes, width]`` and which classes it has; the global one first."""
    found = [(sent["z"], sent["there"])] if "z" in sent else []
    for number in range(sum(name.endswith(".classes") for name in sent)):
        z, held = sent[f"{number}.z"], sent[f"{number}.classes"]
        table, there = torch.zeros(classes, z.shape[1]), torch.zeros(classes, dtype=torch.bool)
        found.append((table.index_copy(0, held, z), there.index_fill(0, held, True)))
    return found
