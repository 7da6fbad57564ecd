"""What is traced on fake tensors is what a real run does, to the operation and to the byte."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fedge.core.method import Method
from fedge.errors import MethodError
from fedge.methods.combine.fedbuff import FedBuff
from fedge.methods.combine.mixed import Mixed
from fedge.methods.combine.stages import Stages
from fedge.methods.customize.bitfit import BitFit
from fedge.methods.customize.ditto import Ditto
from fedge.methods.customize.fedavg import FedAvg
from fedge.methods.customize.fedex_lora import FedExLoRA
from fedge.methods.customize.fedmd import FedMD
from fedge.methods.customize.fedrep import FedRep
from fedge.methods.customize.fedsa_lora import FedSALoRA
from fedge.methods.customize.ffa_lora import FFALoRA
from fedge.methods.customize.flexlora import FlexLoRA
from fedge.methods.customize.flora import FLoRA
from fedge.methods.customize.head import Head
from fedge.methods.customize.hetlora import HetLoRA
from fedge.methods.customize.lora import LoRA
from fedge.methods.customize.replication_padding import ReplicationPadding
from fedge.methods.deploy.anytime import Anytime
from fedge.methods.train.split import Split
from fedge.plan.rehearsal import Figures, Rehearsal, Setting, repeated
from fedge.plan.shapes import faked, skeleton
from fedge.plan.trace import beside, measure, trace
from fedge.testing.driver import drive
from tests.methods.conftest import loaded, rows

N = {"steps": 3, "batch": 8, "micro_batch": 2}
METHODS = {
    "fedavg": FedAvg(**N),
    "fedavg-calibrated": FedAvg(**N, calibrate=1.0),
    "fedavg-checkpointing": FedAvg(**N, checkpointing=True),
    "fedavg-prox": FedAvg(**N, prox=0.1, optimizer="sgd"),
    "head": Head(**N),
    "bitfit": BitFit(**N),
    "lora": LoRA(**N, rank=4),
    "ffa_lora": FFALoRA(**N, rank=4),
    "fedex_lora": FedExLoRA(**N, rank=4),
    "fedsa_lora": FedSALoRA(**N, rank=4),
    "flora": FLoRA(**N, rank=4),
    "flexlora": FlexLoRA(**N, rank=4),
    "hetlora": HetLoRA(**N, rank=4),
    "replication_padding": ReplicationPadding(**N, rank=4, low=2, rich=1.0),
    "lora-slots": LoRA(**N, rank=4, train_rank=2, depth=0.5),
    "stages": Stages(of=(Head(**N), LoRA(**N, rank=4)), switch=(1,)),
    "fedbuff": FedBuff(inner=BitFit(**N)),
    "mixed": Mixed(members=(LoRA(**N, rank=4), BitFit(**N)), member=BitFit(**N)),
    "split": Split(steps=3, batch=8),
    "fedrep": FedRep(**N, head_steps=4),
    "ditto": Ditto(**N, own_steps=2),
    "fedmd": FedMD(**N, digest=2),
    "anytime": Anytime(**N, exits=(1, 2)),
}
#: Quick enough to be tried on both models every time; the others are on one of them, or by the slow tests alone.
QUICK = {"head", "anytime", "split", "lora-slots"}
LONG = {"fedmd", "fedavg-calibrated", "fedavg-prox", "stages"}


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def setting(name: str, n: int = 20) -> Setting:
    found = loaded(name)
    return Setting(found.model, found.task, rows(found, n), rows(found, 16, "public"))


def exact(method: Method, where: Setting) -> tuple[list[Figures], int]:
    """The rounds' figures and the peak from fake rounds in which every step and micro-batch is run."""
    apart = skeleton(where.base)
    with FakeTensorMode():
        rehearsal = Rehearsal(method, method, where, faked(apart), fake=True)
        found = []
        for first in method.phases():
            rehearsal.fill(first, dict.fromkeys(("steps", "digest"), 1))
            found.append(rehearsal.round(first, {}))
    tensors = rehearsal.peak + rehearsal.shared
    return found, tensors + beside(tensors)


