"""A stage's privacy as its records tell it: what was asked for, what rounds have spent, and what that rests on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fedge.privacy.account import Release, spent

#: What the figure of epsilon takes for granted, by where the noise is added.
_RESTS_ON = {
    "central": "the server is trusted with each answer, and who drops out does not depend on rows",
    "local": "nobody is trusted; each device counts as taking part in every round",
    "distributed": "the server is trusted to follow the protocol, and sees sums alone; the threshold's share of those "
    "asked add their noise; each device counts as taking part in every round",
}


@dataclass(frozen=True)
class Budgeted:
    """A stage's privacy: ``where`` its noise is added, ``clip``, and what each round releases at which ``delta``."""

    where: str
    clip: float
    delta: float
    release: Release

    def epsilon(self, rounds: int) -> float:
        """What so many rounds have spent."""
        return spent([(self.release, rounds)], self.delta)

    def record(self, rounds: int) -> dict[str, Any]:
        """For ``summary.json``."""
        return {
            "epsilon": self.epsilon(rounds),
            "delta": self.delta,
            "where": self.where,
            "noise": self.release.noise,
            "clip": self.clip,
            "sampling": self.release.sampling,
            "mechanism": "ftrl" if self.release.epoch else "gaussian",
            "rests_on": _RESTS_ON[self.where],
        }

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> Budgeted:
        return cls(**{**plain, "release": Release(**plain["release"])})


def sentence(stages: Sequence[tuple[str, Budgeted | None, int]]) -> str | None:
    """What a model's card says of privacy; ``stages``: each one's name, its privacy, and the rounds that were run."""
    private = [(name, told, rounds) for name, told, rounds in stages if told is not None]
    if not private:
        return None
    delta = max(told.delta for _, told, _ in private)
    epsilon = spent([(told.release, rounds) for _, told, rounds in private], delta)
    how = "; ".join(
        f"{name}: {told.where} noise of {told.release.noise:g} times the clip {told.clip:g} in {rounds} rounds"
        for name, told, rounds in private
    )
    text = f"Differential privacy for devices: epsilon {epsilon:.3f} at delta {delta:g} ({how})."
    bare = [name for name, told, _ in stages if told is None]
    if bare:
        text += f" The stages {', '.join(bare)} had none, so the guarantee covers what the others added alone."
    assumed = dict.fromkeys(_RESTS_ON[told.where] for _, told, _ in private)
    return f"{text} It rests on this: {'; '.join(assumed)}."
