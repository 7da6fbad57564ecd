"""What a device on another machine needs for a stage, kept by digest, so that nothing is sent twice."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedge.errors import ProtocolError
from fedge.run.folder import write_whole


class Parts:
    """One stage's parts by name, as files of ``folder``; ``told``: digest and bytes of each, as the coordinator says.

    Raises ProtocolError for a digest that is none.
    """

    def __init__(self, folder: Path, told: Mapping[str, Any]):
        self._folder = folder
        self._digests = {name: str(digest) for name, (digest, _) in told.items()}
        self._sizes = {name: int(size) for name, (_, size) in told.items()}
        if not all(re.fullmatch(r"[0-9a-f]{64}", digest) for digest in self._digests.values()):
            raise ProtocolError("the coordinator names a part by no digest")

    def file(self, name: str) -> Path:
        """Where a part is, once it is there."""
        return self._folder / self._digests[name]

    def size(self, name: str) -> int:
        """Bytes of a part."""
        return self._sizes[name]

    def missing(self) -> list[str]:
        """The parts that aren't there yet."""
        return [name for name in self._digests if not self.file(name).exists()]

    def put(self, name: str, data: bytearray) -> None:
        """Keep what arrived. Raises ProtocolError where nobody asked for it or it isn't what was announced."""
        if name not in self._digests:
            raise ProtocolError("the coordinator sent a part that nobody asked for")
        if hashlib.sha256(data).hexdigest() != self._digests[name]:
            raise ProtocolError(f"the coordinator's {name} is not what it announced")
        write_whole(self.file(name), data)
