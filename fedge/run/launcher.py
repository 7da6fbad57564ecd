"""``up``: a federation's stages from its file to the closing table, with everything that it leaves in its run folder."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

import fedge
from fedge.data import store
from fedge.emulation import wall as walls
from fedge.errors import ConfigError, FedgeError, InfeasibleError, Interrupted, LimitError
from fedge.models.save import pack_state, restore, save, save_adapter
from fedge.run import figures
from fedge.run.brief import Brief, budget_of
from fedge.run.checkpoint import Checkpoint
from fedge.run.coordinator import Coordinator
from fedge.run.engine import Engine, run_stage
from fedge.run.folder import RunFolder, write_whole
from fedge.run.inline import Inline
from fedge.run.ledger import Account
from fedge.run.nursery import Nursery
from fedge.run.prepare import Prepared, briefs, prepare
from fedge.run.processes import Place, Processes
from fedge.run.seat import Ground
from fedge.run.server import StageServer
from fedge.spec import load_federation, resolved
from fedge.spec.federation import FederationSpec
from fedge.wire.bus import Hub

Say = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """How ``up`` is to run, beyond what the file says. slots: None takes the file's."""

    runs: Path = Path("runs")
    slots: int | None = None
    inline: bool = False
    best_effort: bool = False
    resume: Path | None = None


