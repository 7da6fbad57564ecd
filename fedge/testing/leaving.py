"""Properties of what a method sends, leaves behind and says of itself: bytes, roles, raw inputs, exports, the card."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from fedge.core.fit import Batch
from fedge.core.method import Method
from fedge.core.payload import Payload
from fedge.core.roles import ROLES
from fedge.core.task import TASKS
from fedge.errors import FedgeError
from fedge.methods.generate import options_of
from fedge.plan.rehearsal import Setting, repeated
from fedge.plan.trace import REPEATS, measure, trace
from fedge.spec.stage import STAGES
from fedge.testing.case import Broken, Case, bits

#: What a payload's JSON may take; it is for small facts.
META_BYTES = 4096
FAMILIES = ("tensors", "own")
FINALS = ("plain", "extended", "exits", "own")
CLAIMS = ("alone",)
JUDGED = ("logits", "neighbours")
#: Properties that a method may waive, with a reason: the rest are what resume, replay and reports rest on.
WAIVABLE = ("still", "absent", "bytes")
#: Numbers of a row that are enough to know it by.
_ENOUGH = 4
_exported: dict[object, str] = {}


def roles(case: Case) -> str | None:
    """Only the declared roles leave the device, and little JSON."""
    declared = case.method.card.roles
    for name, payload in _payloads(case):
        for role in payload.parts:
            if role not in declared:
                raise Broken(
                    f"device {name} sends '{role}', which the card does not declare (roles: {', '.join(declared)})",
                    "Declare it in card.roles and say in card.leaves what it tells of the rows.",
                )
        size = len(json.dumps(payload.meta))
        if size > META_BYTES:
            raise Broken(f"device {name} sends {size} bytes of meta", "Numbers in bulk travel as tensors with a role.")
    return None


def raw(case: Case) -> str | None:
    """No device's raw inputs are among what it sends, in any type of number."""
    for sent in case.plain.sent:
        for name, payloads in sent.items():
            needles = list(_needles(case.plain.devices[name].data.chunks(16)))
            for payload in payloads:
                data = bytes(payload.to_bytes())
                found = next((column for column, needle in needles if needle in data), None)
                if found:
                    raise Broken(
                        f"device {name} sends rows of its '{found}' as they are",
                        "Send what is computed from the rows (changes, statistics, features), never the rows.",
                    )
    return None


def personal(case: Case) -> str | None:
    """A device's own model has the structure of the common one; taking it changes nothing and comes out the same."""
    if not case.method.personalises:
        return "not claimed (personal)"
    driven = case.trail.driven.again()
    common = driven.final()
    for name, device in driven.devices.items():
        before = bits(device.state)
        model = driven.personal(name)
        if model is None:
            continue
        if type(model) is not type(common) or model.state_dict().keys() != common.state_dict().keys():
            raise Broken(
                f"device {name}'s own model is a {type(model).__name__} that is not of the structure of 'final''s",
                "Merge adapters in 'personal'; a run keeps what differs from the common model, by name.",
            )
        if bits(device.state) != before:
            raise Broken(f"taking device {name}'s own model changes its state", "'personal' reads dev.state alone.")
        first = case.logits(driven, model)
        if not bool(torch.isfinite(first).all()):
            raise Broken(f"device {name}'s own model gives numbers that are not finite", "Look at its training.")
        if not torch.equal(first, case.logits(driven, driven.personal(name))):
            raise Broken(
                f"device {name}'s own model comes out differently a second time",
                "'personal' reads its arguments and draws from dev.generator(purpose) or torch's global state alone.",
            )
    return None


def bytes_predicted(case: Case) -> str | None:
    """The planner predicts a round's bytes up and down to the byte."""
    rows = case.tiny.rows(9, "b")
    setting = Setting(case.tiny.model, case.tiny.task, rows, case.public, cohort=len(case.plain.devices))
    turns = max(len(payloads) for payloads in case.plain.sent[-1].values()) if case.plain.sent[-1] else 1
    for at, variant in enumerate(case.variants):
        method, few = case.method, variant
        if turns == 1:  # steps change no byte then, and one is traced sooner than two
            once = dict.fromkeys(REPEATS, 1)
            method, few = repeated(method, once), repeated(variant, once)
        try:
            cost = (measure if at else trace)(method, few, setting)
        except FedgeError as error:
            raise Broken(
                f"{case.called(variant)} can't be planned: {error}", "'client' must run wherever a device has rows."
            ) from error
        up, down = _counted(case, method, few)
        for way, predicted, counted in (("up", cost.bytes_up, up), ("down", cost.bytes_down, down)):
            if predicted != counted:
                raise Broken(
                    f"{case.called(variant)}: the plan predicts {predicted} bytes {way}, {counted} were counted",
                    "A payload's shapes may depend on the method's fields and on the number of rows, not on values, "
                    "rounds or devices.",
                )
    return None


