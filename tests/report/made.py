"""Run folders made up for the tests: two stages of twenty devices, three of which are lost."""

from __future__ import annotations

import json
import math
from pathlib import Path

GROUPS = {
    "zero": ("pi-zero-2w", 6, 12, 1.0),
    "phone": ("android-low-3g", 8, 24, 0.6),
    "pi": ("pi-4b-4g", 4, 64, 0.35),
    "box": ("jetson-orin-nano-8g", 2, 512, 0.1),
}


def devices(times: int = 1) -> dict[str, tuple]:
    """Twenty devices, or ``times`` as many, by their names."""
    return {
        f"{group}-{number:0{max(2, len(str(times * given[1] - 1)))}d}": (group, *given)
        for group, given in GROUPS.items()
        for number in range(times * given[1])
    }


DEVICES = devices()


def cause_of(device: str) -> str | None:
    """What loses a device, however many digits its number has."""
    group, _, number = device.partition("-")
    return LOST.get(f"{group}-{int(number):02d}")


LOST = {"zero-02": "memory", "phone-05": "deadline", "pi-01": "host"}
RESOLVED = """name: {name}
seed: 7
model: {{name: vit-nano}}
data: {{dataset: digits}}
devices:
{devices}
stages:
- train: {{method: fedavg, rounds: 6}}
- customize: {{method: lora, rounds: 5}}
"""
MIB = 1 << 20


def make_run(
    path: Path, *, name: str = "lost-three", status: str = "done", tests: bool = True, rounds=(6, 5), times: int = 1
) -> Path:
    """Write a run's folder as fedge leaves it; ``status`` other than done leaves the second stage open.

    times: how many times twenty devices it has.
    """
    path.mkdir(parents=True)
    lines = [
        f"  {group}: {{profile: {profile}, count: {times * count}, memory: {memory}MiB}}"
        for group, (profile, count, memory, _) in GROUPS.items()
    ]
    (path / "resolved.yaml").write_text(RESOLVED.format(name=json.dumps(name), devices="\n".join(lines)))
    run = _Run(path, tests, devices(times))
    stages = [run.stage("train", "fedavg", rounds[0], 9 * MIB, 1 << 18, closed=True)]
    if status == "done":
        stages.append(run.stage("customize", "lora", rounds[1], 5 * MIB, 1 << 15, closed=True))
    else:
        run.stage("customize", "lora", 2, 5 * MIB, 1 << 15, closed=False)
    run.write()
    summary = {
        "run": str(path),
        "status": status,
        "seed": 7,
        "clock": "virtual",
        "wall_s": 71.2,
        "model_sha256": "ab" * 32 if status == "done" else None,
        "stages": stages,
        "devices": [],
        "exports": [
            {"target": "exit-2", "file": "export/exit-2/model.onnx", "precision": "fp32", "bytes": 559498}
            | {"accuracy": 0.91, "parity_max_abs": 4e-6}
        ],
        "baselines": [
            {"name": "majority", "accuracy": 0.1, "detail": "always '1'"},
            {"name": "linear", "accuracy": 0.95, "detail": "logistic regression on raw pixels"},
            {"name": "features", "accuracy": 0.94, "detail": "logistic regression on frozen features"},
        ],
        "limits": {"memory": "cgroup1", "cpu": None, "network": "virtual"},
        "degraded": ["cpu: affinity can't be set here"],
    }
    if status == "failed":
        summary["error"] = "method 'lora', round: ValueError: <b>no</b> & never"
    (path / "summary.json").write_text(json.dumps(summary))
    (path / "host.json").write_text(json.dumps({"fedge": "0.1.0", "torch": "2.9.0", "cores": 2, "platform": "Linux"}))
    return path


