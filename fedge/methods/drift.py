"""Frozen weights that the server changes for everyone, in every round, by low-rank matrices.

The drift is kept as ``state["base"]``, the weights as they stand, and as a log of what each version added, in factors.
A device is sent the versions that it lacks, or the weights where these are smaller; it adds them one version at a
time, as the server does, so that every base has the same bits whatever rounds its device has missed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fedge.core.fold import Pair
from fedge.core.method import Device, Replies, Server, State
from fedge.core.payload import Payload, Tree
from fedge.models.lora import absorbed, adapted, named, paired
from fedge.models.names import attach


def none_yet() -> State:
    """The part of a server's state that is the drift, before the first round."""
    return {"base": {}, "log": {}, "version": 0, "seen": {}}


def drifted(srv: Server, state: State, added: Mapping[str, Pair], replies: Replies) -> State:
    """The state after a version that adds ``B A`` to the frozen weights, by module.

    ``state["seen"]`` is the version that each device said it had reached. The log forgets what would be sent as whole
    weights anyway.
    """
    version = state["version"] + 1
    base = {**state["base"], **absorbed(srv.base(), added, state["base"])}
    log = {**state["log"], str(version): named(added)}
    while log and _size(log.values()) > _size([base]):
        del log[min(log, key=int)]
    seen = {**state["seen"], **{device: reply.meta["version"] for device, reply in replies.items()}}
    return {**state, "base": base, "log": log, "version": version, "seen": seen}


def lacking(state: State, device: str) -> Payload:
    """What brings a device's frozen weights to the present version, whatever it has missed.

    Versions travel as role 'delta' under the names ``<version>/<name of the factor in peft's files>``, whole weights
    as role 'weights' under the base's own names.
    """
    wanted = [str(number) for number in range(state["seen"].get(device, 0) + 1, state["version"] + 1)]
    meta = {"version": state["version"]}
    if not set(wanted) <= set(state["log"]):
        return Payload({"weights": dict(state["base"])}, meta=meta)
    return Payload({"delta": {f"{at}/{name}": t for at in wanted for name, t in state["log"][at].items()}}, meta=meta)


def catch_up(dev: Device, down: Payload) -> Tree:
    """Bring the device's frozen weights to the version of the download; returns what else was sent as 'weights'.

    The weights stay in the device's state for the rounds to come: they are memory of its own from now on.
    """
    frozen = {f"{module}.weight" for module in adapted(dev.model)}
    base: Tree = dev.state.pop("base", {})
    base.update({name: tensor for name, tensor in down["weights"].items() if name in frozen})
    versions: dict[int, Tree] = {}
    for name, tensor in down["delta"].items():
        at, _, factor = name.partition("/")
        versions.setdefault(int(at), {})[factor] = tensor
    for version in sorted(versions):
        # an answer that came too late has left the device further than the server knows
        if version > dev.state.get("version", 0):
            for module, pair in paired(versions[version]).items():  # one by one: each weight's last form is let go of
                base.update(absorbed(dev.model, {module: pair}, base))
    dev.state.update(base=base, version=down.meta["version"])
    attach(dev.model, base)
    return {name: tensor for name, tensor in down["weights"].items() if name not in frozen}


def _size(trees: Iterable[Tree]) -> int:
    return sum(tensor.numel() for tree in trees for tensor in tree.values())
