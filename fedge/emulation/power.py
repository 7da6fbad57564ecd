"""A device's energy: each state draws its own constant power."""

from __future__ import annotations


def energy(compute_s: float, radio_s: float, idle_s: float, *, idle_w: float, active_w: float, radio_w: float) -> float:
    """Joules for so many seconds of computing, sending or receiving, and waiting.

    ``active_w`` is the whole device's power while it computes, idle share included; ``radio_w`` comes on top of
    ``idle_w`` while the radio is on. The three times don't overlap.
    """
    return compute_s * active_w + radio_s * (idle_w + radio_w) + idle_s * idle_w


def parts(
    compute_s: float, radio_s: float, idle_s: float, *, idle_w: float, active_w: float, radio_w: float
) -> dict[str, float]:
    """The same joules by what they go to: ``idle``, what the device draws all the time, and ``compute`` and ``radio``,
    what each of the two takes beyond that."""
    return {
        "idle": (compute_s + radio_s + idle_s) * idle_w,
        "compute": compute_s * (active_w - idle_w),
        "radio": radio_s * radio_w,
    }
