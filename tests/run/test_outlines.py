"""Answers of devices on other machines are held to what their method's answers are made of, before it sees them."""

from dataclasses import replace

import pytest
import torch

from fedge.core.payload import Payload
from fedge.plan.outline import outline_of
from fedge.plan.rehearsal import Setting
from fedge.run.answers import Outlines
from fedge.run.coordinator import Coordinator
from fedge.run.engine import run_stage
from fedge.run.events import Answered, End
from fedge.run.inline import Inline
from fedge.run.ledger import Account
from fedge.run.server import StageServer
from tests.run.fakes import budget
from tests.run.test_seat import DATA, METHODS, PUBLIC, brief, ground, loaded  # noqa: F401


class Lying(Inline):
    """Puts ``lie(payload)`` in the place of what device c answers."""

    def __init__(self, lie, *given):
        super().__init__(*given)
        self.lie, self.told = lie, []

    def do(self, instruction):
        if isinstance(instruction, End) and instruction.why:
            self.told.append((instruction.device, instruction.why))
        super().do(instruction)

    def wait(self):
        return [self._said(event) for event in super().wait()]

    def _said(self, event):
        if not isinstance(event, Answered) or event.device != "c":
            return event
        return replace(event, data=self.lie(Payload.from_bytes(event.data)).to_bytes())


def setting(loaded):  # noqa: F811
    return Setting(loaded.model, loaded.task, DATA["b"], PUBLIC, cohort=3)


def stage(method, loaded, folder, lie, elsewhere=("c",)):  # noqa: F811
    told = brief(method)
    server = StageServer(told, loaded.model, loaded.task, PUBLIC)
    accounts = [Account(name, budget(), len(rows)) for name, rows in DATA.items()]
    outlines = Outlines(told, setting(loaded))
    of = Coordinator(told, server, accounts, slots=3, restart=0, elsewhere=elsewhere, outlines=outlines)
    engine = Lying(lie, told, ground(loaded), {n: budget() for n in DATA}, DATA, folder)
    run_stage(of, engine, fresh=True, after_round=lambda: None, stopping=lambda: False, tell=lambda: None)
    return of, engine


def changed(change):
    """A lie about the first tensor of a payload that has one; ``change`` gives what stands in its place."""

    def lie(payload):
        role = next(iter(payload.parts))
        name = sorted(payload[role])[0]
        tree = {**payload[role], **change(name, payload[role][name])}
        kept = {key: tensor for key, tensor in tree.items() if tensor is not None}
        return Payload({**payload.parts, role: kept}, payload.weight, payload.meta)

    return lie


LIES = {
    "spread": (lambda name, t: {name: t.flatten()[:1].reshape([1] * t.dim())}, "[1]"),
    "flat": (lambda name, t: {name: t.flatten()[:1][0]}, "of 0 dimensions, which its method does not send"),
    "type": (lambda name, t: {name: t.double()}, "as float64 of"),
    "more": (lambda name, t: {"else": torch.zeros(2)}, "'else' as float32 of 1 dimensions"),
    "less": (lambda name, t: {name: None}, "its answer lacks delta"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_wrong_shape_type_or_name_is_refused_before_the_method_sees_it_and_the_run_goes_on(lie, loaded, tmp_path):  # noqa: F811
    change, why = LIES[lie]
    of, engine = stage(METHODS["head"], loaded, tmp_path, changed(change))
    assert of.round == 2
    lost = of.accounts["c"].lost
    assert (lost["round"], lost["cause"]) == (0, "protocol")
    [(device, told)] = engine.told
    assert device == "c"
    assert why in told
    assert not [note for note in of.notes if note["event"] == "abandoned"]
    assert [account.rounds for account in of.accounts.values()] == [2, 2, 0]


def test_devices_of_this_host_are_fedges_own_and_are_not_held_to_it(loaded, tmp_path):  # noqa: F811
    of, engine = stage(METHODS["head"], loaded, tmp_path, changed(LIES["spread"][0]), elsewhere=())
    assert not engine.told
    assert of.accounts["c"].rounds == 2


@pytest.mark.parametrize("key", METHODS)
def test_honest_answers_pass_whatever_the_method_and_its_turns(key, loaded, tmp_path):  # noqa: F811
    of, engine = stage(METHODS[key], loaded, tmp_path, lambda payload: payload)
    assert not engine.told
    assert of.accounts["c"].rounds == 2


def test_a_batch_of_fewer_rows_is_a_size_that_varies(loaded):  # noqa: F811
    outline = outline_of(METHODS["split"], METHODS["split"], setting(loaded))
    shapes = {key: shape for kind in outline.kinds.values() for key, shape in kind.items()}
    assert any(role == "activations" and shape[0] is None for (role, _), shape in shapes.items())
    assert all(None not in shape for (role, _), shape in shapes.items() if role == "delta")
