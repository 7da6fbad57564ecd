"""What one round of one variant costs a device, what a device has, and where the one exceeds the other. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

#: Families of arithmetic that devices do at rates of their own, beside products of matrices: convolutions that look
#: at more than a point, those that look at one, what goes back through either, those with groups (either way), and
#: recurrent layers.
KINDS = ("conv", "pointwise", "conv_backward", "depthwise", "recurrent")


@dataclass(frozen=True)
class Budget:
    """What a device grants to the federated workload, and how fast it is.

    memory in bytes; flops in operations a second (sustained, fp32, products of matrices); memory_bandwidth in bytes a
    second; per_op in seconds for each dispatched operation; slower: how many times longer than in a product of matrices
    an operation takes in each of ``KINDS`` named;
    up and down in bits a second; latency, jitter in seconds (latency: round trip); loss a share; power in watts
    (radio: beyond idle, None where it isn't known);
    deadline in seconds a round or None. What a round may cost beside that, None where nothing is said: data in bytes,
    down and up together; energy in joules; battery in joules, the round's share of what a stage may take.
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
    radio_power: float | None = None
    deadline: float | None = None
    data: int | None = None
    energy: float | None = None
    battery: float | None = None
    per_op: float = 0.0
    slower: tuple[tuple[str, float], ...] = ()


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
    (bytes moved), ops (dispatched operations) of the whole round; kinds: the share of the flops that each of ``KINDS``
    has, taken to hold for all the work of this variant; bytes_up and bytes_down of payloads with their
    headers, as codecs leave them. sent: bytes of the largest answer by role, before codecs. turns: how many times the
    device is asked in a round. depth: how many layers gradients reach; trainable: how many numbers are trained.
    own_flops, own_traffic, own_ops: of taking the device's own model after the stage, where the method has one; row_…:
    of testing it on one row. measured: the figures come from a real run because the method could not be traced.
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
    own_flops: float = 0.0
    own_traffic: float = 0.0
    own_ops: float = 0.0
    row_flops: float = 0.0
    row_traffic: float = 0.0
    row_ops: float = 0.0
    measured: bool = False
    kinds: dict[str, float] = field(default_factory=dict)

    #: The wall's verdict repeats only a little way from its cap, so a need within this share of the budget is refused.
    margin = 0.05
    margin_bytes = 4 << 20

    def own_test(self, rows: int) -> Cost:
        """What it costs a device to take its own model and test it on so many rows, once."""
        return replace(
            self,
            flops=self.own_flops + rows * self.row_flops,
            traffic=self.own_traffic + rows * self.row_traffic,
            ops=round(self.own_ops + rows * self.row_ops),
            turns=1,
            once_flops=0.0,
            once_traffic=0.0,
        )

    @property
    def memory_needed(self) -> int:
        """The budget below which this variant is refused: the peak and the grey zone above it, in bytes."""
        return self.peak_memory + max(int(self.peak_memory * self.margin), self.margin_bytes)

    def fits(self, budget: Budget, seconds: float | None = None, joules: float | None = None) -> list[Shortfall]:
        """The limits of ``budget`` that this cost breaks, in the order in which they would be felt.

        ``seconds``, ``joules``: what the round takes on that device (the roofline, the link and the powers say).
        """
        needs = (
            ("memory", self.memory_needed, budget.memory),
            ("deadline", seconds, budget.deadline),
            ("data", self.bytes_down + self.bytes_up, budget.data),
            ("energy", joules, budget.energy),
            ("battery", joules, budget.battery),
        )
        return [
            Shortfall(limit, need, have)
            for limit, need, have in needs
            if need is not None and have is not None and need > have
        ]
