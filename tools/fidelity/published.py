"""Rows of measurements on real devices: which device, software stack, model and step each is about."""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from pathlib import Path

from fedge.spec.device import bundled_profiles
from tools.fidelity.counts import Step, step
from tools.fidelity.rebuilt import UnknownModelError


@dataclass(frozen=True)
class Host:
    """A device's processor or accelerator: its class, sustained FLOP/s (fp32) and bytes/s of memory traffic."""

    name: str
    kind: str
    flops: float
    bandwidth: float


@dataclass(frozen=True)
class Row:
    """One measurement that can be rebuilt: ``seconds`` of a step, or ``memory`` in bytes at its peak."""

    line: int
    source: str
    host: Host
    stack: str
    model: str
    method: str
    batch: int
    size: str
    seconds: float | None
    memory: float | None
    step: Step
    note: str = ""

    @property
    def reads(self) -> bool:
        """Whether the seconds hold the reading of pictures from a card too."""
        return "image loading" in self.note or "federated-embedded-vision" in self.source

    @property
    def alike(self) -> tuple[str, ...]:
        """What rows share that differ in nothing but the method."""
        return (self.source, self.host.name, self.stack, self.model, str(self.batch), self.size)


#: Words of a row's device -> the bundled profile that stands for it.
_PROFILES = {
    r"raspberry pi zero 2": "pi-zero-2w",
    r"raspberry pi 3b?\+": "pi-3b-plus",
    r"raspberry pi 4": "pi-4b-4g",
    r"raspberry pi 5": "pi-5-8g",
    r"jetson orin nano": "jetson-orin-nano-8g",
    r"agx orin": "jetson-agx-orin-64g",
    r"xavier nx": "jetson-xavier-nx-8g",
    r"jetson tx2": "jetson-tx2-8g",
    r"jetson nano": "jetson-nano-4g",
    r"pixel 4\b": "pixel-4",
    r"pixel 6": "pixel-6",
    r"pixel [89]\b": "pixel-8",
    r"galaxy s10|note 10": "galaxy-s10",
    r"galaxy s22": "galaxy-s22",
    r"iphone 12": "iphone-12",
    r"iphone 1[56]": "iphone-15",
    r"coral dev board": "coral-dev-board",
    r"rtx 3060": "workstation-rtx3060",
    r"\bt4\b": "edge-server-t4",
    r"\ba10\b": "edge-server-a10",
}
#: Devices that nobody has profiled: GFLOP/s and GB/s, by the rules of `devices/` (half the peak for a desktop's GPU, a
#: tenth of it for a phone's; of a phone's processor what ncnn reaches on one of its generation). All are estimates.
_ESTIMATES: dict[str, tuple[str, float, float]] = {
    r"rtx 4090": ("gpu", 41000, 1008),
    r"7900 xtx": ("gpu", 30000, 960),
    r"arc a770": ("gpu", 9800, 560),
    r"m3 pro": ("gpu", 3500, 150),
    r"apple m\d|macbook": ("gpu", 2000, 100),
    r"adreno 830|snapdragon 8 elite|galaxy s25": ("phone-gpu", 340, 60),
    r"adreno 7[45]\d": ("phone-gpu", 250, 45),
    r"mali-g77|galaxy s20": ("phone-gpu", 100, 20),
    r"snapdragon 778": ("phone", 60, 12),
    r"snapdragon 6\d\d": ("phone", 35, 7),
    r"snapdragon 835": ("phone", 60, 14),
    r"snapdragon 845": ("phone", 80, 15),
    r"snapdragon 8 gen 3|oneplus 12": ("phone", 130, 35),
    r"kirin 950": ("phone", 45, 11),
    r"kirin 9[789]\d": ("phone", 100, 18),
    r"iphone 17": ("phone", 130, 50),
    r"iphone se": ("phone", 105, 30),
    r"iphone": ("phone", 110, 35),
    r"pixel 10": ("phone", 120, 30),
    r"pixel 7": ("phone", 100, 25),
    r"galaxy|oneplus|xiaomi|huawei|oppo|redmi|pixel": ("phone", 80, 15),
}


def host(device: str, processor: str) -> Host | None:
    """The device of a row; None where the row doesn't say which it was."""
    low = device.lower()
    if "not stated" in low or "not named" in low:
        return None
    gpu = processor == "gpu"
    for words, name in _PROFILES.items():
        if re.search(words, low):
            profile = bundled_profiles()[name]
            fast = profile.accelerator if gpu else None
            if gpu and fast is None:
                continue
            kind = _kind(name, gpu)
            bandwidth = (fast.memory_bandwidth if fast else None) or profile.memory_bandwidth
            return Host(f"{name}/gpu" if gpu else name, kind, (fast or profile).compute, bandwidth)
    for words, (kind, flops, bandwidth) in _ESTIMATES.items():
        if re.search(words, low) and (("gpu" in kind) == gpu):
            return Host(low.split(" (")[0], kind, flops * 1e9, bandwidth * 1e9)
    return None


