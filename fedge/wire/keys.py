"""Who may take part over tcp: the coordinator's folder of keys, and the file that one device is given.

    keys/coordinator.key   the coordinator's own pair
    keys/allowed.json      the public key of each device that may come in
    keys/pi-00.key         what pi-00 needs: its pair, and the coordinator's public key; to be taken to it

Keys are CURVE's (X25519), written in ZeroMQ's Z85. Files with a secret in them are 0600 from their first byte, and one
that others could read is refused. Nothing here opens a socket.
"""

from __future__ import annotations

import json
import os
import re
import stat
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedge.errors import ConfigError, FedgeError, MissingError, Problem

COORDINATOR, ALLOWED = "coordinator.key", "allowed.json"

_Z85 = re.compile(r"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")
#: What may be a device's name where a file is named after it.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_LARGEST = 1 << 20


@dataclass(frozen=True)
class Pair:
    """A CURVE pair in Z85, 40 characters each."""

    public: str
    secret: str

    def __repr__(self) -> str:
        return f"Pair({self.public!r}, …)"


@dataclass(frozen=True)
class DeviceKey:
    """What a device's key file holds; ``coordinator`` is the public key by which it knows whom it speaks with."""

    device: str
    pair: Pair
    coordinator: str

    @classmethod
    def read(cls, path: Path) -> DeviceKey:
        """Read a device's file. MissingError where there is none, ConfigError where it may not be trusted."""
        told = _read(path, "device")
        device = told.get("device")
        if not isinstance(device, str) or not _NAME.fullmatch(device):
            raise _damaged(path, "it names no device")
        return cls(
            device, Pair(_z85(told, "public", path), _z85(told, "secret", path)), _z85(told, "coordinator", path)
        )

    def write(self, path: Path) -> None:
        """Write the file, readable by its owner alone."""
        pair = {"public": self.pair.public, "secret": self.pair.secret}
        _write(path, {"fedge": "key of a device", "device": self.device, **pair, "coordinator": self.coordinator})


class Keyring:
    """A coordinator's folder of keys. ``make_pair`` makes a new pair; see ``wire.curve.new_pair``."""

    def __init__(self, folder: Path, make_pair: Callable[[], Pair]):
        """Nothing is read or written before something is asked for."""
        self.folder = folder
        self._make_pair = make_pair
        self._seen: tuple[int, int, int] | None = None
        self._devices: dict[str, str] = {}

    def file(self, device: str) -> Path:
        """Where the file of a device lies that is to be taken to it."""
        return self.folder / f"{device}.key"

    def own(self) -> Pair:
        """The coordinator's pair, made when it is first asked for."""
        path = self.folder / COORDINATOR
        if not path.exists():
            self._found()
            pair = self._make_pair()
            _write(path, {"fedge": "key of a coordinator", "public": pair.public, "secret": pair.secret})
            return pair
        told = _read(path, "coordinator")
        return Pair(_z85(told, "public", path), _z85(told, "secret", path))

    def allowed(self) -> dict[str, str]:
        """The public key of each device that may come in; empty where there is no list."""
        path = self.folder / ALLOWED
        if not path.exists():
            return {}
        told = _read(path, "list", secret=False)
        listed = told.get("devices")
        if not isinstance(listed, dict):
            raise _damaged(path, "it has no list of devices")
        return {str(device): _z85(listed, device, path) for device in sorted(listed)}

    def make(self, device: str) -> Path:
        """Make a key for a device and let it in; one that it had before is worth nothing from then on."""
        if not _NAME.fullmatch(device) or device == "coordinator":
            hint = "letters, digits, - and _, as the federation's file names it"
            raise ConfigError(Problem(f"{device!r} can't be the name of a device", hint=hint))
        pair = self._make_pair()
        key = DeviceKey(device, pair, self.own().public)
        key.write(self.file(device))
        self._list({**self.allowed(), device: pair.public})
        return self.file(device)

    def revoke(self, device: str) -> None:
        """Let a device in no longer; a run under way drops it. MissingError where it has no key."""
        listed = self.allowed()
        if device not in listed:
            raise MissingError(f"{self.folder} lets no '{device}' in", hint=f"it lists {', '.join(listed) or 'nobody'}")
        self._list({name: public for name, public in listed.items() if name != device})
        self.file(device).unlink(missing_ok=True)

    def device_of(self, public: str) -> str | None:
        """The device that a public key is bound to by the list as it is now, None for one that may not come in."""
        try:
            found = os.stat(self.folder / ALLOWED)
        except OSError:
            return None
        seen = (found.st_ino, found.st_mtime_ns, found.st_size)
        if seen != self._seen:
            self._devices = {key: device for device, key in self.allowed().items()}
            self._seen = seen
        return self._devices.get(public)

    def _list(self, devices: Mapping[str, str]) -> None:
        self._found()
        told = {"fedge": "who may come in", "devices": dict(sorted(devices.items()))}
        _write(self.folder / ALLOWED, told)

    def _found(self) -> None:
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise FedgeError(f"{self.folder} can't be made: {error.strerror}") from error


def _read(path: Path, what: str, *, secret: bool = True) -> dict[str, Any]:
    """The JSON object in a key file that nobody else can have read or changed."""
    try:
        with path.open("rb") as file:
            _check_private(path, os.fstat(file.fileno()), secret)
            data = file.read(_LARGEST)
    except FileNotFoundError:
        raise MissingError(
            f"no such key file: {path}", hint="`fedge keys DEVICE` at the coordinator makes one"
        ) from None
    except OSError as error:
        raise MissingError(f"{path} can't be read: {error.strerror}") from None
    try:
        told = json.loads(data)
    except (ValueError, RecursionError):
        raise _damaged(path, "not what `fedge keys` writes") from None
    if not isinstance(told, dict) or what not in str(told.get("fedge", "")).replace("who may come in", "list"):
        raise _damaged(path, f"not the {'file' if what == 'list' else 'key'} of a {what}")
    return told


def _check_private(path: Path, found: os.stat_result, secret: bool) -> None:
    others = stat.S_IMODE(found.st_mode) & (0o077 if secret else 0o022)
    if not stat.S_ISREG(found.st_mode):
        raise ConfigError(Problem("is not a file", file=str(path)))
    if found.st_uid not in (os.geteuid(), 0):
        raise ConfigError(Problem("belongs to somebody else", file=str(path), hint="whoever can write it can come in"))
    if others:
        what = "read" if secret else "written"
        message = f"can be {what} by others (mode {stat.S_IMODE(found.st_mode):04o})"
        raise ConfigError(Problem(message, file=str(path), hint=f"chmod {600 if secret else 644} {path}"))


def _z85(told: Mapping[str, Any], name: str, path: Path) -> str:
    value = told.get(name)
    if not isinstance(value, str) or not _Z85.fullmatch(value):
        raise _damaged(path, f"'{name}' is not a key")
    return value


def _damaged(path: Path, why: str) -> ConfigError:
    return ConfigError(Problem(why, file=str(path), hint="`fedge keys DEVICE` makes one anew"))


def _write(path: Path, value: Mapping[str, Any]) -> None:
    """Write beside and rename; mode 0600, which is what mkstemp makes."""
    try:
        handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise FedgeError(f"{path} can't be written: {error.strerror}") from error
    try:
        with os.fdopen(handle, "w") as file:
            file.write(json.dumps(value, indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException as error:
        Path(beside).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise FedgeError(f"{path} can't be written: {error.strerror}") from error
        raise