def _counted(case: Case, method: Method, variant: Method) -> tuple[int, int]:
    """Bytes up and down of device b in the dearest phase's second round, when others have trained all there is."""
    others = list(method.everyone())
    while len(others) < 2:
        others.append(others[0])
    # devices run these in turn: a, b, c, d3, …
    driven = case.start([others[0], variant, *others[1:]], method=method)
    phases = method.phases()
    steady = [first if first + 1 in phases else first + 1 for first in phases]
    # from the second round on its answer comes first, so that a method that doesn't wait for all asks it again soon
    order = lambda round, turn, names: sorted(names, key=lambda name: round > 0 and name != "b")  # noqa: E731
    driven.go(max(steady), order=order)
    late = "b" in driven.late  # then what comes first next is its old answer, and the round after asks it again
    driven.go(1 + late, order=order)
    asked = [n + late for n in steady if "b" in driven.up[n + late]]
    asked = asked or list(phases)  # who is asked once is asked at first
    return max(driven.up[n].get("b", 0) for n in asked), max(driven.down[n].get("b", 0) for n in asked)


def export(case: Case) -> str | None:
    """What ``final`` leaves becomes ONNX graphs that answer as it does; once for each architecture."""
    from fedge.export.exits import export_exits
    from fedge.export.full import export_model

    kind = case.method.card.final
    if kind == "own":
        return "not claimed (card.final)"
    driven = case.plain
    final = driven.final().eval()
    held = tuple((name, tuple(tensor.shape)) for name, tensor in final.state_dict().items())
    base = case.tiny.model
    same = type(final) is type(base) and final.state_dict().keys() == base.state_dict().keys()
    if kind == "plain" and not same:
        raise Broken(
            f"'final' gives a {type(final).__name__} that is not of the base's architecture",
            "Merge adapters and load heads into srv.copy(), or say card.final='own'.",
        )
    if (type(final), kind, held) in _exported:
        return None
    rows = case.tiny.rows(6, "probe")
    write = export_exits if kind == "exits" else export_model
    with TemporaryDirectory() as folder:
        try:
            write(final, case.tiny.loaded, rows, Path(folder), about={})  # type: ignore[arg-type]
        except FedgeError as error:
            raise Broken(f"'final' can't be exported: {error}", "Or say card.final='own'.") from error
    _exported[(type(final), kind, held)] = case.method.card.name
    return None


def card(case: Case) -> str | None:
    """The card is complete, and every field can be written in YAML and is explained."""
    about = case.method.card
    wrong = [f"card.{name} is empty" for name in _TEXTS if not getattr(about, name)]
    wrong += _unknown("stages", about.stages, STAGES) + _unknown("tasks", about.tasks, TASKS)
    wrong += _unknown("roles", about.roles, ROLES) + _unknown("claims", about.claims, CLAIMS)
    wrong += _unknown("family", (about.family,), FAMILIES) + _unknown("final", (about.final,), FINALS)
    wrong += _unknown("judged", (about.judged,), JUDGED)
    wrong += _unknown("waives", [name for name, _ in about.waives], WAIVABLE)
    wrong += [f"card.waives gives no reason for '{name}'" for name, why in about.waives if not why.strip()]
    if about.path.split("/")[0] not in (*STAGES, "combine"):
        wrong.append(f"card.path '{about.path}' does not begin by a stage or 'combine'")
    if about.stars is not None and not (len(about.stars) == 3 and set(about.stars) <= {1, 2, 3}):
        wrong.append(f"card.stars are three numbers from 1 to 3, not {about.stars}")
    try:
        described = options_of(type(case.method))
        wrong += [f"the field '{name}' is not explained" for name, one in described.items() if not one["doc"]]
    except (TypeError, ValueError) as error:
        wrong.append(str(error))
    if wrong:
        raise Broken("; ".join(wrong), "Fill the Card; document fields by field(default=…, metadata=doc('…')).")
    return None


_TEXTS = ("name", "summary", "paper", "path", "stages", "tasks", "leaves", "roles", "deviations")


def _unknown(what: str, given: Sequence[str], known: Sequence[str]) -> list[str]:
    return [f"card.{what}: '{word}' is none of {', '.join(known)}" for word in given if word not in known]


def _payloads(case: Case) -> Iterator[tuple[str, Payload]]:
    for driven in (case.plain, case.start(case.mixed).go(1)):
        for sent in driven.sent:
            for name, payloads in sent.items():
                for payload in payloads:
                    yield name, payload


def _needles(batches: Iterable[Batch]) -> Iterator[tuple[str, bytes]]:
    """The beginning of each row of a device's inputs, as the bytes that it would have in a payload or its JSON."""
    for batch in batches:
        for column, rows in batch.items():
            if column in ("labels", "attention_mask"):
                continue
            for row in rows:
                values = row.flatten()[:_ENOUGH]
                yield column, json.dumps(values.tolist())[1:-1].encode()
                for dtype in _DTYPES:
                    cast = values.to(dtype)
                    if bool((cast.to(torch.float64) - values.to(torch.float64)).abs().max() < 1e-2):
                        yield column, _bytes(cast)


_DTYPES = (
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
)


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()
