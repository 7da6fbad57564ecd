"""Addresses at which remote devices join."""

import pytest

from fedge.spec.remote import check_tcp


@pytest.mark.parametrize("address", ["tcp://*:7700", "tcp://0.0.0.0:*", "tcp://[::1]:7700", "tcp://pi.lan:1"])
def test_addresses_to_listen_at(address):
    check_tcp(address, bind=True)


@pytest.mark.parametrize(
    ("address", "bind", "told"),
    [
        ("192.168.1.2:7700", True, "is no address such as tcp://0.0.0.0:7700"),
        ("tcp://host", False, "is no address such as tcp://192.168.1.10:7700"),
        ("tcp://*:7700", False, "name the coordinator's host"),
        ("tcp://host:*", False, "name the coordinator's host"),
        ("tcp://host:0", True, "from 1 to 65535"),
        ("tcp://host:70000", False, "from 1 to 65535"),
        ("udp://host:7700", False, "is no address"),
    ],
)
def test_addresses_that_are_none(address, bind, told):
    with pytest.raises(ValueError, match=told.replace("*", r"\*")):
        check_tcp(address, bind=bind)
