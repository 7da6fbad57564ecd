"""What privacy mechanisms need of a method, in closed words, and why one refuses. No torch."""

from __future__ import annotations

from collections.abc import Sequence

#: Roles whose tensors may be clipped to a norm and be noised without losing what they are for.
CLIPPED = ("delta", "scalars", "logits")
#: Where noise is added: by the server on the sum; by each device on what it sends; by all devices together, each a
#: share that no one but the sum shows (only under secure aggregation).
WHERE = ("central", "local", "distributed")
#: How a round's noise goes with other rounds': drawn anew, or so that the sum of all rounds has little.
MECHANISMS = ("gaussian", "ftrl")
#: How a server may aggregate other than by the mean.
RULES = ("median", "trimmed", "krum", "multikrum", "clip", "fltrust")
#: Roles of which a range is known beforehand: changes are small numbers around zero.
RANGED = ("delta", "scalars")


def private_refusal(key: str, linear: bool, roles: Sequence[str], where: str) -> str | None:
    """Why differential privacy can't hold for a method that sends ``roles``; None where it can."""
    wrong = [role for role in roles if role not in CLIPPED]
    if wrong:
        return f"privacy bounds {', '.join(CLIPPED)}, and '{key}' sends {', '.join(wrong)}"
    if where != "local" and not linear:
        return f"noise on the sum covers a method that needs the sum alone, and '{key}' needs every device's answer"
    return None


def secure_refusal(key: str, linear: bool, roles: Sequence[str], ranged: bool) -> str | None:
    """Why answers of ``roles`` can't be summed under masks; ``ranged``: the file says how large the numbers get."""
    if not linear:
        return f"masks leave the sum alone, and '{key}' needs every device's answer"
    unknown = [role for role in roles if role not in RANGED]
    if unknown and not ranged:
        return f"'{key}' sends {', '.join(unknown)}, whose range is not known: say it by range"
    return None


def robust_refusal(key: str, linear: bool, roles: Sequence[str]) -> str | None:
    """Why a robust rule can't stand in for a method's mean."""
    if not linear:
        return f"a rule replaces the mean, and '{key}' does more with its answers than average them"
    if tuple(roles) != ("delta",):
        return f"rules compare changes (delta), and '{key}' sends {', '.join(roles)}"
    return None
