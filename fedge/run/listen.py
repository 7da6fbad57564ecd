"""What a run with remote devices has beside its processes: a hub on tcp, its keys, and what each device is sent."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from fedge.run.brief import Brief
from fedge.run.budgets import budget_of
from fedge.run.folder import RunFolder
from fedge.run.guests import Entry, Guests
from fedge.run.pack import packed
from fedge.run.prepare import Prepared
from fedge.spec.federation import FederationSpec
from fedge.wire.blobs import LIMIT, Blob
from fedge.wire.bus import Hub
from fedge.wire.curve import new_pair
from fedge.wire.keys import Keyring

Say = Callable[[str], None]

#: The run's own keys, and the address that it had when a free port was taken: a resume has to be found there.
KEYS, ADDRESS = "keys", "remote.json"


def keyring_of(spec: FederationSpec, folder: RunFolder) -> Keyring:
    """The keys that the file names, or the run's own; a device of the file without one gets it."""
    ring = Keyring(folder.file(KEYS) if spec.remote.keys is None else Path(spec.remote.keys), new_pair)
    ring.own()
    listed = ring.allowed()
    for device in spec.elsewhere:
        if device.name not in listed:
            ring.make(device.name)
    return ring


def listen(spec: FederationSpec, folder: RunFolder, say: Say) -> Guests:
    """Listen for the federation's remote devices. Raises FedgeError where that can't be done at the address."""
    ring = keyring_of(spec, folder)
    assert spec.remote.listen is not None
    address = spec.remote.listen
    if folder.file(ADDRESS).exists():
        address = str(folder.read_json(ADDRESS)["address"])
    hub = Hub(address, keys=ring, rate=float(spec.remote.messages))
    host, _, port = hub.address.removeprefix("tcp://").rpartition(":")
    folder.write_json(ADDRESS, {"address": f"{address.rpartition(':')[0]}:{port}"})
    shown = "THIS-HOST" if host in ("0.0.0.0", "[::]", "*") else host
    names = [device.name for device in spec.elsewhere]
    invite = f"fedge join tcp://{shown}:{port} --key {ring.folder}/DEVICE.key"
    say(f"listening at {hub.address} for {', '.join(names)}: {invite}")
    return Guests(
        hub,
        names,
        folder.path.name,
        wait=spec.remote.wait,
        heartbeat=spec.emulation.heartbeat,
        invite=invite,
        say=say,
        note=lambda note: folder.append("events.jsonl", note),
    )


def welcome(guests: Guests, brief: Brief, prepared: Prepared, base: bytearray, briefs: Sequence[Brief]) -> None:
    """Begin a stage for the remote devices: what all share once, and each one's own rows."""
    spec = prepared.spec
    shared = {"base": Blob(base), "brief": Blob(json.dumps(brief.to_json()).encode())}
    judges_own = any(each.method.personalises for each in briefs)
    share = spec.evaluate.rows if judges_own else 0
    entries = {}
    for device in spec.elsewhere:
        rows, tests = prepared.rows[device.name], prepared.own_test.get(device.name)
        own = packed(prepared.data, rows, tests, share=share, seed=spec.seed)
        about = {
            "model": {**prepared.model_order, "folder": ""},
            "budget": asdict(budget_of(device, brief.deadline, brief.rounds)),
            "heartbeat": spec.emulation.heartbeat,
            "rows": len(rows),
            "tests": 0 if tests is None else len(tests),
        }
        entries[device.name] = Entry(about, {**shared, "data": Blob(own)})
    most = max((sum(offer.cost.sent.values()) for offer in brief.menu), default=0)
    guests.enter(brief.index, entries, len(brief.menu), min(LIMIT, 2 * most + (2 << 20)))