@dataclass
class Run:
    """A run that has ended: its folder and its summary."""

    folder: Path
    summary: dict[str, Any]

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The records of ``metrics.jsonl``."""
        return list(RunFolder(self.folder).read_lines("metrics.jsonl"))


def up(federation: str | Path, overrides: Sequence[str] = (), options: Options = Options(), say: Say = print) -> Run:  # noqa: B008
    """Run a federation to its end.

    Raises ConfigError for a wrong file, InfeasibleError when too few devices can take part, LimitError when a wall
    can't be had, Interrupted after Ctrl-C, MethodError for a method's own failure; the run folder says the same.
    """
    if options.resume is not None:
        folder = RunFolder.open(options.resume)
        spec = load_federation(folder.file("resolved.yaml"))
    else:
        spec = load_federation(federation, overrides)
        folder = None
    if spec.emulation.clock == "real":
        raise ConfigError(
            spec.problem("emulation.clock", "the real clock is not built yet", hint="clock: virtual is")
        )
    started = time.monotonic()
    torch.set_num_threads(1)
    limits = _limits(spec, options)
    prepared_folder = folder or RunFolder.new(spec.name, options.runs)
    with _scratch() as scratch:
        launch = _Launch(spec, prepared_folder, options, limits, scratch, say, started)
        if folder is None:
            launch.open(Path(federation))
        return launch.run()


@dataclass
class _Limits:
    wall: walls.Wall | None
    named: dict[str, Any]
    degraded: list[str] = field(default_factory=list)


def _limits(spec: FederationSpec, options: Options) -> _Limits:
    if options.inline:
        return _Limits(None, {"memory": "planner", "cpu": None, "network": "virtual"}, ["memory: inline has no walls"])
    degraded = []
    try:
        wall = walls.choose(spec.emulation.wall)  # type: ignore[arg-type]
    except LimitError as error:
        if not options.best_effort:
            raise LimitError(error.message, hint=error.hint or "--best-effort runs without it") from error
        wall = walls.choose("none")
        degraded.append(f"memory: {error.message}")
    if wall.name == "none" and not degraded:
        if not options.best_effort:
            raise LimitError("emulation.wall is none", hint="--best-effort runs without a memory wall")
        degraded.append("memory: no wall was asked for")
    return _Limits(wall, {"memory": wall.name, "cpu": None, "network": "virtual"}, degraded)


@contextmanager
def _scratch() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="fedge-run-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


class _Launch:
    """One run under way."""

    def __init__(
        self,
        spec: FederationSpec,
        folder: RunFolder,
        options: Options,
        limits: _Limits,
        scratch: Path,
        say: Say,
        started: float,
    ):
        self.spec = spec
        self.folder = folder
        self.options = options
        self.limits = limits
        self.scratch = scratch
        self.say = say
        self.started = started
        self.checkpoint = Checkpoint.load(folder.file("checkpoints"))
        self.stopping = False
        self.incarnations: dict[str, int] = {}
        self.nursery: Nursery | None = None
        self.base_file = scratch / "base.safetensors"
        self.final_model: nn.Module | None = None
        self.exports: list[dict[str, Any]] = []
        self.baselines: list[dict[str, Any]] = []

    # -- the run -----------------------------------------------------------------------------------------------------

    def open(self, federation: Path) -> None:
        """Write what the folder holds from the beginning."""
        source = federation / "federation.yaml" if federation.is_dir() else federation
        self.folder.write("federation.yaml", source.read_bytes())
        self.folder.write("resolved.yaml", resolved(self.spec))
        host = {
            "fedge": fedge.__version__,
            "torch": torch.__version__,
            "cores": len(os.sched_getaffinity(0)),
            "platform": " ".join(os.uname()[i] for i in (0, 2, 4)),
        }
        self.folder.write_json("host.json", host)

    def run(self) -> Run:
        """All stages; the summary says how it ended, whatever happens."""
        status, trouble = "failed", ""
        self._write_summary("running")
        try:
            with self._signals():
                self._stages()
            status = "done"
        except Interrupted as error:
            status = "interrupted"
            raise Interrupted("interrupted", hint=f"fedge up --resume {self.folder.path} goes on") from error
        except InfeasibleError as error:
            status, trouble = "infeasible", str(error)
            raise
        except FedgeError as error:
            trouble = str(error)
            raise
        except Exception as error:
            trouble = f"{type(error).__name__}: {error}"
            raise
        finally:
            if self.nursery is not None:
                self.nursery.close()
            if self.limits.wall is not None:
                self.limits.wall.close()
            self._write_summary(status, trouble)
        return Run(self.folder.path, self.folder.read_json("summary.json"))

    def _stages(self) -> None:
        if not self.options.inline:
            self.nursery = Nursery(self.folder.file("devices", "zygote.log"))
        self.prepared = prepare(self.spec, self.say)
        store.save(self.prepared.data, self.scratch / "data")
        all_briefs = briefs(self.prepared, self.say)
        self._feasible(all_briefs)
        if self.spec.evaluate.baselines:
            self.say("baselines: a linear model on the raw data, the frozen encoder with a head")
            self.baselines = figures.beside(self.prepared)
            for line in self.baselines:
                self.say(f"baselines: {line['name']} {_figure(line)} ({line['detail']})")
        base = self.prepared.loaded.model
        if self.checkpoint.stage:
            base = restore(base, self._kept_base(self.checkpoint.stage))
        if self.nursery is not None:
            self.nursery.await_ready("imports")
            self._load()
        hub = None if self.options.inline else Hub()
        try:
            for brief in all_briefs[self.checkpoint.stage :]:
                base = self._stage(brief, base, hub)
        finally:
            if hub is not None:
                hub.close()
        if self.final_model is None:
            self.final_model = base

    def _load(self) -> None:
        assert self.nursery is not None
        self.nursery.command("load", data=str(self.scratch / "data"), model=self.prepared.model_order)
        self.nursery.await_ready("load")

    def _feasible(self, all_briefs: list[Brief]) -> None:
        """Refuse before anything starts when nobody can afford a stage."""
        from fedge.plan.choose import choose

        for brief in all_briefs:
            if not brief.freely:
                continue
            choices = {
                device.name: choose(brief.menu, budget_of(device, brief.deadline), prefer=brief.prefer)
                for device in self.spec.devices
            }
            able = [name for name, choice in choices.items() if choice.index is not None]
            share = brief.quorum
            if len(able) < max(1, int(share) if share >= 1 else 1):
                name, choice = next((n, c) for n, c in choices.items() if c.index is None)
                raise InfeasibleError(
                    f"stage {brief.index} ({brief.stage}): {len(able)} of {len(choices)} devices can afford anything; "
                    f"{name}: {choice.reason}",
                    hint="fedge plan shows every device and method",
                )

    def _stage(self, brief: Brief, base: nn.Module, hub: Hub | None) -> nn.Module:
        self.say(f"stage {brief.index}: {brief.stage} with {brief.key}, {brief.rounds} rounds")
        write_whole(self.base_file, bytes(pack_state(base)))
        server = StageServer(brief, base, self.prepared.data.task, self.prepared.data.public)
        accounts = [
            Account(device.name, budget_of(device, brief.deadline), len(self.prepared.rows[device.name]), device.availability)
            for device in self.spec.devices
        ]
        coordinator = Coordinator(
            brief,
            server,
            accounts,
            slots=self._slots(),
            restart=self.spec.emulation.restart,
            now=self.checkpoint.now,
        )
        fresh = not self.checkpoint.open
        if not fresh:
            self.checkpoint.put(coordinator)
        engine = self._engine(brief, base, hub)
        began = coordinator.now if fresh else float(self.checkpoint.devices.get("began", 0.0))
        self.checkpoint.devices["began"] = began
        try:
            run_stage(
                coordinator,
                engine,
                fresh=fresh,
                after_round=lambda: self._after_round(coordinator),
                stopping=lambda: self.stopping,
                tell=lambda: self._drain(coordinator),
            )
        finally:
            self._drain(coordinator)
            engine.close()
            if isinstance(engine, Processes):
                self.nursery = engine.nursery
        return self._close_stage(brief, coordinator, coordinator.now - began)

    def _engine(self, brief: Brief, base: nn.Module, hub: Hub | None) -> Engine:
        states = self.folder.file("checkpoints")
        budgets = {device.name: budget_of(device, brief.deadline) for device in self.spec.devices}
        if hub is None or self.nursery is None or self.limits.wall is None:
            ground = Ground(base, self.prepared.data.task, self.prepared.data.public)
            rows = {name: self.prepared.data.train.take(own) for name, own in self.prepared.rows.items()}
            return Inline(brief, ground, budgets, rows, states)
        places = {
            device.name: Place(
                budgets[device.name],
                self.prepared.rows[device.name].tolist(),
                device.pin,
                self.folder.device_log(device.name),
            )
            for device in self.spec.devices
        }
        self._brief = brief
        self.nursery.command("stage", brief=brief.to_json(), base=str(self.base_file))
        self.nursery.await_ready("stage")
        return Processes(
            brief,
            places,
            self.limits.wall,
            self.nursery,
            hub,
            states,
            run=self.folder.path.name,
            heartbeat=self.spec.emulation.heartbeat,
            incarnations=self.incarnations,
            revive=self._revive,
        )

    def _revive(self) -> Nursery:
        """Start a new zygote at the present stage."""
        self.say("the zygote died; starting another")
        if self.nursery is not None:
            self.nursery.close()
        self.nursery = Nursery(self.folder.file("devices", "zygote.log"))
        self.nursery.await_ready("imports")
        self._load()
        self.nursery.command("stage", brief=self._brief.to_json(), base=str(self.base_file))
        self.nursery.await_ready("stage")
        return self.nursery

    def _slots(self) -> int:
        told = self.options.slots if self.options.slots is not None else self.spec.emulation.slots
        return told if isinstance(told, int) else len(os.sched_getaffinity(0))

    # -- rounds ------------------------------------------------------------------------------------------------------

    def _after_round(self, coordinator: Coordinator) -> None:
        brief = coordinator.brief
        self._drain(coordinator)
        done = coordinator.round
        record: dict[str, Any] = {"stage": brief.stage, "round": done - 1, "virtual_s": coordinator.now}
        for device, answered in sorted(coordinator.answered.items()):
            self.folder.append("metrics.jsonl", {**record, **answered})
        last = done == brief.rounds
        line = f"{brief.stage} round {done}/{brief.rounds}: {len(coordinator.answered)} answered"
        if last or done % self.spec.evaluate.every == 0:
            model = brief.method.final(coordinator.server, coordinator.state)
            rows = None if last else self.spec.evaluate.rows
            result = figures.tested(self.prepared, brief.method, model, rows)
            self.folder.append("metrics.jsonl", {**record, "device": None, "rows": rows, **result.metrics})
            line += f", {_figure(result.metrics)}"
            self._last = (model, result)
        self.say(f"{line}, {coordinator.now:.1f} s emulated, {time.monotonic() - self.started:.0f} s")
        self.checkpoint.note(coordinator)
        self.checkpoint.save(self.folder.file("checkpoints"))

    def _drain(self, coordinator: Coordinator) -> None:
        notes, coordinator.notes = coordinator.notes, []
        for note in notes:
            self.folder.append("events.jsonl", {"time": time.time(), **note})
            if note["event"] == "lost":
                self.say(_loss(note))
            elif note["event"] == "picked":
                self.say(f"{note['device']} picks {note['method']}{_brackets(note['variant'])}: {note['reason']}")
            elif note["event"] in ("left-out", "died", "abandoned", "skipped"):
                self.say(f"{note.get('device', brief_of(note))}: {note['event']}: {note.get('reason') or note.get('detail')}")

    def _close_stage(self, brief: Brief, coordinator: Coordinator, virtual_s: float) -> nn.Module:
        model, result = self._last
        self._last_method = (brief, coordinator)
        accuracies = figures.per_device(self.prepared, brief.method, model, result.correct)
        metrics = dict(result.metrics)
        if accuracies:
            metrics["worst_device_accuracy"] = min(accuracies.values())
            metrics["mean_device_accuracy"] = sum(accuracies.values()) / len(accuracies)
        profiles = {device.name: device.profile for device in self.spec.devices}
        stage = figures.stage_record(brief, coordinator.accounts, metrics, virtual_s)
        lines = figures.device_records(brief, coordinator.accounts, profiles, accuracies)
        for line in lines:
            self.folder.append("metrics.jsonl", {"round": None, "device": line["name"], **line})
        plain = model.requires_grad_(False)
        last = brief.index == len(self.spec.stages) - 1
        if last:
            self._save_model(brief, coordinator, plain)
            self._export(brief, plain)
        else:
            write_whole(self._kept_base(brief.index + 1), bytes(pack_state(plain)))
        self.checkpoint = Checkpoint(
            stage=brief.index + 1,
            now=coordinator.now,
            done=[*self.checkpoint.done, {"stage": stage, "devices": lines}],
            wall_s=self.checkpoint.wall_s,
        )
        self.final_model = plain
        self.model_sha256 = figures.model_sha256(plain)
        if last:
            self.checkpoint.devices["model_sha256"] = self.model_sha256
        self.checkpoint.save(self.folder.file("checkpoints"))
        return plain

    def _kept_base(self, stage: int) -> Path:
        return self.folder.file("checkpoints", f"base-{stage}.safetensors")

    # -- what is left ------------------------------------------------------------------------------------------------

    def _save_model(self, brief: Brief, coordinator: Coordinator, model: nn.Module) -> None:
        adapter = brief.method.adapter(coordinator.server, coordinator.state)
        loaded = self.prepared.loaded
        if adapter is None:
            save(model, self.folder.file("model"), loaded)
            return
        # an adapter fits only the weights that it was trained on; the first stage's are the source's own
        source = loaded.source if loaded.kind == "hub" and brief.index == 0 else None
        save_adapter(adapter, self.folder.file("model"), source, loaded)

    def _export(self, brief: Brief, model: nn.Module) -> None:
        if brief.stage != "deploy":
            return
        from fedge.export.exits import export_exits, export_model
        from fedge.models.exits import MultiExit

        about = {"run": self.folder.path.name, "federation": self.spec.name, "method": brief.key, "rounds": brief.rounds}
        write = export_exits if isinstance(model, MultiExit) else export_model
        exported = write(
            model,  # type: ignore[arg-type]
            self.prepared.loaded,
            self.prepared.data.test,
            self.folder.file("export"),
            labels=list(self.prepared.data.names),
            about=about,
            progress=self.say,
        )
        self.exports = [one.to_json() for one in exported]

    def _write_summary(self, status: str, trouble: str = "") -> None:
        done = self.checkpoint.done
        summary: dict[str, Any] = {
            "run": str(self.folder.path),
            "status": status,
            "seed": self.spec.seed,
            "clock": self.spec.emulation.clock,
            "wall_s": round(time.monotonic() - self.started, 3),
            "model_sha256": self.checkpoint.devices.get("model_sha256") if status == "done" else None,
            "stages": [record["stage"] for record in done],
            "devices": done[-1]["devices"] if done else [],
            "exports": self.exports,
            "baselines": self.baselines,
            "limits": self.limits.named,
            "degraded": self.limits.degraded,
        }
        if trouble:
            summary["error"] = trouble
        self.folder.write_json("summary.json", summary)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """The first Ctrl-C ends the round and keeps a checkpoint; the second ends the command at once."""

        def first(number: int, frame: Any) -> None:
            if self.stopping:
                raise Interrupted("interrupted")
            self.stopping = True
            self.say("stopping after this round (again to stop at once)")

        before = {number: signal.signal(number, first) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def brief_of(note: dict[str, Any]) -> str:
    """The stage and round of a note, for a line of progress."""
    return f"{note['stage']} round {note['round']}"


def _loss(note: dict[str, Any]) -> str:
    if note["cause"] != "memory":
        return f"{note['device']} lost: {note['cause']} {note.get('detail') or ''}".rstrip()
    from fedge.units import format_bytes

    return (
        f"{note['device']} lost: out of memory in {note['phase']} with {note['method']}{_brackets(note['variant'])}, "
        f"peak {format_bytes(note['peak'])}, cap {format_bytes(note['cap'])}"
    )


def _brackets(variant: dict[str, Any] | None) -> str:
    return "(" + ", ".join(f"{k}={v}" for k, v in variant.items()) + ")" if variant else ""


def _figure(metrics: dict[str, Any]) -> str:
    if "perplexity" in metrics:
        return f"perplexity {metrics['perplexity']:.2f}"
    return f"accuracy {metrics['accuracy']:.4f}" if "accuracy" in metrics else "no figure"


