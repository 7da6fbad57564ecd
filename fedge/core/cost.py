"""What one round of one variant costs a device, what a device has, and where the one exceeds the other. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Budget:
    """What a device grants to the federated workload, and how fast it is.

    memory in bytes; flops in operations a second (sustained, fp32); memory_bandwidth in bytes a second;
    up and down in bits a second; latency, jitter in seconds (latency: round trip); loss a share; power in watts;
    deadline in seconds a round or None.
    """

    memory: int
    flops: float
    memory_bandwidth: float
    down: float
    up: float
    latency: float = 0.0
    jitter: float = 0.0
    loss: float = 0.0
    idle_power: float = 0.0
    active_power: float = 0.0
    deadline: float | None = None


@dataclass(frozen=True)
class Shortfall:
    """One limit that a cost breaks: which one, what is needed and what there is (same unit)."""

    limit: str
    need: float
    have: float


@dataclass(frozen=True)
class Cost:
    """One round of one variant on one device, traced rather than measured.

    peak_memory: bytes that the device must hold at once, the frozen weights included. shared: the part of it that
    is read but never written, which fedge's processes hold once for all. parts: the peak by kind. flops, traffic
    (bytes moved), ops (dispatched operations) of the whole round; bytes_up and bytes_down of payloads with their
    headers, as codecs leave them. sent: bytes of the largest answer by role, before codecs. turns: how many times the
    device is asked in a round. depth: how many layers gradients reach; trainable: how many numbers are trained.
    measured: the figures come from a real run because the method could not be traced.
    """

    peak_memory: int
    shared: int = 0
    parts: dict[str, int] = field(default_factory=dict)
    flops: float = 0.0
    traffic: float = 0.0
    ops: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    sent: dict[str, int] = field(default_factory=dict)
    turns: int = 1
    once_flops: float = 0.0
    once_traffic: float = 0.0
    depth: int = 0
    trainable: int = 0
    measured: bool = False

    #: The wall's verdict repeats only a little way from its cap, so a need within this share of the budget is refused.
    margin = 0.05
    margin_bytes = 4 << 20

    @property
    def memory_needed(self) -> int:
        """The budget below which this variant is refused: the peak and the grey zone above it, in bytes."""
        return self.peak_memory + max(int(self.peak_memory * self.margin), self.margin_bytes)

    def fits(self, budget: Budget, seconds: float | None = None) -> list[Shortfall]:
        """The limits of ``budget`` that this cost breaks, in the order in which they would be felt.

        ``seconds``: what the round takes on that device, for the deadline (the roofline and the link say).
        """
        broken = []
        if self.memory_needed > budget.memory:
            broken.append(Shortfall("memory", self.memory_needed, budget.memory))
        if budget.deadline is not None and seconds is not None and seconds > budget.deadline:
            broken.append(Shortfall("deadline", seconds, budget.deadline))
        return broken
