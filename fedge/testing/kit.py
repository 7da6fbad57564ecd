"""The conformance kit: every rule that a method must keep, tried on tiny models in this process.

from fedge.testing import check_method
check_method("lora")                      # a method of the catalogue, or of an installed package
check_method("my_module:MyMethod")        # or MyMethod(rank=4)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch

from fedge.core.method import Method
from fedge.methods.make import make
from fedge.testing import leaving, rounds
from fedge.testing.case import Broken, Case
from fedge.testing.tiny import SETTINGS, checksum, tiny

Property = Callable[[Case], "str | None"]

#: Every property by name, in the order in which they are tried.
PROPERTIES: Mapping[str, Property] = MappingProxyType(
    {
        "card": leaving.card,
        "value": rounds.value,
        "variants": rounds.variants,
        "still": rounds.still,
        "alone": rounds.alone,
        "order": rounds.order,
        "lost": rounds.lost,
        "absent": rounds.absent,
        "resume": rounds.resume,
        "replaced": rounds.replaced,
        "linear": rounds.linear,
        "roles": leaving.roles,
        "raw": leaving.raw,
        "personal": leaving.personal,
        "bytes": leaving.bytes_predicted,
        "export": leaving.export,
    }
)


@dataclass(frozen=True)
class Checked:
    """What became of one property on one setting: it holds (``why`` is None), or why it was not asked for."""

    property: str
    setting: str
    why: str | None = None


class NotConforming(AssertionError):
    """A method that breaks properties; the message has a line for each, and what to mend."""

    def __init__(self, method: Method, broken: Sequence[str]):
        super().__init__(f"{type(method).__module__}:{type(method).__qualname__}\n" + "\n".join(broken))
        self.broken = tuple(broken)


def check_method(
    method: str | Method,
    options: Mapping[str, Any] | None = None,
    *,
    settings: Sequence[str] | None = None,
    properties: Sequence[str] | None = None,
) -> list[Checked]:
    """Hold a method and all its variants against the properties; returns what was checked.

    method: a key, ``module:Class``, or a method. options: fields for a key. settings: names of
    ``fedge.testing.tiny.SETTINGS`` (None: image and text, as far as the card's tasks go). properties: names of
    ``PROPERTIES`` (None: all). Sets torch to one thread.

    Raises NotConforming with every property that does not hold, ConfigError for a method that can't be made.
    """
    made = make(method, dict(options or {})) if isinstance(method, str) else method
    names = list(properties or PROPERTIES)
    unknown = [name for name in names if name not in PROPERTIES]
    if unknown:
        raise ValueError(f"no property {', '.join(unknown)}; there are {', '.join(PROPERTIES)}")
    torch.set_num_threads(1)
    checked, broken = [], []
    for setting in settings or settings_of(made):
        case = Case.of(made, tiny(setting))
        for name in names:
            try:
                checked.append(check_property(name, case))
            except Broken as error:
                broken.append(f"  {name} ({setting}): {error}")
    if broken:
        raise NotConforming(made, broken)
    return checked


def settings_of(method: Method) -> list[str]:
    """The settings on which a method is tried: image and text if it does these tasks, else the first that it does."""
    able = [name for name, (_, task) in SETTINGS.items() if task in method.card.tasks]
    return [name for name in able if name in ("image", "text")] or able[:1]


def check_property(name: str, case: Case) -> Checked:
    """Try one property. Raises Broken, also for an error in the method's own code and for a base that was written."""
    waived = dict(case.method.card.waives).get(name) if name in leaving.WAIVABLE else None
    if waived is not None:
        return Checked(name, case.tiny.name, f"waived: {waived}")
    before = checksum(case.tiny.model)
    try:
        why = PROPERTIES[name](case)
    except Broken:
        raise
    except Exception as error:
        raise Broken(
            f"the method's code fails: {type(error).__name__}: {error}",
            "fedge.testing.drive runs it alone, in one process.",
        ) from error
    finally:
        written = checksum(case.tiny.model) != before
        if written:
            tiny.cache_clear()
    if written:
        raise Broken(
            "the stage's base was written to, which every device shares",
            "Change parameters after 'build' alone, and no buffers; on the server work on srv.copy() or srv.model().",
        )
    return Checked(name, case.tiny.name, why)
