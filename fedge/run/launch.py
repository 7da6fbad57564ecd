"""A run under way: a federation's stages one after another, and everything that they leave in the run's folder."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fedge.data import store
from fedge.emulation import process
from fedge.emulation.pace import Timeline
from fedge.emulation.roofline import Rates
from fedge.errors import FedgeError, InfeasibleError, Interrupted, LimitError
from fedge.models.save import pack_state, restore, save, save_adapter
from fedge.privacy.budget import sentence
from fedge.report.snapshot import Passing
from fedge.report.trace import write_trace
from fedge.run import figures
from fedge.run.admission import Stage as Demand
from fedge.run.admission import admit, demands, need, revised
from fedge.run.both import Both
from fedge.run.brief import Brief, link_of_spec
from fedge.run.budgets import budget_of
from fedge.run.checkpoint import Checkpoint
from fedge.run.coordinator import Coordinator
from fedge.run.engine import Engine
from fedge.run.folder import RunFolder, read_sealed, write_sealed, write_whole
from fedge.run.guests import Guests
from fedge.run.hostspeed import host_rates
from fedge.run.inline import Inline
from fedge.run.launcher import Options, Run
from fedge.run.limits import Footprint, Limits, process_limit
from fedge.run.listen import listen, welcome
from fedge.run.nursery import Nursery, ZygoteGone
from fedge.run.orders import Orders
from fedge.run.pacing import Pacing
from fedge.run.personal import FOLDER as OWN
from fedge.run.personal import keep_own
from fedge.run.places import Place, save_places
from fedge.run.planning import rows_of
from fedge.run.plans import StagePlan, require_enough
from fedge.run.prepare import Prepared, briefs, prepare
from fedge.run.processes import Processes
from fedge.run.seat import Ground
from fedge.run.signals import heeded
from fedge.run.stage import Stage, figure
from fedge.run.watch import See, Watch
from fedge.spec.device import DeviceSpec
from fedge.spec.federation import FederationSpec
from fedge.units import format_seconds
from fedge.wire.bus import Hub

Say = Callable[[str], None]
#: Devices up to which the plan in the run's folder has lines for each.
_LISTED = 500


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
        self.rung = 0  # signals that asked for its end
        self.incarnations: dict[str, int] = {}
        self.orders = Orders(left.scratch)
        self.nursery = nursery
        self.briefs: list[Brief] = []
        self.timeline: Timeline | None = None
        self.host: Rates | None = None
        self.base_file = left.scratch / "base.safetensors"
        self.guests: Guests | None = None
        self.remote: dict[str, Any] | None = None
        self.watch = Watch(folder, spec.name, [stage.rounds for stage in spec.stages], self.elapsed, see)

    def run(self) -> Run:
        """All stages; the summary says how it ended, whatever happens.

        Raises what ``up`` does; Interrupted also where a signal came too late to stop anything: then the run is done,
        and it is the caller who must not go on.
        """
        status, trouble = "failed", ""
        try:
            self._write_summary("running")
            self.watch.enter("preparing")
            with heeded(self._ring):
                self._stages()
            status = "done"
        except (Interrupted, KeyboardInterrupt) as error:
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
            if self.guests is not None:
                self.guests.leave(status, trouble)
                self.remote = self.guests.record()
                self.guests.hub.close()
            if self.limits.wall is not None:
                self.limits.wall.close()
            try:
                self._write_summary(status, trouble)
                write_trace(self.folder.path)
            except FedgeError:  # a full disk, most likely
                if status == "done":
                    raise  # else what went wrong before is the thing to say
            finally:
                self.watch.enter("ended")
        if self.stopping:
            raise Interrupted("interrupted when the run was done", hint=f"fedge report {self.folder.path} shows it")
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
        if self.spec.elsewhere and not self.options.inline:
            self.guests = listen(self.spec, self.folder, self.say)
        if self.nursery is None and not self.options.inline:
            self.nursery = Nursery.of(self.folder, self.spec)
        self.prepared = self._prepare()
        task = self.prepared.data.task
        self.checkpoint.task, self.checkpoint.classes = task.kind, 0 if task.generative else task.classes
        self._begin("planning")
        all_briefs = self.briefs = briefs(self.prepared, self._say_passing)
        self._leave_plan(all_briefs)
        self._begin("baselines")
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

    def _begin(self, phase: str) -> None:
        """Enter a phase between which and the last one a run may be left as it is."""
        self._heed()
        self.watch.enter(phase)

    def _heed(self) -> None:
        if self.stopping:
            raise Interrupted("interrupted")

    def _prepare(self) -> Prepared:
        return prepare(self.spec, self._say_passing)

    def _say_passing(self, line: str) -> None:
        self.say(Passing(line))

    def _baselines(self) -> None:
        self.say("baselines: a linear model on the raw data, the frozen encoder with a head")
        self.checkpoint.baselines = figures.beside(self.prepared)
        for line in self.checkpoint.baselines:
            self.say(f"baselines: {line['name']} {figure(line)} ({line['detail']})")

    def _leave_plan(self, all_briefs: list[Brief]) -> None:
        """Keep the plan in the run's folder, and refuse before any device starts when too few can afford a stage."""
        plans = [StagePlan(brief.index, brief.stage, brief.menu) for brief in all_briefs]
        self.folder.write_json("plan.json", {"plan": list(rows_of(self.spec, plans, self._kinds()))})
        require_enough(self.spec, plans)
        if self.spec.emulation.clock == "real":
            self._admit(plans)

    def _admit(self, plans: list[StagePlan]) -> None:
        """See that this host can keep up with the devices' clocks, before any of them starts."""
        slots, asked = self._slots(), max(stage.most_asked(len(self.spec.devices)) for stage in self.spec.stages)
        if slots < asked:  # of the file it is known already; this is what the command line said
            raise LimitError(f"the real clock runs {asked} devices side by side, and --slots has room for {slots}")
        self.host = host_rates(pinned=self.limits.wall is not None and self.limits.wall.name != "none")
        found = admit(demands(self.spec, plans, self.host), len(process.cores()), self.spec.emulation.slowdown)
        self.timeline = Timeline(found.slow)
        at = "in the devices' own time" if found.slow == 1 else f"{found.slow:.3g} times slower than the devices"
        self.say(f"real clock: {at}; caps add up to {found.cores:.2f} of {found.granted:.2f} cores")

    def _kinds(self) -> list[DeviceSpec]:
        """Every device, or of a large fleet one of each kind."""
        if len(self.spec.devices) <= _LISTED:
            return list(self.spec.devices)
        kinds = {replace(device, name="", group=""): device for device in reversed(self.spec.devices)}
        return list(reversed(kinds.values()))

    def _stage(self, brief: Brief, base: nn.Module, hub: Hub | None) -> nn.Module:
        self._heed()
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
        if self.checkpoint.round < brief.rounds or stage.fresh or stage.judges_own:
            engine = self._inline(brief, base) if hub is None else self._processes(brief, base, hub)
            try:
                stage.run(engine, lambda: self.stopping)
            finally:
                engine.close()
                own = engine.here if isinstance(engine, Both) else engine
                if isinstance(own, Processes):
                    self.nursery = own.nursery
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
            keep_own(model, self.folder.file("checkpoints"), brief.index, None)
            if self.spec.stages[-1].stage == "deploy":  # the next stage merges it: apart it is there only now
                named = re.sub(r"[^\w.-]+", "-", f"{brief.index + 1}-{brief.key}")
                self._save_adapter(brief, stage.coordinator, self.folder.file("export", "adapters", named))
        else:
            self._save_model(brief, stage.coordinator, model)
            keep_own(model, self.folder.file("checkpoints"), brief.index, self.folder.file("model", OWN))
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
        budgets = {device.name: budget_of(device, brief.deadline, brief.rounds) for device in self.spec.devices}
        rows = {name: self.prepared.data.train.take(own) for name, own in self.prepared.rows.items()}
        return Inline(brief, ground, budgets, rows, self.folder.file("checkpoints"), self.prepared.tests())

    def _processes(self, brief: Brief, base: nn.Module, hub: Hub) -> Engine:
        packed = pack_state(base)
        if self.guests is not None:
            welcome(self.guests, brief, self.prepared, packed, self.briefs)
        here = [device for device in self.spec.devices if not device.remote]
        if not here:
            assert self.guests is not None
            return self.guests
        engine = self._own_processes(brief, here, packed, hub)
        names = [device.name for device in self.spec.elsewhere]
        return engine if self.guests is None else Both(engine, self.guests, names)

    def _own_processes(self, brief: Brief, here: Sequence[DeviceSpec], base: bytearray, hub: Hub) -> Processes:
        assert self.nursery is not None
        wall = self.limits.wall
        assert wall is not None
        places = {
            device.name: Place(
                budget_of(device, brief.deadline, brief.rounds),
                self.prepared.rows[device.name],
                device.pin,
                self.folder.device_log(device.name),
                self.prepared.own_test.get(device.name),
                None if self.timeline is None else link_of_spec(device),
            )
            for device in here
        }
        save_places(places, self.left.scratch / "places")
        write_whole(self.base_file, base)
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
            pacing=self._pacing(brief, places),
            beside=[] if self.guests is None else [self.guests.hub],
            orders=self.orders,
        )

    def _pacing(self, brief: Brief, places: Mapping[str, Place]) -> Pacing | None:
        """What holds a stage's devices to the real clock; None under the virtual one."""
        host = self.host
        if self.timeline is None or host is None:
            return None

        def needs(device: str, choice: int) -> float:
            return need(brief.menu[choice].cost, places[device].budget, host)

        def revise(learned: Mapping[str, float], slow: float) -> float:
            asked = self.spec.stages[brief.index].most_asked(len(self.spec.devices))
            new = revised(Demand(brief.stage, learned, asked), len(process.cores()), slow)
            if new == slow or self.spec.emulation.slowdown != "auto":
                return slow
            self.say(f"real clock: from here on {new:.3g} times slower than the devices")
            self.folder.append("events.jsonl", {"time": time.time(), "event": "slowdown", "slowdown": new})
            return new

        return Pacing(self.timeline, self.folder.path.name, self.limits.quota, needs, revise, self.left.note_quota)

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
            test=[self.spec.evaluate.rows, self.spec.seed],
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
        if isinstance(told, int):
            return told
        # under the real clock nobody waits for a slot: what devices may take of the host is in their quotas
        return len(self.spec.devices) if self.spec.emulation.clock == "real" else len(process.cores())

    # -- what is left ------------------------------------------------------------------------------------------------

    def _save_model(self, brief: Brief, coordinator: Coordinator, model: nn.Module) -> None:
        if not self._save_adapter(brief, coordinator, self.folder.file("model")):
            save(model, self.folder.file("model"), self.prepared.loaded, self._privacy())

    def _save_adapter(self, brief: Brief, coordinator: Coordinator, place: Path) -> bool:
        """Write the stage's adapter, where its method has one, as a folder that peft loads."""
        adapter = brief.method.adapter(coordinator.server, coordinator.state)
        if adapter is None:
            return False
        # an adapter fits the weights that it was trained on: the source's, unless an earlier stage changed them
        loaded = self.prepared.loaded
        untouched = loaded.kind == "hub" and figures.same_body(adapter, loaded.model)
        save_adapter(adapter, place, loaded.source if untouched else None, loaded, self._privacy())
        return True

    def _privacy(self) -> str | None:
        """What the model's card says of the privacy of all stages."""
        return sentence([(brief.stage, brief.trust, brief.rounds) for brief in self.briefs])

    def _export(self, brief: Brief, model: nn.Module) -> list[dict[str, Any]]:
        if brief.stage != "deploy":
            return []
        from fedge.export.exits import export_exits
        from fedge.export.full import export_model
        from fedge.models.exits import MultiExit
        from fedge.run.exporting import about

        export = self.spec.stages[brief.index].export
        write = export_exits if isinstance(model, MultiExit) else export_model
        exported = write(
            model,  # type: ignore[arg-type]
            self.prepared.loaded,
            self.prepared.data.test,
            self.folder.file("export"),
            labels=list(self.prepared.data.names),
            about=about(self.folder.path.name, self.spec, self._privacy()),
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
            **({} if self.timeline is None else {"slowdown": self.timeline.slow}),
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
        if self.remote is not None:
            summary["remote"] = self.remote
        if trouble:
            summary["error"] = trouble
        self.folder.write_json("summary.json", summary)

    def _ring(self, number: int) -> None:
        """The first Ctrl-C ends the round and keeps a checkpoint; the second ends the command; the third kills it.

        The second is raised as KeyboardInterrupt, since many a place takes any Exception for the failure of what it
        tried (a method's code, a library's) and goes on.
        """
        self.rung += 1
        if self.rung > 2:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        if self.rung == 2:
            raise KeyboardInterrupt
        self.say(f"stopping after this {'round' if self.briefs else 'step'} (again to stop at once)")

    @property
    def stopping(self) -> bool:
        """Whether a signal has asked for the run's end."""
        return self.rung > 0