class _Run:
    def __init__(self, path: Path, tests: bool, fleet: dict[str, tuple]):
        self.path = path
        self.tests = tests
        self.fleet = fleet
        self.now = 0.0
        self.accuracy = 0.2
        self.events: list[dict] = []
        self.metrics: list[dict] = []

    def stage(self, stage: str, method: str, rounds: int, peak: int, size: int, *, closed: bool) -> dict:
        began, out = self.now, set()
        for device, (_, _, _, memory, _) in self.fleet.items():
            self._note(
                "picked", stage, 0, device=device, method=method, variant={"micro_batch": 8} if memory < 16 else {},
                predicted_peak=int(0.95 * peak), reason=f"the most preferred of 4 fits (9 MiB of {memory} MiB)",
            )  # fmt: skip
        for number in range(rounds):
            self._round(stage, method, number, peak, size, out)
        metrics = {"accuracy": self.accuracy, "loss": 1 - self.accuracy, "worst_device_accuracy": self.accuracy - 0.05}
        if closed:
            for device, (_, profile, _, memory, work) in self.fleet.items():
                lost = {"round": 2, "cause": cause_of(device)} if cause_of(device) and stage == "train" else None
                self.metrics.append(
                    {"round": None, "device": device, "name": device, "profile": profile, "stage": stage}
                    | {"method": method, "variant": {}, "peak_memory": peak, "predicted_peak_memory": int(0.95 * peak)}
                    | {"budget_memory": memory * MIB, "virtual_s": work * rounds, "energy_j": 12.0, "lost": lost}
                    | {"energy_parts": {"idle": 4.125, "compute": 6.375, "radio": 1.5}}
                    | {"accuracy": self.accuracy, "bytes_up": size * rounds, "bytes_down": size * rounds}
                )
        return {
            "stage": stage, "method": method, "rounds": rounds, "metrics": metrics if self.tests else {}, "devices": 20,
            "lost": 3, "virtual_s": self.now - began, "bytes_up": 20 * size * rounds, "bytes_down": 20 * size * rounds,
            "peak_memory": peak, "energy_j": 240.0,
        }  # fmt: skip

    def _round(self, stage: str, method: str, number: int, peak: int, size: int, out: set[str]) -> None:
        start, end = self.now, self.now + 1.3
        self._note("round", stage, number, cohort=[device for device in self.fleet if device not in out])
        for place, (device, (*_, work)) in enumerate(self.fleet.items()):
            if device in out:
                continue
            cause = cause_of(device) if stage == "train" and number == 2 else None
            said = {"stage": stage, "round": number, "virtual_s": end}
            if cause in ("memory", "host"):
                told = {"phase": "backward", "peak": 13 * MIB, "cap": 12 * MIB} if cause == "memory" else {}
                detail = "killed at its memory wall" if cause == "memory" else "killed by signal 9"
                self._note(
                    "lost", stage, number, device=device, cause=cause, method=method, variant={}, detail=detail, **told
                )
                out |= {device} if cause == "host" else set()
                continue
            arrival = start + work + 0.2 * math.sin(place + number) ** 2 + (1.0 if cause else 0.0)
            self.metrics.append(
                said | {"began": start, "bytes_up": size, "bytes_down": size, "device": device, "arrival": arrival}
                | {"peak_memory": peak, "method": method, "counts": {"loss": 0.5}, "seconds": {"forward": 0.1}}
            )  # fmt: skip
            if cause:
                self._note("lost", stage, number, device=device, cause=cause, phase=None, arrival=arrival)
        self.now = end
        self.accuracy += (0.97 - self.accuracy) * 0.3
        if self.tests:
            self.metrics.append(
                {"stage": stage, "round": number, "virtual_s": end, "device": None, "rows": 400}
                | {"accuracy": self.accuracy, "loss": 1 - self.accuracy}
            )

    def _note(self, event: str, stage: str, number: int, **more) -> None:
        place = {"time": 1.79e9 + self.now, "event": event, "stage": stage, "round": number, "virtual_s": self.now}
        self.events.append({**place, **more})

    def write(self) -> None:
        for name, lines in (("events", self.events), ("metrics", self.metrics)):
            (self.path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
