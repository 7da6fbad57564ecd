"""What a device sustains with each software stack: measured there, or fitted on others and then said so.

``devices/rates.yaml`` holds for each stack the shares of a device's own rates that it sustains, by family of
arithmetic, with factors of the classes and devices that it was measured on. A profile that was calibrated says rates
of its own instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated

from fedge.spec import shipped
from fedge.spec.source import read_yaml
from fedge.spec.values import Byterate, Flops, Seconds, Section, Text, integer, key, number, one_of, read

#: Families of arithmetic beside products of matrices.
FAMILIES = ("conv", "pointwise", "conv_backward", "depthwise", "recurrent")
#: Classes of devices, and how long dispatching an operation takes there, set against a board: estimates, from the
#: speed of one core.
CLASSES = {"board": 1.0, "jetson": 0.7, "phone": 0.5, "laptop": 0.25, "server": 0.25}
#: What devices run when nothing is said: PyTorch on the processor, or on the GPU that they are pinned to.
DEFAULT, DEFAULT_GPU = "pytorch", "pytorch-cuda"

_Ratio = Annotated[float, number(0, 1e6, above=True)]


class Slower(Section):
    """How many times longer than in a product of matrices an operation takes."""

    conv: _Ratio = key("in a convolution", 1.0)
    pointwise: _Ratio = key("in a convolution that looks at one point", 1.0)
    conv_backward: _Ratio = key("in what goes back through a convolution", 1.0)
    depthwise: _Ratio = key("in a convolution with groups, either way", 1.0)
    recurrent: _Ratio = key("in a recurrent layer", 1.0)


class OwnRates(Section):
    """What a device was measured to sustain with one stack."""

    matmul: Flops = key("products of matrices, attention included")
    traffic: Byterate = key("memory traffic of operations, each byte read or written counted")
    dispatch: Seconds = key("time of an operation that does nothing")
    slower: Slower | None = key("other families of arithmetic, in times of a product of matrices", None)


class Stack(Section):
    """A software stack of ``rates.yaml``. Its figures are shares of a device's own rates."""

    about: Text = key("what it is")
    runs_on: Annotated[str, one_of("cpu", "gpu")] = key("where it computes")
    matmul: _Ratio = key("share of the device's rate in products of matrices")
    traffic: _Ratio = key("share of the device's memory traffic")
    dispatch: Seconds = key("time of an operation that does nothing, on a board")
    slower: Slower = key("other families of arithmetic, in times of a product of matrices")
    rows: Annotated[int, integer(0)] = key("how many measurements it was fitted to")
    error: _Ratio | None = key("median error of the fit, models left out in turn", None)
    classes: dict[str, _Ratio] | None = key(
        "how much longer classes of devices take, where several were measured", None
    )
    devices: dict[str, _Ratio] | None = key("how much longer profiles take that were measured themselves", None)


@dataclass(frozen=True)
class StackRates:
    """A device with a stack: FLOP/s in products of matrices, bytes/s, seconds an operation, other families' times.

    ``basis``: ``measured`` on the device itself, ``fitted`` to published measurements on it, or ``class default``.
    """

    stack: str
    flops: float
    memory_bandwidth: float
    per_op: float
    slower: tuple[tuple[str, float], ...]
    basis: str
    how: str


@cache
def load_stacks() -> Mapping[str, Stack]:
    """The stacks by name."""
    source = read_yaml(shipped.shipped("devices") / "rates.yaml", what="file of rates")
    found = {name: read(Stack, body, name, source) for name, body in source.data.items()}
    source.raise_problems()
    return {name: stack for name, stack in found.items() if stack is not None}


def resolve(
    name: str, profile: str, kind: str, flops: float, memory_bandwidth: float, own: OwnRates | None
) -> StackRates:
    """What a device sustains with a stack: ``flops`` and ``memory_bandwidth`` are its own rates; ``own``: as measured.

    ``kind``: its class. The stack must be one of ``load_stacks()``.
    """
    if own is not None:
        how = "measured on this device"
        return StackRates(name, own.matmul, own.traffic, own.dispatch, _times(own.slower), "measured", how)
    stack = load_stacks()[name]
    longer = (stack.devices or {}).get(profile)
    by_class = (stack.classes or {}).get(kind)
    factor = (by_class or 1.0) * (longer or 1.0)
    if longer is not None:
        basis, how = "fitted", "to measurements on this device that others published"
    else:
        on = f"other devices ({stack.rows} measurements)" if stack.rows else "no device: an estimate"
        basis, how = "class default", f"never measured on this device; fitted on {on}"
    per_op = stack.dispatch * CLASSES.get(kind, 1.0) * factor
    slower = _times(stack.slower)
    rates = _rounded(flops * stack.matmul / factor), _rounded(memory_bandwidth * stack.traffic / factor)
    return StackRates(name, *rates, _rounded(per_op), slower, basis, how)


def _rounded(value: float) -> float:
    """Three digits: no fit knows more."""
    return float(f"{value:.3g}")


def _times(slower: Slower | None) -> tuple[tuple[str, float], ...]:
    return tuple((name, float(getattr(slower or Slower(), name))) for name in FAMILIES)
