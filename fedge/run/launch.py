"""A run under way: a federation's stages one after another, and everything that they leave in the run's folder."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fedge.data import store
from fedge.errors import FedgeError, InfeasibleError, Interrupted
from fedge.models.save import pack_state, restore, save, save_adapter
from fedge.plan.choose import choose
from fedge.report.snapshot import Passing
from fedge.report.trace import write_trace
from fedge.run import figures
from fedge.run.brief import Brief, budget_of
from fedge.run.checkpoint import Checkpoint
from fedge.run.coordinator import Coordinator
from fedge.run.engine import Engine
from fedge.run.folder import RunFolder, read_sealed, write_sealed, write_whole
from fedge.run.inline import Inline
from fedge.run.launcher import Options, Run
from fedge.run.limits import Footprint, Limits, process_limit
from fedge.run.nursery import Nursery, ZygoteGone
from fedge.run.places import Place, save_places
from fedge.run.prepare import briefs, prepare
from fedge.run.processes import Processes
from fedge.run.seat import Ground
from fedge.run.stage import Stage, figure
from fedge.run.watch import See, Watch
from fedge.spec.federation import FederationSpec
from fedge.units import format_seconds
from fedge.wire.bus import Hub

Say = Callable[[str], None]


class Launch:
    """One run under way."""

    def __init__(
        self,
        spec: FederationSpec,
        folder: RunFolder,
        options: Options,
        limits: Limits,
        left: Footprint,
        nursery: Nursery | None,
        say: Say,
        see: See | None,
    ):
        """``nursery``: the zygote, where it was started already; it is this run's from now on."""
        torch.set_num_threads(1)
        self.spec = spec
        self.folder = folder
        self.options = options
        self.limits = limits
        self.left = left
        self.say = say
        self.checkpoint = Checkpoint.load(folder.file("checkpoints"))
        self.started = time.monotonic() - self.checkpoint.wall_s
        self.stopping = False
        self.incarnations: dict[str, int] = {}
        self.nursery = nursery
        self.base_file = left.scratch / "base.safetensors"
        self.watch = Watch(folder, spec.name, [stage.rounds for stage in spec.stages], self.elapsed, see)

    def run(self) -> Run:
        """All stages; the summary says how it ended, whatever happens."""
        status, trouble = "failed", ""
        try:
            self._write_summary("running")
            self.watch.enter("preparing")
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
        except OSError as error:  # what the host refuses, wherever a library met it
            trouble = f"{error.filename or self.folder.path}: {error.strerror or error}"
            raise FedgeError(trouble) from error
        except Exception as error:
            trouble = f"{type(error).__name__}: {error}"
            raise
        finally:
            if self.nursery is not None:
                self.nursery.close()
            if self.limits.wall is not None:
                self.limits.wall.close()
            with suppress(FedgeError):  # a full disk, most likely; what went wrong before is the thing to say
                self._write_summary(status, trouble)
                write_trace(self.folder.path)
            self.watch.enter("ended")
        return Run(self.folder.path, self.folder.read_json("summary.json"))

    def elapsed(self) -> float:
        """Seconds spent on the run, those before an interruption included."""
        return time.monotonic() - self.started

    # -- stages ------------------------------------------------------------------------------------------------------

    def _stages(self) -> None:
        if self.checkpoint.stage == len(self.spec.stages):
            self.say("every stage is done already")
            return
        self.folder.cut("metrics.jsonl", self.checkpoint.metrics_size)
        if self.nursery is None and not self.options.inline:
            self.nursery = Nursery.of(self.folder, self.spec)
        self.prepared = prepare(self.spec, self._say_passing)
        task = self.prepared.data.task
        self.checkpoint.task, self.checkpoint.classes = task.kind, 0 if task.generative else task.classes
        self.watch.enter("planning")
        all_briefs = briefs(self.prepared, self._say_passing)
        self._feasible(all_briefs)
        self.watch.enter("baselines")
        if self.spec.evaluate.baselines and not self.checkpoint.baselines:
            self._baselines()
        base = self.prepared.loaded.model
        if self.checkpoint.stage:
            base = restore(base, read_sealed(self._kept_base(self.checkpoint.stage)))
        if self.nursery is None:
            for brief in all_briefs[self.checkpoint.stage :]:
                base = self._stage(brief, base, None)
            return
        store.save(self.prepared.data, self.left.scratch / "data")
        with Hub(self.left.address) as hub:
            for brief in all_briefs[self.checkpoint.stage :]:
                base = self._stage(brief, base, hub)

    def _say_passing(self, line: str) -> None:
        self.say(Passing(line))

    def _baselines(self) -> None:
        self.say("baselines: a linear model on the raw data, the frozen encoder with a head")
        self.checkpoint.baselines = figures.beside(self.prepared)
        for line in self.checkpoint.baselines:
            self.say(f"baselines: {line['name']} {figure(line)} ({line['detail']})")

    def _feasible(self, all_briefs: list[Brief]) -> None:
        """Refuse before anything starts when nobody can afford a stage."""
        for brief in all_briefs:
            if not brief.freely:
                continue
            choices = {
                device.name: choose(brief.menu, budget_of(device, brief.deadline), prefer=brief.prefer)
                for device in self.spec.devices
            }
            able = [name for name, choice in choices.items() if choice.index is not None]
            if len(able) < (max(1, brief.quorum) if isinstance(brief.quorum, int) else 1):
                name, choice = next((n, c) for n, c in choices.items() if c.index is None)
                raise InfeasibleError(
                    f"stage {brief.index} ({brief.stage}): {len(able)} of {len(choices)} devices can afford anything; "
                    f"{name}: {choice.reason}",
                    hint="fedge plan shows every device and method",
                )

    def _stage(self, brief: Brief, base: nn.Module, hub: Hub | None) -> nn.Module:
        self.say(f"stage {brief.index}: {brief.stage} with {brief.key}, {brief.rounds} rounds")
        stage = Stage(
            brief,
            base,
            self.prepared,
            self.folder,
            self.checkpoint,
            slots=self._slots(),
            say=self.say,
            elapsed=self.elapsed,
            watch=self.watch,
        )
        if self.checkpoint.round < brief.rounds or stage.fresh:
            engine = self._inline(brief, base) if hub is None else self._processes(brief, base, hub)
            try:
                stage.run(engine, lambda: self.stopping)
            finally:
                engine.close()
                if isinstance(engine, Processes):
                    self.nursery = engine.nursery
        return self._leave(brief, stage)

    def _leave(self, brief: Brief, stage: Stage) -> nn.Module:
        """Keep what the stage leaves, and a checkpoint at the next one's beginning."""
        self.watch.enter("closing")
        record, model = stage.close()
        spent = f"{format_seconds(record['stage']['virtual_s'])} emulated, {self.elapsed():.0f} s"
        self.say(f"stage {brief.index}: {brief.stage} done: {figure(record['stage']['metrics'])}, {spent}")
        following = Checkpoint(
            stage=brief.index + 1,
            now=stage.coordinator.now,
            done=[*self.checkpoint.done, record],
            metrics_size=self.folder.size("metrics.jsonl"),
            wall_s=self.elapsed(),
            baselines=self.checkpoint.baselines,
            task=self.checkpoint.task,
            classes=self.checkpoint.classes,
        )
        if following.stage < len(self.spec.stages):
            write_sealed(self._kept_base(following.stage), pack_state(model))
        else:
            self._save_model(brief, stage.coordinator, model)
            following.exports = self._export(brief, model)
            following.model_sha256 = figures.model_sha256(model)
        self.checkpoint = following
        following.save(self.folder.file("checkpoints"))
        return model

    def _kept_base(self, stage: int) -> Path:
        return self.folder.file("checkpoints", f"base-{stage}.safetensors")

    # -- engines -----------------------------------------------------------------------------------------------------

    def _inline(self, brief: Brief, base: nn.Module) -> Engine:
        ground = Ground(base, self.prepared.data.task, self.prepared.data.public)
        budgets = {device.name: budget_of(device, brief.deadline) for device in self.spec.devices}
        rows = {name: self.prepared.data.train.take(own) for name, own in self.prepared.rows.items()}
        return Inline(brief, ground, budgets, rows, self.folder.file("checkpoints"))

    def _processes(self, brief: Brief, base: nn.Module, hub: Hub) -> Engine:
        assert self.nursery is not None
        wall = self.limits.wall
        assert wall is not None
        places = {
            device.name: Place(
                budget_of(device, brief.deadline),
                self.prepared.rows[device.name],
                device.pin,
                self.folder.device_log(device.name),
            )
            for device in self.spec.devices
        }
        save_places(places, self.left.scratch / "places")
        write_whole(self.base_file, pack_state(base))
        return Processes(
            places,
            wall,
            self._enter(brief),
            hub,
            run=self.folder.path.name,
            limit=process_limit(self.spec, brief, self._slots()),
            heartbeat=self.spec.emulation.heartbeat,
            incarnations=self.incarnations,
            revive=lambda: self._revive(brief),
            opened=lambda: self.left.note_groups(wall),
        )

    def _enter(self, brief: Brief) -> Nursery:
        """A zygote that has taken up a stage. One that dies on the way is replaced, ``restart`` times."""
        left = self.spec.emulation.restart
        while True:
            try:
                return self._take_up(brief)
            except ZygoteGone:
                if not left:
                    raise
                left -= 1
                self._discard()

    def _take_up(self, brief: Brief) -> Nursery:
        if self.nursery is None:
            self.nursery = Nursery.of(self.folder, self.spec)
        if not self.nursery.loaded:
            self.nursery.await_ready("imports")
            self.nursery.command("load", data=str(self.left.scratch / "data"), model=self.prepared.model_order)
            self.nursery.await_ready("load")
            self.nursery.loaded = True
        self.nursery.command(
            "stage",
            brief=brief.to_json(),
            base=str(self.base_file),
            places=str(self.left.scratch / "places"),
            states=str(self.folder.file("checkpoints")),
        )
        self.nursery.await_ready("stage")
        return self.nursery

    def _discard(self) -> None:
        self.say("the zygote died; starting another")
        if self.nursery is not None:
            self.nursery.close()
        self.nursery = None

    def _revive(self, brief: Brief) -> Nursery:
        """Start a new zygote at the present stage."""
        self._discard()
        return self._enter(brief)

    def _slots(self) -> int:
        told = self.options.slots if self.options.slots is not None else self.spec.emulation.slots
        return told if isinstance(told, int) else len(os.sched_getaffinity(0))

    # -- what is left ------------------------------------------------------------------------------------------------

    def _save_model(self, brief: Brief, coordinator: Coordinator, model: nn.Module) -> None:
        adapter = brief.method.adapter(coordinator.server, coordinator.state)
        loaded = self.prepared.loaded
        if adapter is None:
            save(model, self.folder.file("model"), loaded)
            return
        # an adapter fits the weights that it was trained on: the source's, unless an earlier stage changed them
        untouched = loaded.kind == "hub" and figures.same_body(adapter, loaded.model)
        save_adapter(adapter, self.folder.file("model"), loaded.source if untouched else None, loaded)

    def _export(self, brief: Brief, model: nn.Module) -> list[dict[str, Any]]:
        if brief.stage != "deploy":
            return []
        from fedge.export.exits import export_exits
        from fedge.export.full import export_model
        from fedge.models.exits import MultiExit

        named = {"run": self.folder.path.name, "federation": self.spec.name}
        export = self.spec.stages[brief.index].export
        write = export_exits if isinstance(model, MultiExit) else export_model
        exported = write(
            model,  # type: ignore[arg-type]
            self.prepared.loaded,
            self.prepared.data.test,
            self.folder.file("export"),
            labels=list(self.prepared.data.names),
            about={**named, "method": brief.key, "rounds": brief.rounds},
            precision=export.precision if export is not None else ("fp32",),
            progress=self.say,
        )
        return [one.to_json() for one in exported]

    def _write_summary(self, status: str, trouble: str = "") -> None:
        done = self.checkpoint.done
        summary: dict[str, Any] = {
            "run": str(self.folder.path),
            "status": status,
            "seed": self.spec.seed,
            "clock": self.spec.emulation.clock,
            "wall_s": round(self.elapsed(), 3),
            "model_sha256": self.checkpoint.model_sha256 if status == "done" else None,
            "stages": [record["stage"] for record in done],
            "devices": done[-1]["devices"] if done else [],
            "exports": self.checkpoint.exports,
            "baselines": self.checkpoint.baselines,
            "limits": self.limits.named,
            "degraded": self.limits.degraded,
        }
        if self.checkpoint.task:
            summary["task"], summary["classes"] = self.checkpoint.task, self.checkpoint.classes
        if trouble:
            summary["error"] = trouble
        self.folder.write_json("summary.json", summary)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """The first Ctrl-C ends the round and keeps a checkpoint; the second ends the command; the third kills it."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        heard = 0

        def stop(number: int, frame: Any) -> None:
            nonlocal heard
            heard += 1
            if heard > 2:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            if heard == 2:
                raise Interrupted("interrupted")
            self.stopping = True
            self.say("stopping after this round (again to stop at once)")

        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
