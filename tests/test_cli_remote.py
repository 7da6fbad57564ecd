"""``keys`` and ``join`` on the command line: what they print, and what they say to what is wrong."""

from __future__ import annotations

import json
import os
import socket

FEDERATION = """\
model: vit-nano
data: digits
devices:
  pi:    {profile: pi-4b-4g, count: 2, remote: true}
  phone: {profile: pixel-6}
remote: {listen: "tcp://127.0.0.1:PORT", keys: keys}
stages: [{train: {method: fedavg, rounds: 1}}]
"""


def test_keys_are_made_listed_and_revoked(fedge, tmp_path):
    (tmp_path / "f.yaml").write_text(FEDERATION.replace("PORT", "7700"))
    code, out, _ = fedge("keys", "--for", "f.yaml", "--json")
    assert code == 0
    rows = json.loads(out)["keys"]
    assert [(row["device"], row["file"]) for row in rows] == [("pi-00", "keys/pi-00.key"), ("pi-01", "keys/pi-01.key")]
    again = json.loads(fedge("keys", "--for", "f.yaml", "--json")[1])["keys"]
    assert again == rows
    code, out, err = fedge("keys", "pi-00", "--revoke")
    assert (code, "pi-01" in out, "pi-00" in out) == (0, True, False)
    assert err == "pi-00 may come in no longer\n"
    assert fedge("keys", "pi-00", "--revoke")[0] == 2
    assert fedge("keys", "--revoke")[2].startswith("fedge: Invalid value for --revoke: name the devices")
    assert fedge("keys", "a/b")[2] == (
        "fedge: 'a/b' can't be the name of a device (letters, digits, - and _, as the federation's file names it)\n"
    )


def test_no_key_wrong_permissions_a_wrong_address(fedge, tmp_path):
    code, _, err = fedge("join", "tcp://127.0.0.1:7700", "--key", "none.key")
    assert (code, err) == (2, "fedge: no such key file: none.key (`fedge keys DEVICE` at the coordinator makes one)\n")
    fedge("keys", "pi-00")
    os.chmod("keys/pi-00.key", 0o644)
    code, _, err = fedge("join", "tcp://127.0.0.1:7700", "--key", "keys/pi-00.key")
    told = "fedge: keys/pi-00.key: can be read by others (mode 0644) (chmod 600 keys/pi-00.key)\n"
    assert (code, err) == (2, told)
    os.chmod("keys/pi-00.key", 0o600)
    for address in ("127.0.0.1:7700", "tcp://*:7700", "http://x:1", "tcp://x:99999"):
        code, _, err = fedge("join", address, "--key", "keys/pi-00.key")
        assert code == 2
        assert err.startswith("fedge: Invalid value for ADDRESS:")
    code, _, err = fedge("join", "tcp://127.0.0.1:7700", "--key", "keys/coordinator.key")
    assert (code, "not the key of a device" in err) == (2, True)


def test_nobody_listens_there(fedge):
    fedge("keys", "pi-00")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    code, _, err = fedge("join", address, "--key", "keys/pi-00.key", "--patience", "1s", "--wall", "rlimit")
    assert code == 1
    last = err.splitlines()[-1]
    assert (
        last
        == f"fedge: no coordinator at {address} for 1 s: {address}: nobody answers (--patience says how long to wait)"
    )


def test_the_port_is_taken(fedge, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        (tmp_path / "f.yaml").write_text(FEDERATION.replace("PORT", port))
        code, _, err = fedge("up", "f.yaml")
    assert code == 1
    assert err.splitlines()[-1] == (
        f"fedge: tcp://127.0.0.1:{port}: the port is taken (another one, or * for any that is free)"
    )
