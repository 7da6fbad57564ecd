"""What devices can't do together is told before anything starts, with its place and what to do."""

import pytest

from fedge.core.cost import Cost
from fedge.errors import ConfigError
from fedge.methods.combine.mixed import Mixed
from fedge.methods.customize.fed3r import Fed3R
from fedge.methods.customize.fedavg import FedAvg
from fedge.methods.customize.head import Head
from fedge.plan.choose import Offer
from fedge.plan.menu import Menu
from fedge.run import together
from fedge.spec import load_federation

FILE = """\
model: vit-nano
data: digits
devices:
  pi: {{profile: pi-4b-4g, count: 2}}
  far: {{profile: pi-zero-2w, network: ltem}}
stages:
  - customize: {{{stage}}}
"""


def menu(method, *offers):
    made = tuple(
        Offer(i, key, {}, Cost(peak_memory=1 << 20, trainable=trainable, bytes_down=down))
        for i, (key, trainable, down) in enumerate(offers)
    )
    return Menu(method, (method,) * len(made), made)


def told(tmp_path, stage, offered):
    path = tmp_path / "federation.yaml"
    path.write_text(FILE.format(stage=stage))
    spec = load_federation(path)
    with pytest.raises(ConfigError) as error:
        together.check(spec, spec.stages[0], offered)
    return str(error.value).removeprefix(f"{tmp_path}/")


MIXED = Mixed(members=(FedAvg(), Head()))
AUTO = "method: auto, candidates: [fedavg, head], deadline: {}"


def test_a_link_that_cannot_carry_what_full_training_changes_refuses_it(tmp_path):
    offered = menu(MIXED, ("fedavg", 139_018, 563_640), ("head", 650, 563_640))
    said = told(tmp_path, AUTO.format("5s"), offered)
    assert said.startswith("federation.yaml:7:")
    assert "far needs 12" in said
    assert "leave out 'fedavg', which changes most" in said


def test_a_deadline_that_it_carries_or_none_refuses_nothing(tmp_path):
    offered = menu(MIXED, ("fedavg", 139_018, 563_640), ("head", 650, 563_640))
    for stage in (AUTO.format("20s"), "method: auto, candidates: [fedavg, head]", "method: fedavg, deadline: 5s"):
        path = tmp_path / "federation.yaml"
        path.write_text(FILE.format(stage=stage))
        spec = load_federation(path)
        together.check(spec, spec.stages[0], offered)


def test_late_answers_need_a_method_that_can_use_them(tmp_path):
    said = told(tmp_path, "method: fed3r, deadline: 5s, late: carry", menu(Fed3R(), ("fed3r", 0, 0)))
    assert "'fed3r' can't use an answer to an earlier round's question" in said
