"""Describe methods of other packages as rows of the catalogue, in a process of its own that may import torch.

    python -m fedge.methods.describe KEY=module:Class …

Prints one JSON object: each key's row, or ``{"error": why}``.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from importlib import import_module
from typing import Any

from fedge.core.method import Method
from fedge.methods.generate import built_row


def described(key: str, target: str) -> dict[str, Any]:
    """The row of a method that another package registers under ``key``."""
    module, _, name = target.partition(":")
    try:
        made = getattr(import_module(module), name)
    except Exception as error:  # whatever a package's import raises is the package's news, not fedge's end
        return {"error": f"{target} can't be imported: {type(error).__name__}: {error}"}
    if not (isinstance(made, type) and issubclass(made, Method) and dataclasses.is_dataclass(made)):
        return {"error": f"{target} is no fedge method: a frozen dataclass that derives from fedge.core.method.Method"}
    if getattr(made, "card", None) is None:
        return {"error": f"{target} has no card"}
    try:
        return built_row(key, target, {}, {})
    except (TypeError, ValueError) as error:
        return {"error": str(error)}


if __name__ == "__main__":
    print(
        json.dumps({key: described(key, target) for key, _, target in (pair.partition("=") for pair in sys.argv[1:])})
    )
