"""What a field of a method or codec says of itself."""

from __future__ import annotations


def doc(text: str, *choices: str) -> dict[str, object]:
    """Metadata of a hyperparameter: one line for ``--help`` and the schema, and its choices."""
    return {"doc": text, "choices": choices} if choices else {"doc": text}
