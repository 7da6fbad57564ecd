"""What has to do with the host that fedge runs on: ``doctor``, ``devices calibrate``."""

from __future__ import annotations

from pathlib import Path

from fedge.commands.parameters import Json, print_json, progress
from fedge.errors import ConfigError


def doctor(as_json: Json = False) -> None:
    """Try every limit on this host, say which will be used and how exactly it holds. Takes some seconds.

    Example: fedge doctor
    """
    from fedge.report.doctor import doctor_table
    from fedge.run.doctor import examine

    progress("trying memory walls, processor shares, places")
    found = examine()
    print_json({"doctor": found}) if as_json else doctor_table(found)


def calibrate(out: Path, threads: int | None, as_json: bool) -> None:
    """Measure this machine and write its profile; ConfigError where the file is there already.

    FedgeError where it can't be written.
    """
    import os

    from fedge.run.calibrate import calibrate as measure
    from fedge.run.calibrate import profile
    from fedge.run.folder import write_whole

    if out.exists():
        raise ConfigError(f"{out} is there already; --out names another file, or remove it")
    write_whole(out, "")  # a place that can't be written to is told now, not after the measuring
    out.unlink()
    count = threads or len(os.sched_getaffinity(0))
    progress(f"training small models with {count} threads, about a minute; others on this machine make it seem slower")
    found = measure(progress, count)
    write_whole(out, profile(found, out.stem, count))
    if as_json:
        rates = found.rates
        row = {"profile": str(out), "threads": count, "matmul": rates.flops, "traffic": rates.memory_bandwidth}
        row |= {"dispatch": rates.per_op, "slower": dict(rates.slower), "error": found.error("")}
        print_json({"devices": [row]})
        return
    print(out.read_text(), end="")
    progress(f"{out} is written; `profile: ./{out}` in a federation takes it")