def cases(long: set[str]) -> list[object]:
    return [pytest.param(key, marks=[pytest.mark.slow] if key in long else []) for key in sorted(METHODS)]


CASES = [
    pytest.param(
        key, name, marks=[] if key in QUICK or (name == "vit-nano" and key not in LONG) else [pytest.mark.slow]
    )
    for key in sorted(METHODS)
    for name in ("vit-nano", "bert-nano")
]


@pytest.mark.parametrize(("key", "name"), CASES)
def test_a_trace_is_what_a_real_run_does(key, name):
    method, where = METHODS[key], setting(name)
    traced, real = trace(method, method, where), measure(method, method, where)
    assert not traced.measured
    assert real.measured
    assert traced.flops == real.flops
    assert (traced.bytes_up, traced.bytes_down, traced.turns) == (real.bytes_up, real.bytes_down, real.turns)
    assert (traced.depth, traced.trainable, traced.shared) == (real.depth, real.trainable, real.shared)
    assert traced.peak_memory == pytest.approx(real.peak_memory, rel=0.01)
    assert traced.traffic == pytest.approx(real.traffic, rel=0.02)
    assert traced.ops == pytest.approx(real.ops, rel=0.02)


def test_a_peak_is_the_sum_of_its_parts():
    cost = trace(BitFit(steps=2), BitFit(steps=2), setting("vit-nano"))
    parts = cost.parts
    assert sum(parts.values()) == cost.peak_memory
    assert parts["gradients"] == 4 * cost.trainable
    assert 2 * parts["gradients"] <= parts["optimizer"] <= 2.5 * parts["gradients"]  # Adam's two moments, and counters
    assert parts["activations"] > 0


@pytest.mark.parametrize("key", cases(set(METHODS) - {"split", "anytime", "head"}))
def test_five_steps_are_told_from_two(key):
    method = repeated(METHODS[key], {"steps": 5, "digest": 3})
    if key == "head":  # kept features are shuffled anew now and then, which is all the work there is
        method = replace(method, cache=False)
    where = setting("vit-nano")
    traced = trace(method, method, where)
    found, peak = exact(method, where)
    assert traced.peak_memory == peak
    assert traced.flops == max(figures.work.flops for figures in found)
    assert traced.traffic == pytest.approx(max(figures.work.traffic for figures in found), rel=1e-3)
    assert traced.ops == pytest.approx(max(figures.work.ops for figures in found), rel=1e-3)
    assert traced.bytes_up == max(figures.up for figures in found)
    assert traced.turns == max(figures.turns for figures in found)


@pytest.mark.parametrize(("batch", "micro_batch", "n"), [(8, 1, 20), (16, 4, 20), (10, 4, 20), (16, 4, 9)])
def test_micro_batches_are_told_from_two(batch, micro_batch, n):
    method, where = BitFit(steps=2, depth=0.25, batch=batch, micro_batch=micro_batch), setting("vit-nano", n)
    traced = trace(method, method, where)
    (found,), peak = exact(method, where)
    assert (traced.peak_memory, traced.flops) == (peak, found.work.flops)
    assert traced.traffic == pytest.approx(found.work.traffic, rel=1e-3)
    assert traced.ops == pytest.approx(found.work.ops, rel=1e-3)


@pytest.mark.parametrize("key", cases(set(METHODS) - {"split", "anytime", "head", "bitfit", "lora-slots"}))
def test_bytes_are_those_that_really_travel(key):
    method, where = METHODS[key], replace(setting("bert-nano"), cohort=2)
    cost = trace(method, method, where)
    rounds = method.phases()[-1] + 2
    driven = drive(method, where.base, {"a": where.rows, "b": where.rows}, where.task, rounds, public=where.public)
    assert cost.bytes_up == driven.up[-1]["a"]
    if key != "mixed":  # nobody here trains what the other members would
        assert cost.bytes_down == driven.down[-1]["a"]
    assert cost.turns == len(driven.sent[-1]["a"])


