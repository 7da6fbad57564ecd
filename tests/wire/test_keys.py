"""Key files: private from the first byte, refused when others could have read them, and bound to one device each."""

from __future__ import annotations

import json
import os
import stat

import pytest

from fedge.errors import ConfigError, FedgeError, MissingError
from fedge.wire.curve import new_pair
from fedge.wire.keys import ALLOWED, COORDINATOR, DeviceKey, Keyring


@pytest.fixture
def ring(tmp_path):
    return Keyring(tmp_path / "keys", new_pair)


def test_every_file_is_private_and_reads_back(ring):
    path = ring.make("pi-00")
    key = DeviceKey.read(path)
    assert key.device == "pi-00"
    assert key.coordinator == ring.own().public
    assert ring.allowed() == {"pi-00": key.pair.public}
    assert ring.device_of(key.pair.public) == "pi-00"
    assert stat.S_IMODE(ring.folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in ring.folder.iterdir()} == {0o600}
    assert sorted(file.name for file in ring.folder.iterdir()) == [ALLOWED, COORDINATOR, "pi-00.key"]
    assert key.pair.secret not in repr(key)


def test_a_second_key_for_a_device_ends_the_first(ring):
    first = DeviceKey.read(ring.make("pi-00"))
    ring.device_of(first.pair.public)
    second = DeviceKey.read(ring.make("pi-00"))
    assert ring.device_of(first.pair.public) is None
    assert ring.device_of(second.pair.public) == "pi-00"
    assert first.coordinator == second.coordinator


def test_revoked(ring):
    key = DeviceKey.read(ring.make("pi-00"))
    ring.make("pi-01")
    ring.revoke("pi-00")
    assert ring.device_of(key.pair.public) is None
    assert list(ring.allowed()) == ["pi-01"]
    with pytest.raises(MissingError, match=r"lets no 'pi-00' in \(it lists pi-01\)"):
        ring.revoke("pi-00")


def test_no_key_file(tmp_path):
    with pytest.raises(MissingError, match=r"no such key file.*`fedge keys DEVICE`"):
        DeviceKey.read(tmp_path / "pi.key")
    with pytest.raises(FedgeError, match=r"can't be read|is not a file"):
        DeviceKey.read(tmp_path)


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
def test_a_key_that_others_can_read_is_refused(ring, mode):
    path = ring.make("pi-00")
    os.chmod(path, mode)
    with pytest.raises(ConfigError, match=rf"can be read by others \(mode {mode:04o}\) \(chmod 600"):
        DeviceKey.read(path)


def test_a_list_that_others_can_write_is_refused(ring):
    ring.make("pi-00")
    os.chmod(ring.folder / ALLOWED, 0o666)
    with pytest.raises(ConfigError, match="can be written by others"):
        ring.allowed()


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "",
        lambda text: "{",
        lambda text: "[]",
        lambda text: "[" * 100_000,
        lambda text: text.replace("key of a device", "key of a coordinator"),
        lambda text: text.replace('"pi-00"', '"../pi"'),
        lambda text: text.replace('"secret": "', '"secret": "x'),
        lambda text: json.dumps({**json.loads(text), "public": 7}),
    ],
)
def test_a_damaged_key_is_a_config_error(ring, change):
    path = ring.make("pi-00")
    path.write_text(change(path.read_text()))
    with pytest.raises(ConfigError, match="`fedge keys DEVICE` makes one anew"):
        DeviceKey.read(path)


@pytest.mark.parametrize("name", ["", "a/b", "../x", "coordinator", "a b", ".hidden"])
def test_names_that_are_no_devices(ring, name):
    with pytest.raises(ConfigError, match="can't be the name of a device"):
        ring.make(name)
