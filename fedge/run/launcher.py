"""``up``: from a federation's file to a run that has ended; what takes seconds to import is imported on the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedge.errors import FedgeError
from fedge.run.folder import LOG, RunFolder
from fedge.run.host import check_host, note_host
from fedge.run.limits import clear, footprint, limits_of
from fedge.run.nursery import Nursery
from fedge.spec import load_federation, resolved
from fedge.spec.federation import FederationSpec, find_federation
from fedge.wire.bus import path_of

if TYPE_CHECKING:
    from torch import nn

    from fedge.run.watch import See

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

    def model(self, device: str | None = None) -> nn.Module:
        """The model that the run left, adapters merged; a MultiExit model where it has exits.

        device: that device's own model, where the method of the last stage has such; MissingError where it has none.
        """
        from fedge.models.adapted import CONFIG_FILE, load_adapted
        from fedge.models.load import load
        from fedge.models.save import load_own

        folder = self.folder / "model"
        task = self.summary["task"]
        classes = self.summary["classes"] or None
        adapted = (folder / CONFIG_FILE).is_file()
        model = load_adapted(folder, task, classes) if adapted else load(str(folder), task, classes=classes).model
        return model if device is None else load_own(model, folder / "devices" / f"{device}.safetensors")


USUAL = Options()


def up(
    federation: str | Path,
    overrides: Sequence[str] | Mapping[str, Any] = (),
    options: Options = USUAL,
    say: Say = print,
    see: See | None = None,
) -> Run:
    """Run a federation to its end. ``say`` gets lines of progress, ``see`` some snapshots a second.

    Raises ConfigError for a wrong file, InfeasibleError when too few devices can take part, LimitError when a wall
    can't be had, Interrupted after Ctrl-C or SIGTERM, MethodError for a method's own failure; the run's
    folder says the same.
    """
    if options.resume is not None:
        clear(RunFolder(options.resume), say)  # also where the launcher was killed before there was anything to resume
        folder = RunFolder.open(options.resume)
        check_host(folder, say)
        spec = load_federation(folder.file("resolved.yaml"))
    else:
        folder = None
        spec = load_federation(federation, overrides)
    limits = limits_of(spec, inline=options.inline, best_effort=options.best_effort)
    if folder is None:
        folder = RunFolder.new(spec.name, options.runs)
    with footprint(folder) as left:
        if options.resume is None:
            _found(folder, spec, find_federation(federation))
        if not options.inline:
            path_of(left.address)  # before minutes go into planning for a run whose socket can't be made
        nursery = _early(spec, folder, options)
        try:
            from fedge.run.launch import Launch

            launch = Launch(spec, folder, options, limits, left, nursery, _logged(folder, say), see)
        except BaseException:
            if nursery is not None:
                nursery.close()
            raise
        return launch.run()


def _early(spec: FederationSpec, folder: RunFolder, options: Options) -> Nursery | None:
    """The zygote, started before this process has imported what both need: then they do so at the same time."""
    done = False
    with suppress(OSError, ValueError, FedgeError):  # none yet, or a damaged one, of which Launch tells
        done = folder.read_json("summary.json")["status"] == "done"
    return None if options.inline or done else Nursery.of(folder, spec)


def _logged(folder: RunFolder, say: Say) -> Say:
    """Say a line, and keep it in the run's folder."""

    def both(line: str) -> None:
        say(line)
        with suppress(FedgeError):  # a full disk, most likely: what matters more will fail of it
            folder.append_line(LOG, line)

    return both


def _found(folder: RunFolder, spec: FederationSpec, source: Path) -> None:
    """Write what a run's folder holds from the beginning."""
    folder.write("federation.yaml", source.read_bytes())
    note_host(folder)
    folder.write("resolved.yaml", resolved(spec))