def test_a_lean_device_downloads_what_richer_ones_train():
    where = setting("vit-nano")
    rich = LoRA(**N, rank=4)
    lean = replace(rich, depth=0.25, train_rank=1)
    picks = {"a": lean, "b": rich}
    driven = drive(rich, where.base, dict.fromkeys("ab", where.rows), where.task, 2, variants=picks)
    cost = trace(rich, lean, where)
    assert (cost.bytes_down, cost.bytes_up) == (driven.down[1]["a"], driven.up[1]["a"])


@pytest.mark.slow
def test_a_member_downloads_what_the_others_train():
    where = setting("vit-nano")
    rich = LoRA(**N, rank=4)
    mixed = Mixed(members=(BitFit(**N), rich, Head(**N)))
    picks = {"a": mixed.variants()[-1], "b": replace(mixed, member=rich), "c": replace(mixed, member=mixed.members[0])}
    driven = drive(mixed, where.base, dict.fromkeys("abc", where.rows), where.task, 2, variants=picks)
    cost = trace(mixed, picks["a"], where)
    assert (cost.bytes_down, cost.bytes_up) == (driven.down[1]["a"], driven.up[1]["a"])


def test_members_count_their_own_steps():
    where = setting("vit-nano")
    alone = Head(steps=2, batch=4, cache=False)
    mixed = Mixed(members=(BitFit(steps=9, batch=4), alone), member=alone)
    assert trace(mixed, mixed, where).flops == trace(alone, alone, where).flops


@pytest.mark.slow
def test_the_dearest_phase_counts_and_later_ones_carry_what_earlier_left():
    where = setting("vit-nano")
    head, bias = Head(**N), BitFit(**N)
    stages = Stages(of=(bias, head), switch=(2,))
    cost, first, second = (trace(m, m, where) for m in (stages, bias, head))
    assert cost.flops == first.flops > second.flops
    assert cost.bytes_up == first.bytes_up > second.bytes_up
    assert cost.bytes_down == first.bytes_down
    assert cost.trainable == first.trainable
    turned = replace(stages, of=(head, bias))
    assert trace(turned, turned, where).flops == first.flops


@pytest.mark.slow
def test_the_ladder_of_each_method_begins_with_the_richest_and_ends_with_the_leanest():
    where = setting("vit-nano")
    for method in (FedAvg(batch=16), BitFit(batch=16), LoRA(batch=16)):
        peaks = [trace(method, variant, where).peak_memory for variant in method.variants()]
        assert (max(peaks), min(peaks)) == (peaks[0], peaks[-1]), type(method).__name__


def test_a_method_that_can_not_be_traced_is_run():
    cost = trace(Curious(**N), Curious(**N), setting("vit-nano"))
    assert cost.measured
    assert cost.flops == trace(Head(**N), Head(**N), setting("vit-nano")).flops
    with pytest.raises(MethodError, match="can't be run: no"):
        trace(Broken(**N), Broken(**N), setting("vit-nano"))


@dataclass(frozen=True, kw_only=True)
class Curious(Head):
    def client(self, dev, down):
        float(next(dev.model.parameters()).sum())
        return super().client(dev, down)


@dataclass(frozen=True, kw_only=True)
class Broken(Head):
    def client(self, dev, down):
        raise RuntimeError("no")


def test_a_measurement_leaves_the_base_as_it_is():
    where = setting("vit-nano")
    before = {name: tensor.clone() for name, tensor in where.base.state_dict().items()}
    measure(METHODS["fedavg"], METHODS["fedavg"], where)
    assert all(torch.equal(tensor, before[name]) for name, tensor in where.base.state_dict().items())
