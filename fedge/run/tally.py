"""A round's figures by device, as ``metrics.jsonl`` has them, from the answers that came."""

from __future__ import annotations

from collections import Counter
from typing import Any

from fedge.run.events import Answered

#: Why an answer did not count that came in time, when more devices were asked than needed.
SURPLUS = "surplus"
#: How a device's last turn of a round may end, beside being lost, and the words for it.
_WORDS = {"answered": "answered", "late": "too late", SURPLUS: "not needed", "kept": "kept from earlier rounds"}
#: A device that a real clock finds later than this, in seconds and as a share of its turn, is told of by name.
BEHIND_S, BEHIND = 0.02, 0.02


class Tally:
    """One round's answers. figures[device] is what its turns came to; ends[device] how its last one ended: 'answered',
    'late', 'surplus', or 'kept' where an answer to an earlier round counted in this one."""

    def __init__(self) -> None:
        self.figures: dict[str, dict[str, Any]] = {}
        self.ends: dict[str, str] = {}

    def count(
        self, event: Answered, method: str | None, *, began: float, arrival: float, down: int, energy: float
    ) -> None:
        """Add a turn. began, arrival: emulated seconds. down: bytes that the device was sent. energy: in joules."""
        start = {"began": began, "bytes_up": 0, "bytes_down": 0, "energy_j": 0.0}
        seen = self.figures.setdefault(event.device, start)
        seen["energy_j"] += energy
        seen["bytes_up"] += len(event.data)
        seen["bytes_down"] += down
        seen.update(
            device=event.device,
            arrival=arrival,
            peak_memory=event.peak,
            method=method,
            counts=event.noted.get("counts", {}),
            seconds=event.noted.get("seconds", {}),
        )
        for name, value in event.paced.items():
            seen[name] = value if name == "slowdown" else seen.get(name, 0.0) + value

    def words(self) -> str:
        """How many answered, and how many did so too late or were not needed."""
        counts = Counter(self.ends.values())
        return ", ".join(f"{counts[end]} {word}" for end, word in _WORDS.items() if counts[end] or end == "answered")


def is_behind(event: Answered) -> bool:
    """Whether a real clock finds the device so late that it is told of by name."""
    return event.paced.get("behind_s", 0.0) > max(BEHIND_S, BEHIND * event.paced.get("wall_s", 0.0))
