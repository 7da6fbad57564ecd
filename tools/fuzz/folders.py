"""Damaged files of a run's folder before whoever reads them: a resume, ``ps``, the report's tables.

Half of the sealed files are sealed anew after the damage, so that it is not their digest that finds it.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from random import Random

from fedge.report.compare import compare
from fedge.run.checkpoint import Checkpoint
from fedge.run.folder import RunFolder
from fedge.run.host import check_host
from fedge.run.roster import look
from fedge.run.states import load_state
from fedge.spec import load_federation
from fedge.wire.keys import Keyring
from tools.fuzz.corpus import Recording
from tools.fuzz.mutate import damaged, rejson

_SEAL = b"fedge 1 sha256 "
_SEALED = len(_SEAL) + 65


class FolderTarget:
    """Fulfils ``campaign.Target``."""

    name = "checkpoints"

    def __init__(self, recording: Recording, place: Path):
        self.counted = 0
        self._folder = place / "damaged"
        shutil.copytree(recording.folder, self._folder)
        files = [path for path in sorted(self._folder.rglob("*")) if path.is_file()]
        self._whole = {path: path.read_bytes() for path in files}
        sealed = [path for path, data in self._whole.items() if data.startswith(_SEAL)]
        named = ("summary.json", "progress.json", "host.json", "metrics.jsonl", "resolved.yaml")
        plain = [path for path in files if path.name in named]
        launcher = self._folder / "launcher.json"
        self._whole[launcher] = b'{"pid": 4194304, "started": 1, "scratch": "/nowhere", "groups": null}\n'
        allowed = self._folder / "keys" / "allowed.json"
        allowed.parent.mkdir()
        self._whole[allowed] = b'{"fedge": "who may come in", "devices": {"a": "%s"}}' % (b"a" * 40)
        allowed.write_bytes(self._whole[allowed])
        self._files = [*sealed * 3, *plain, launcher, allowed]
        self._given = b""

    def case(self, draw: Random) -> str:
        self.counted += 1
        path = draw.choice(self._files)
        data = self._whole[path]
        sealed = data.startswith(_SEAL)
        if sealed and draw.random() < 0.5:
            inner = _resealed(data[_SEALED:], draw)
            self._given = _SEAL + hashlib.sha256(inner).hexdigest().encode() + b"\n" + inner
        elif not sealed and draw.random() < 0.5:
            self._given = rejson(data, draw)
        else:
            self._given = damaged(data, draw, draw.choice(list(self._whole.values())))
        path.write_bytes(self._given)
        try:
            self._read(path)
        finally:
            if path.name == "launcher.json":
                path.unlink()
            else:
                path.write_bytes(data)
        return "read"

    def input(self) -> bytes:
        return self._given

    def close(self) -> None:
        pass

    def _read(self, path: Path) -> None:
        folder = RunFolder(self._folder)
        if path.name == "run.checkpoint":
            Checkpoint.load(path.parent)
        elif path.suffix == ".state":
            load_state(path)
        elif path.name == "resolved.yaml":
            load_federation(path)
        elif path.name == "host.json":
            check_host(folder, lambda line: None)
        elif path.name == "allowed.json":
            Keyring(path.parent, _no_pair).device_of("b" * 40)
        elif path.name in ("launcher.json", "progress.json"):
            look(folder).row()
        else:
            look(folder).row()
            compare([self._folder, self._folder], None, None)


def _resealed(data: bytes, draw: Random) -> bytes:
    """Damage inside: in the JSON header, the JSON in it, or the tensors."""
    length = 8 + int.from_bytes(data[:8], "little")
    if draw.random() < 0.3 or not 8 < length <= len(data):
        return damaged(data, draw)
    header = rejson(data[8:length], draw) if draw.random() < 0.5 else _state(data[8:length], draw)
    return len(header).to_bytes(8, "little") + header + data[length:]


def _state(header: bytes, draw: Random) -> bytes:
    import json

    value = json.loads(header)
    told = value.get("__metadata__", {}).get("state")
    if told is not None:
        value["__metadata__"]["state"] = rejson(told.encode(), draw).decode("utf-8", "replace")
    return json.dumps(value).encode()


def _no_pair() -> object:
    raise AssertionError("nothing makes keys here")
