"""One stage of a run: its coordinator on an engine, the tests and checkpoint after each round, and its closing."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from torch import nn

from fedge.core.rng import seed_everything
from fedge.report.snapshot import Passing
from fedge.run import figures
from fedge.run.answers import Outlines
from fedge.run.brief import Brief, changing_link, presence_of
from fedge.run.budgets import budget_of
from fedge.run.checkpoint import Checkpoint
from fedge.run.coordinator import Coordinator
from fedge.run.engine import Engine, run_round, run_stage
from fedge.run.evaluate import Tested
from fedge.run.faults import Faults
from fedge.run.folder import RunFolder, plain
from fedge.run.ledger import Account
from fedge.run.personal import accuracy, take_over, testing
from fedge.run.prepare import Prepared, setting_of
from fedge.run.questions import blame
from fedge.run.server import StageServer
from fedge.run.stash import STASH, Stash
from fedge.run.states import forget_states
from fedge.run.watch import Watch
from fedge.units import format_bytes, format_seconds

Say = Callable[[str], None]

#: Up to so many devices, each has a line of its own for what it picks.
_LISTED = 24


class Stage:
    """A stage under way, or taken up where ``checkpoint`` says. ``elapsed`` tells the seconds spent on the run."""

    def __init__(
        self,
        brief: Brief,
        base: nn.Module,
        prepared: Prepared,
        folder: RunFolder,
        checkpoint: Checkpoint,
        *,
        slots: int,
        say: Say,
        elapsed: Callable[[], float],
        watch: Watch,
    ):
        self.brief = brief
        self.prepared = prepared
        self.folder = folder
        self.checkpoint = checkpoint
        self.say = say
        self.elapsed = elapsed
        self.watch = watch
        self._tested: tuple[nn.Module, Tested] | None = None
        self._picks: list[dict[str, Any]] = []
        spec = prepared.spec
        accounts = [
            Account(
                device.name,
                budget_of(device, brief.deadline, brief.rounds),
                len(prepared.rows[device.name]),
                device.availability,
                changing_link(device),
                presence_of(device, spec.seed),
            )
            for device in spec.devices
        ]
        server = StageServer(brief, base, prepared.data.task, prepared.data.public)
        self.coordinator = Coordinator(
            brief,
            server,
            accounts,
            slots=slots,
            restart=spec.emulation.restart,
            now=checkpoint.now,
            stash=Stash(folder.file(*STASH)),
            faults=Faults(spec.faults, spec.seed, brief.index),
            elsewhere=[device.name for device in spec.elsewhere],
            outlines=Outlines(brief, setting_of(prepared, spec.stages[brief.index], base)) if spec.elsewhere else None,
        )
        self.own: dict[str, dict[str, Any]] = {}
        self.fresh = not checkpoint.open
        if self.fresh:
            checkpoint.began = checkpoint.now
        else:
            checkpoint.put(self.coordinator)
        watch.enter_stage(brief, self.coordinator)

    def run(self, engine: Engine, stopping: Callable[[], bool]) -> None:
        """All rounds that are left; see ``engine.run_stage`` for what it raises."""
        self.watch.enter_rounds(engine)
        try:
            run_stage(
                self.coordinator,
                engine,
                fresh=self.fresh,
                after_round=self._after_round,
                stopping=stopping,
                tell=self._tell,
            )
            self._judge_own(engine)
        finally:
            self._tell()
            self.watch.enter_rounds(None)

    @property
    def paced(self) -> bool:
        """Whether the devices are held to a real clock."""
        return self.prepared.spec.emulation.clock == "real"

    @property
    def judges_own(self) -> bool:
        """Whether devices have models of their own, which they judge after the rounds."""
        return self.brief.method.personalises

    def _judge_own(self, engine: Engine) -> None:
        rows = {name: len(held) for name, held in self.prepared.tests().items()}
        other = testing(self.coordinator, rows)
        if other is None:
            return
        self.say(Passing(f"{self.brief.stage}: devices test their own models"))
        run_round(other, engine, lambda: None)
        found = take_over(self.coordinator, other)
        self.own = {
            name: {**one, "accuracy": accuracy(one, self.prepared.mixes.get(name))} for name, one in found.items()
        }

    def close(self) -> tuple[dict[str, Any], nn.Module]:
        """The stage's record for the summary, with a line for each device, and the model that it leaves."""
        brief, accounts = self.brief, self.coordinator.accounts
        model, result = self._tested or self._test(None)
        accuracies = figures.per_device(self.prepared, brief.method, model, result.correct)
        metrics = dict(result.metrics)
        if accuracies:
            metrics["worst_device_accuracy"] = min(accuracies.values())
            metrics["mean_device_accuracy"] = sum(accuracies.values()) / len(accuracies)
        own = [one["accuracy"] for one in self.own.values() if one["accuracy"] is not None]
        if own:
            metrics["worst_personal_accuracy"] = min(own)
            metrics["mean_personal_accuracy"] = sum(own) / len(own)
        profiles = {device.name: device.profile for device in self.prepared.spec.devices}
        record = figures.stage_record(
            brief, accounts, metrics, self.coordinator.now - self.checkpoint.began, paced=self.paced
        )
        lines = figures.device_records(brief, accounts, profiles, accuracies, self.own, paced=self.paced)
        for line in lines:
            place = {"stage_index": brief.index, "round": None, "device": line["name"]}
            self.folder.append("metrics.jsonl", {**place, **line})
        found: dict[str, Any] = plain({"stage": record, "devices": lines})
        return found, model.requires_grad_(False)

    def _after_round(self) -> None:
        coordinator, brief = self.coordinator, self.brief
        self._tell()
        done = coordinator.round
        place = {"stage": brief.stage, "stage_index": brief.index}
        record: dict[str, Any] = {**place, "round": done - 1, "virtual_s": coordinator.now}
        if brief.trust is not None:
            record |= {"epsilon": brief.trust.epsilon(done), "delta": brief.trust.delta}
        for _, answered in sorted(coordinator.tally.figures.items()):
            self.folder.append("metrics.jsonl", {**record, **answered})
        line = f"{brief.stage} round {done}/{brief.rounds}: {coordinator.tally.words()}"
        if brief.trust is not None:
            line += f", epsilon {record['epsilon']:.3g}"
        metrics = None
        evaluate = self.prepared.spec.evaluate
        if done == brief.rounds or done % evaluate.every == 0:
            rows = None if done == brief.rounds else evaluate.rows
            self._tested = self._test(rows)
            metrics = self._tested[1].metrics
            self.folder.append("metrics.jsonl", {**record, "device": None, "rows": rows, **metrics})
            line += f", {figure(metrics)}"
        self.say(Passing(f"{line}, {coordinator.now:.1f} s emulated, {self.elapsed():.0f} s"))
        self._keep()
        self.watch.round_done(metrics)

    def _test(self, rows: int | None) -> tuple[nn.Module, Tested]:
        brief, coordinator = self.brief, self.coordinator
        coordinator.refresh()
        with blame(brief, "final"):
            seed_everything(*brief.seeds, coordinator.round, "server", "final")
            model = brief.method.final(coordinator.server, coordinator.state)
        with blame(brief, "predict"):
            return model, figures.tested(self.prepared, brief.method, model, rows)

    def _keep(self) -> None:
        """Write the checkpoint; what only an earlier one needed may go then."""
        place = self.folder.file("checkpoints")
        self.checkpoint.note(self.coordinator)
        self.checkpoint.metrics_size = self.folder.size("metrics.jsonl")
        self.checkpoint.wall_s = self.elapsed()
        self.checkpoint.save(place)
        states = {name: account.stateful for name, account in self.coordinator.accounts.items()}
        forget_states(place, self.brief.index, states)

    def _tell(self) -> None:
        notes, self.coordinator.notes = self.coordinator.notes, []
        many = len(self.coordinator.accounts) > _LISTED
        for note in notes:
            self.folder.append("events.jsonl", {"time": time.time(), **note})
            if many and note["event"] == "picked":
                self._picks.append(note)
            elif line := _line(note):
                self.say(Passing(line) if note["event"] == "picked" else line)
        if self._picks and self.coordinator.settled:
            for line in _together(self._picks):
                self.say(Passing(line))
            self._picks = []
        self.watch.look()