def _kind(profile: str, gpu: bool) -> str:
    phone = profile.startswith(("pixel", "galaxy", "iphone", "android"))
    if gpu:
        return "phone-gpu" if phone else "jetson-gpu" if profile.startswith("jetson") else "gpu"
    return "phone" if phone else "board"


def stack(source: str, processor: str, dtype: str, note: str) -> str:
    """The software that a row was measured with, as ``devices/rates.yaml`` calls it."""
    said = f"{source} {note}".lower()
    if "qvac" in said or "ggml" in said or "llama.cpp" in said:
        base = re.match(r"q\d_\d|tq\d_\d|fp\d+", dtype)
        return f"ggml-{base[0]}" if base else "ggml-q8_0"
    for words, name in (
        ("edgeflowertune", "mobile-cpp"),
        ("flash", "dl4j"),
        ("executorch", "xnnpack"),
        ("netspresso", "tensorrt"),
        ("efficientvit readme", "tensorrt"),
        ("mnn", "mnn-fp16" if "fp16" in dtype else "mnn"),
    ):
        if words in said:
            return name
    if "iree" in said:
        return "iree-vulkan" if processor == "gpu" else "iree"
    if "tflite" in said or "tensorflow lite" in said or "efficientnet-lite" in said:
        return "tflite-gpu" if processor == "gpu" else "tflite"
    if "tensorflow" in said:
        return "tensorflow"
    if "int8" in dtype:
        return "pytorch-int8"
    if processor == "gpu":
        if "fp16" in dtype:
            return "pytorch-cuda-fp16" if "not tensorrt" in said or "torch2trt" not in said else "tensorrt"
        return "pytorch-cuda"
    return "pytorch"


@dataclass(frozen=True)
class Left:
    """A row that can't be predicted, and why."""

    line: int
    why: str


def rows(path: Path) -> tuple[list[Row], list[Left]]:
    """The rows of a csv that can be rebuilt, and those that can't."""
    found: list[Row] = []
    left: list[Left] = []
    with path.open(newline="") as file:
        for line, given in enumerate(csv.DictReader(file), start=2):
            try:
                found.append(_row(line, given))
            except UnknownModelError as error:
                left.append(Left(line, str(error)))
    return found, left


def _row(line: int, given: dict[str, str]) -> Row:
    where = host(given["device"], given["processor"])
    batch = re.match(r"\d+", given["batch"])
    seconds, memory = _seconds(given), _memory(given)
    if seconds is None and memory is None:
        raise UnknownModelError(f"{given['quantity']} is neither a time nor a memory")
    if where is None and seconds is not None:
        raise UnknownModelError("the row doesn't name its device, or nobody knows it")
    if batch is None and "paper setting 4/256" not in given["note"] and "executorch" not in given["source"]:
        raise UnknownModelError("the batch or the length of sequences isn't stated")
    size = given["seq_len_or_image"] or ("256" if "4/256" in given["note"] else "80")
    found = int(batch[0]) if batch else 4 if "4/256" in given["note"] else 1
    params = float(given["params_M"] or 0)
    name = stack(given["source"], given["processor"], given["dtype"], given["note"])
    counted = step(given["model"], given["method"], found, size, params)
    unknown = Host("not named", "unknown", 1.0, 1.0)
    return Row(
        line,
        given["source"],
        where or unknown,
        name,
        given["model"],
        given["method"],
        found,
        size,
        seconds,
        memory,
        counted,
        given["note"],
    )


def _seconds(given: dict[str, str]) -> float | None:
    """Seconds of a step. An epoch's are divided by its steps where the note says how many those were."""
    value = float(given["value"])
    if given["quantity"] == "s_per_step":
        return value
    if given["quantity"] == "inference_ms":
        return value / 1000
    if given["quantity"] == "s_per_epoch":
        if tokens := re.search(r"n = ([\d,]+) tokens", given["note"]):
            per_step = int(given["batch"]) * int(given["seq_len_or_image"])
            return value / (int(tokens[1].replace(",", "")) / per_step)
        if steps := re.search(r"n=(\d+) local steps", given["note"]):
            return value / int(steps[1])
        raise UnknownModelError("how many steps the epoch had isn't stated")
    return None


def _memory(given: dict[str, str]) -> float | None:
    if given["quantity"] != "peak_memory_MB" or "AVERAGE" in given["note"]:
        return None
    return float(given["value"]) * (2**20 if given["unit"] == "MiB" else 1e6)
