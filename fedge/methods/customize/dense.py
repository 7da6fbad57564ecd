"""DENSE: one upload of trained models, and a generator on the server instead of data (Zhang et al. 2022, 2112.12371).

The ensemble ``D(x) = mean_k f_k(x)`` is inverted into images: a generator is begun anew and trained together with its
noise for ``λ_CE CE(D(x̃), y) − λ_adv mean(1[argmax s ≠ argmax D] KL(D ‖ s))``, labels it well and student s wrongly; the
batch of least loss joins a pool. After each, the student passes once through the pool by ``KD(s ‖ D; T)``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise, repeat
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedge.core.fit import Batch, fit
from fedge.core.method import Card, Replies, Server, State
from fedge.errors import MissingError
from fedge.methods.customize.fedavg import FedAvg
from fedge.methods.distil import kd
from fedge.methods.tuning import average, doc, start_of
from fedge.models.names import load, trainable


@dataclass(frozen=True, kw_only=True)
class DENSE(FedAvg):
    """Meant for a stage of one round with many ``steps``; the server works ``digest`` epochs of generator and pool."""

    steps: int = field(default=50, metadata=doc("optimizer steps on the device before it sends its model"))
    digest: int = field(default=20, metadata=doc("epochs of the server: a batch is generated, the pool gone through"))
    invert: int = field(default=30, metadata=doc("steps of the generator for a batch"))
    images: int = field(default=64, metadata=doc("images in a batch that is generated"))
    noise: int = field(default=64, metadata=doc("width of the generator's input"))
    generator_lr: float = field(default=1e-3, metadata=doc("learning rate of generator and noise"))
    student_lr: float = field(default=1e-2, metadata=doc("learning rate of the student"))
    temperature: float = field(default=20.0, metadata=doc("T of the student's distillation"))
    hard: float = field(default=1.0, metadata=doc("λ_adv: weight of images on which student and ensemble disagree"))
    low: float = field(default=0.0, metadata=doc("least value of a pixel as the model takes it"))
    high: float = field(default=1.0, metadata=doc("greatest value of a pixel as the model takes it"))

    card: ClassVar[Card] = replace(
        FedAvg.card,
        name="DENSE (data-free one-shot)",
        summary="one upload of trained models; the server invents images on which their ensemble teaches one student",
        paper="Zhang et al. 2022, arXiv 2112.12371",
        stages=("customize",),
        path="customize/contraction/distillation",
        leaves=("the change of every trained weight, from which images like the rows' can be made", "number of rows"),
        stars=(3, 1, 1),
        deviations=(
            "no loss on batch normalisation's statistics: transformers have none, and buffers don't travel",
            "all devices train the one base; the student begins as the mean of their models",
            "the generator is three linear layers; the release's is a convolutional net",
            "the survey's 'KD instead of a semantic loss' is the paper's adversarial term, here beside the label's",
            *FedAvg.card.deviations,
        ),
        tasks=("image-classification",),
        alternatives=("feddf", "fedavg"),
        family="own",
        claims=(),
    )
    linear: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("invert", "images", "noise", "generator_lr", "student_lr", "temperature"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)}")
        if self.images < 2 or self.hard < 0 or self.low >= self.high:
            raise ValueError("images is 2 or more, hard 0 or more, low below high")

    def init(self, srv: Server) -> State:
        image_shape(srv.base())
        return super().init(srv)

    def update(self, srv: Server, state: State, replies: Replies) -> State:
        teachers = []
        for reply in replies.values():
            teachers.append(srv.model())
            moved = {name: state["weights"][name] + delta for name, delta in reply["delta"].items()}
            load(teachers[-1], {**state["weights"], **moved})
            teachers[-1].eval().requires_grad_(False)
        state = average(srv, state, replies)
        student = srv.model()
        load(student, state["weights"])
        self.learn(student, teachers, srv)
        weights = start_of(student)
        return {**state, "weights": weights, "changed": sorted(weights)}

    def learn(self, student: nn.Module, teachers: Sequence[nn.Module], srv: Server) -> Tensor:
        """Teach the student by an ensemble; returns the pool ``[digest · images, channels, height, width]``."""
        shape, drawn = image_shape(srv.base()), srv.generator("images")
        pool, said = torch.empty(0, *shape), torch.empty(0, srv.task.classes)
        optimizer = torch.optim.SGD(trainable(student).values(), lr=self.student_lr, momentum=0.9)
        for _ in range(self.digest):
            made = self.invented(student, teachers, shape, srv.task.classes, drawn)
            with torch.no_grad():
                pool, said = torch.cat([pool, made]), torch.cat([said, ensemble(teachers, made)])
            steps = math.ceil(len(pool) / self.images)
            fit(student, _through(pool, said, self.images, drawn), loss=self.lesson, optimizer=optimizer, steps=steps)
        return pool

    def lesson(self, student: nn.Module, batch: Batch) -> Tensor:
        """``KD(s ‖ D; T)`` on images of the pool."""
        return kd(student(pixel_values=batch["pixel_values"]).logits, batch["teacher"], self.temperature)

    def invented(
        self,
        student: nn.Module,
        teachers: Sequence[nn.Module],
        shape: tuple[int, int, int],
        classes: int,
        drawn: torch.Generator,
    ) -> Tensor:
        """A batch of images by a generator begun anew: that of least loss among its steps."""
        generator = begun(self.noise, shape, drawn)
        noise = nn.Parameter(torch.randn(self.images, self.noise, generator=drawn))
        labels = torch.randint(classes, (self.images,), generator=drawn)
        best = [torch.full((), math.inf), torch.zeros(self.images, *shape)]
        trained = list(trainable(student).values())
        student.eval().requires_grad_(False)

        def loss(model: nn.Module, batch: Batch) -> Tensor:
            made = self.low + (self.high - self.low) * model(noise).view(-1, *shape)
            value = self.wanted(student(pixel_values=made).logits, ensemble(teachers, made), batch["labels"])
            better = value.detach() < best[0]
            best[:] = torch.where(better, value.detach(), best[0]), torch.where(better, made.detach(), best[1])
            return value

        optimizer = torch.optim.Adam([*generator.parameters(), noise], lr=self.generator_lr, betas=(0.5, 0.999))
        fit(generator, repeat({"labels": labels}), loss=loss, optimizer=optimizer, steps=self.invert)
        for parameter in trained:
            parameter.requires_grad_(True)
        return best[1]

    def wanted(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        """The generator's loss on images, from both sides' logits on them ``[images, classes]``."""
        differ = (student.argmax(-1) != teacher.argmax(-1)).float()
        gap = functional.kl_div(student.log_softmax(-1), teacher.log_softmax(-1), reduction="none", log_target=True)
        return functional.cross_entropy(teacher, labels) - self.hard * (differ * gap.sum(-1)).mean()


def image_shape(model: nn.Module) -> tuple[int, int, int]:
    """Channels, height and width of the images that a model takes. MissingError where its config doesn't tell."""
    config: Any = getattr(model, "config", None)
    size, channels = getattr(config, "image_size", None), getattr(config, "num_channels", None)
    if not isinstance(size, int) or not isinstance(channels, int):
        raise MissingError(
            f"the images that a {type(model).__name__} takes are not known",
            hint="dense needs a model whose config has image_size and num_channels; feddf needs none",
        )
    return channels, size, size


def ensemble(teachers: Sequence[nn.Module], images: Tensor) -> Tensor:
    """``D(x) = mean_k f_k(x)``: logits ``[images, classes]``."""
    return torch.stack([teacher(pixel_values=images).logits for teacher in teachers]).mean(0)


def begun(noise: int, shape: tuple[int, int, int], drawn: torch.Generator) -> nn.Module:
    """A generator from noise to numbers between 0 and 1, its weights drawn from ``drawn``."""
    widths = [noise, 2 * noise, 4 * noise, math.prod(shape)]
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.BatchNorm1d(after), nn.LeakyReLU(0.2)]
        nn.init.normal_(layers[-3].weight, std=before**-0.5, generator=drawn)  # type: ignore[arg-type]
        nn.init.zeros_(layers[-3].bias)  # type: ignore[arg-type]
    return nn.Sequential(*layers[:-1], nn.Sigmoid())


def _through(pool: Tensor, said: Tensor, size: int, drawn: torch.Generator) -> Iterator[Batch]:
    """The pool once, in a random order."""
    for index in torch.randperm(len(pool), generator=drawn).split(size):
        yield {"pixel_values": pool[index], "teacher": said[index]}
