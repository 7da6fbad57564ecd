"""Devices on other machines: where they join, with which keys, and how long the run waits for them."""

from __future__ import annotations

import re
from typing import Annotated

from fedge.spec.source import describe
from fedge.spec.values import Check, Section, Text, Timeout, integer, key

_TCP = re.compile(r"tcp://(\*|\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9_.-]+):(\*|\d{1,5})")


def check_tcp(address: str, *, bind: bool) -> None:
    """Refuse what is no ``tcp://HOST:PORT``; ``bind``: the host may be ``*``, and the port ``*`` for any free one.

    Raises ValueError in plain words.
    """
    found = _TCP.fullmatch(address)
    if found is None:
        raise ValueError(f"'{address}' is no address such as tcp://{'0.0.0.0' if bind else '192.168.1.10'}:7700")
    host, port = found.groups()
    if not bind and "*" in (host, port):
        raise ValueError(f"'{address}': * is for who listens; name the coordinator's host and port")
    if port != "*" and not 0 < int(port) < 65536:
        raise ValueError(f"'{address}': a port is a number from 1 to 65535")


def _listen(given: object) -> str:
    if not isinstance(given, str):
        raise ValueError(f"expected an address such as tcp://0.0.0.0:7700, got {describe(given)}")
    check_tcp(given, bind=True)
    return given


class RemoteSpec(Section):
    """What there is for devices with ``remote: true``; nothing listens without ``listen``."""

    listen: Annotated[str, Check(_listen, {"type": "string", "pattern": "^tcp://"})] | None = key(
        "where devices on other machines join, such as tcp://0.0.0.0:7700; port * takes a free one", None
    )
    keys: Text | None = key("a folder of keys made by `fedge keys`; by default each run makes its own", None)
    wait: Timeout = key("how long the run waits for a device to join, or to come back", 300.0)
    messages: Annotated[int, integer(1, 1_000_000)] = key(
        "messages a second that a device may send for long, pieces of its answers apart; more drops it", 100
    )
