"""Code that isn't fedge's own, where a coordinator on another machine asks for it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from fedge.errors import ConfigError

_PATH = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


def refuse_code(brief: Any, model: dict[str, Any]) -> None:
    """Refuse what isn't part of fedge: a coordinator may say what is done, and not what code this machine runs.

    brief: the stage's, as JSON. model: ``name`` and ``trust_remote_code``. Raises ConfigError.
    """
    named = [model["name"]] if _PATH.fullmatch(str(model["name"])) else []
    if model.get("trust_remote_code"):
        named.append(f"the code of {model['name']}")
    named += [found for found in _classes(brief) if not found.startswith(("fedge.methods.", "fedge.codecs."))]
    if named:
        raise ConfigError(
            f"the coordinator asks this machine to run {named[0]}, which is not part of fedge (--trust-code allows it)"
        )


def _classes(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if "class" in value:
            yield str(value["class"])
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _classes(item)
