"""Devices on other machines: ``keys`` at the coordinator, ``join`` at the device."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from fedge.commands import complete
from fedge.commands.parameters import BestEffort, Json, print_json, progress


def keys(
    devices: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(metavar="[DEVICE…]", help="Make a key for each; without any, list those that may come in."),
    ] = None,
    folder: Annotated[Path, typer.Option("--keys", metavar="DIR", help="The folder of keys.")] = Path("keys"),
    federation: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--for",
            metavar="FEDERATION",
            help="Make one for every remote device of this file that has none yet.",
            autocompletion=complete.federations,
        ),
    ] = None,
    revoke: Annotated[
        bool, typer.Option("--revoke", help="Let these in no longer; a run under way drops them.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Make, list and revoke the keys with which devices on other machines join.

    A key is bound to one device, and its file is readable by its owner alone: take it to the device, and delete it
    here. A federation uses the folder by `remote: {keys: DIR}`; without that each run makes keys of its own.

    Example: fedge keys pi-00 pi-01

    Example: fedge keys --for federation.yaml

    Example: fedge keys pi-00 --revoke
    """
    from fedge.wire.curve import new_pair
    from fedge.wire.keys import Keyring

    ring = Keyring(folder, new_pair)
    named = list(devices or ())
    if revoke and not named:
        raise typer.BadParameter("name the devices", param_hint="--revoke")
    if federation is not None:
        from fedge.spec import load_federation

        listed = ring.allowed()
        named += [device.name for device in load_federation(federation).elsewhere if device.name not in listed]
    for device in named:
        if revoke:
            ring.revoke(device)
            progress(f"{device} may come in no longer")
        else:
            path = ring.make(device)
            progress(f"{path}: take it to {device}")
    rows = [
        {"device": device, "public": public, "file": str(ring.file(device)) if ring.file(device).exists() else None}
        for device, public in ring.allowed().items()
    ]
    if as_json:
        print_json({"keys": rows})
        return
    from fedge.report.tables import table

    table(rows, ["device", "public", "file"])


def join(
    address: Annotated[
        str, typer.Argument(metavar="ADDRESS", help="Where the coordinator listens, such as tcp://192.168.1.10:7700.")
    ],
    key: Annotated[Path, typer.Option("--key", metavar="FILE", help="This device's key, from `fedge keys`.")],
    keep: Annotated[
        Path, typer.Option("--keep", metavar="DIR", help="Where the device keeps its state between rounds.")
    ] = Path("joined"),
    patience: Annotated[
        str, typer.Option("--patience", metavar="TIME", help="End after so long without a coordinator: 90s, 2h.")
    ] = "10min",
    memory: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--memory", metavar="SIZE", help="What this machine grants, where the file says more: 512MiB."),
    ] = None,
    model: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--model", metavar="NAME", help="What the model is called here, such as a folder's path."),
    ] = None,
    wall: Annotated[
        str,
        typer.Option(
            "--wall",
            metavar="auto|cgroup1|cgroup2|rlimit",
            help="What holds the device to its memory.",
            autocompletion=complete.one_of("auto", "cgroup1", "cgroup2", "rlimit"),
        ),
    ] = "auto",
    trust: Annotated[
        bool, typer.Option("--trust-code", help="Run models and methods that are not part of fedge.")
    ] = False,
    best_effort: BestEffort = False,
    as_json: Json = False,
) -> None:
    """Be one device of a federation whose coordinator runs on another machine.

    The model is loaded here, the device's rows come over the encrypted link, and it trains in a process behind a memory
    wall, as an emulated one does. When the connection breaks it comes back, also to a run that was resumed.

    Example: fedge join tcp://192.168.1.10:7700 --key pi-00.key
    """
    from fedge.spec.remote import check_tcp
    from fedge.units import parse_bytes, parse_seconds
    from fedge.wire.keys import DeviceKey

    try:
        check_tcp(address, bind=False)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="ADDRESS") from None
    if wall not in ("auto", "cgroup1", "cgroup2", "rlimit"):
        raise typer.BadParameter(f"'{wall}' is none of auto, cgroup1, cgroup2, rlimit", param_hint="--wall")
    try:
        seconds = parse_seconds(patience, zero=False)
        granted = None if memory is None else parse_bytes(memory)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--patience, --memory") from None
    own = DeviceKey.read(key)
    from fedge.run.join import Options, join

    joined = join(address, own, Options(keep, seconds, granted, model, wall, best_effort, trust), progress)
    if as_json:
        print_json(vars(joined))
    else:
        print(f"{joined.device}: {joined.run} is {joined.status}, {joined.answered} turns answered")