def _together(picks: list[dict[str, Any]]) -> list[str]:
    """One line for all devices that picked the same for the same reason."""
    groups: dict[tuple[str, str], list[str]] = {}
    for note in picks:
        what = f"{note['method']}{_brackets(note['variant'])}"
        groups.setdefault((what, note["reason"]), []).append(note["device"])
    lines = []
    for (what, reason), devices in groups.items():
        devices.sort()
        who = devices[0] if len(devices) == 1 else f"{len(devices)} devices ({devices[0]} … {devices[-1]})"
        lines.append(f"{who} {'picks' if len(devices) == 1 else 'pick'} {what}: {reason}")
    return lines


_ENDED = {"answered": "answered", "late": "answered too late", "surplus": "answered when enough others had"}


def _line(note: dict[str, Any]) -> str | None:
    """An event as a line of progress; None for those that are only kept."""
    event = note["event"]
    who = note.get("device") or f"{note['stage']} round {note['round']}"
    if event == "lost" and note["cause"] == "memory":
        peak = "unknown" if note["peak"] is None else format_bytes(note["peak"])
        return (
            f"{who} lost: out of memory in {note['phase']} with {note['method']}{_brackets(note['variant'])}, "
            f"peak {peak}, cap {format_bytes(note['cap'])}"
        )
    if event == "behind":
        return f"{who} fell behind by {format_seconds(note['behind_s'])}"
    if event == "reconsiders":
        return f"{who} reconsiders: {note['reason']}"
    if event == "lost":
        return f"{who} lost: {note['cause']} {note.get('detail') or ''}".rstrip()
    if event == "picked":
        return f"{who} picks {note['method']}{_brackets(note['variant'])}: {note['reason']}"
    if event == "fault" and note["ended"] != "lost":  # a loss is told by itself
        return f"{who}: {note['kind'].replace('_', ' ')}, and it {_ENDED[note['ended']]}"
    if event in ("left-out", "died", "abandoned", "skipped"):
        return f"{who}: {event}: {note.get('reason') or note.get('detail')}"
    return None


def _brackets(variant: dict[str, Any] | None) -> str:
    return "(" + ", ".join(f"{k}={v}" for k, v in variant.items()) + ")" if variant else ""


def figure(metrics: dict[str, Any]) -> str:
    """The figure by which a model is called good, in words."""
    if "perplexity" in metrics:
        return f"perplexity {metrics['perplexity']:.2f}"
    return f"accuracy {metrics['accuracy']:.4f}" if "accuracy" in metrics else "no figure"
