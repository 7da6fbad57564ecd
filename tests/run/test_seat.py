"""A device's side: reset each round, state between rounds, replay, and randomness of its own; inline is the same."""

import random

import pytest
import torch

from fedge.core.cost import Cost
from fedge.core.method import Rows
from fedge.core.payload import Payload
from fedge.core.rng import generator
from fedge.errors import MethodError
from fedge.meter.spans import SpanMeter
from fedge.methods.customize.fedavg import FedAvg
from fedge.methods.customize.fedmd import FedMD
from fedge.methods.customize.head import Head
from fedge.methods.customize.lora import LoRA
from fedge.methods.deploy.anytime import Anytime
from fedge.methods.train.split import Split
from fedge.models.load import load
from fedge.plan.choose import Offer
from fedge.run.brief import Brief
from fedge.run.coordinator import Coordinator
from fedge.run.engine import run_stage
from fedge.run.events import Answered, End, Send
from fedge.run.inline import Inline
from fedge.run.ledger import Account
from fedge.run.seat import Ground, Seat
from fedge.run.server import StageServer
from tests.run.fakes import budget
from tests.run.methods import Chats, Remembers

MiB = 2**20
SMALL = {"steps": 2, "batch": 4}
METHODS = {
    "fedavg": FedAvg(**SMALL),
    "lora": LoRA(**SMALL, rank=2),
    "head": Head(**SMALL),
    "split": Split(**SMALL),
    "fedmd": FedMD(**SMALL, digest=2),
    "anytime": Anytime(**SMALL, exits=(1, 2)),
    "remembers": Remembers(**SMALL),
    "chats": Chats(**SMALL),
}


@pytest.fixture(scope="module")
def loaded():
    options = {"hidden": 16, "layers": 2, "mlp": 32, "dropout": 0.1}
    return load("vit-nano", "image-classification", classes=4, seed=3, options=options)


def rows(n: int, name: str) -> Rows:
    from fedge.data.rows import Rows

    made = generator(name, n)
    images = torch.rand(n, 1, 8, 8, generator=made)
    return Rows({"pixel_values": images, "labels": torch.randint(4, (n,), generator=made)}, "image-classification")


DATA = {name: rows(n, name) for name, n in (("a", 9), ("b", 12), ("c", 7))}
PUBLIC = rows(8, "public")


def brief(method, rounds=2) -> Brief:
    offers = (Offer(0, "mine", {}, Cost(peak_memory=MiB, flops=1e6, turns=1)),)
    return Brief(
        seed=5, index=0, stage="customize", key="mine", method=method, variants=(method,), menu=offers, rounds=rounds
    )  # fmt: skip


def ground(loaded) -> Ground:
    return Ground(loaded.model, loaded.task, PUBLIC)


def seat(method, loaded, folder, name="a") -> Seat:
    found = Seat(brief(method), ground(loaded), name, budget(), DATA[name], folder, SpanMeter())
    found.pick()
    return found


class Recorded(Inline):
    """Notes what each device was told and what it answered, by device, round and turn."""

    def __init__(self, *given):
        super().__init__(*given)
        self.told, self.answers = {}, {}

    def do(self, instruction):
        if isinstance(instruction, Send):
            place = (instruction.device, instruction.round, instruction.turn)
            self.told[place] = bytes(instruction.blob.view)
        super().do(instruction)

    def wait(self):
        events = super().wait()
        for event in events:
            if isinstance(event, Answered):
                self.answers[(event.device, event.round, event.turn)] = bytes(event.data)
        return events


def stage(method, loaded, folder, names=("a", "b", "c"), rounds=2):
    told = brief(method, rounds)
    server = StageServer(told, loaded.model, loaded.task, PUBLIC)
    accounts = [Account(name, budget(), len(DATA[name])) for name in names]
    coordinator = Coordinator(told, server, accounts, slots=2, restart=0)
    engine = Recorded(told, ground(loaded), {n: budget() for n in names}, {n: DATA[n] for n in names}, folder)
    quiet = {"after_round": lambda: None, "stopping": lambda: False, "tell": lambda: None}
    run_stage(coordinator, engine, fresh=True, **quiet)
    return coordinator, engine


def conversation(engine, device, round):
    return [engine.told[place] for place in sorted(engine.told) if place[:2] == (device, round)]


def replayed(found: Seat, told, round) -> list[bytes]:
    return [bytes(found.answer(round, turn, bytearray(data)).data) for turn, data in enumerate(told)]


def answered(engine, device, round):
    return [engine.answers[place] for place in sorted(engine.answers) if place[:2] == (device, round)]


@pytest.mark.parametrize("key", METHODS)
def test_a_round_depends_on_what_came_down_and_the_saved_state_alone(key, loaded, tmp_path):
    method = METHODS[key]
    _, engine = stage(method, loaded, tmp_path)
    for round in (0, 1):
        told, expected = conversation(engine, "b", round), answered(engine, "b", round)
        assert told
        assert len(told) == len(expected)
        fresh = seat(method, loaded, tmp_path, "b")
        saved = None if round == 0 or not list(tmp_path.glob("b.0.*")) else 0
        fresh.restore(saved)
        torch.manual_seed(99)
        random.seed(99)
        assert replayed(fresh, told, round) == expected
        # and once more in the same process, whatever the first time left in the model
        fresh.restore(saved)
        assert replayed(fresh, told, round) == expected


@pytest.mark.parametrize("key", ["split", "chats", "remembers"])
def test_devices_that_take_turns_in_one_process_are_as_if_alone(key, loaded, tmp_path):
    method = METHODS[key]
    _, engine = stage(method, loaded, tmp_path / "all", rounds=1) if (tmp_path / "all").mkdir() is None else None
    for name in DATA:
        (tmp_path / name).mkdir()
        alone = seat(method, loaded, tmp_path / name, name)
        assert replayed(alone, conversation(engine, name, 0), 0) == answered(engine, name, 0)


def test_state_is_saved_before_the_answer_and_taken_up_again(loaded, tmp_path):
    method = METHODS["remembers"]
    down = bytearray(Payload({"weights": {}}).to_bytes())
    first = seat(method, loaded, tmp_path)
    answer = first.answer(0, 0, bytearray(down))
    assert answer.done
    assert answer.stateful == 0
    second = first.answer(3, 0, bytearray(down))
    assert second.stateful == 1
    assert first.state["rounds"] == 2
    # the state from before is still there: whoever dies now is replayed from it
    again = seat(method, loaded, tmp_path)
    again.restore(0)
    assert again.state["rounds"] == 1
    assert again.answer(3, 0, bytearray(down)).data == second.data
    assert torch.equal(again.state["mean"]["classifier.bias"], first.state["mean"]["classifier.bias"])


def test_a_conversation_that_ends_early_leaves_no_trace_in_the_state(loaded, tmp_path):
    method = METHODS["chats"]
    _, engine = stage(method, loaded, tmp_path, rounds=2)
    told, expected = conversation(engine, "a", 1), answered(engine, "a", 1)
    found = seat(method, loaded, tmp_path)
    found.restore(0)
    for turn, data in enumerate(told[:2]):
        found.answer(1, turn, bytearray(data))
    found.end()
    assert replayed(found, told, 1) == expected


def test_without_a_state_nothing_is_saved(loaded, tmp_path):
    found = seat(METHODS["fedavg"], loaded, tmp_path)
    answer = found.answer(0, 0, Payload({"weights": {}}).to_bytes())
    assert answer.stateful is None
    assert not list(tmp_path.iterdir())
    assert answer.noted["seconds"]["forward"] > 0


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (lambda dev: 1 / 0, "ZeroDivisionError: division by zero"),
        (lambda dev: torch.zeros(2) @ torch.zeros(3), "RuntimeError"),
        (lambda dev: None, "it answered by a NoneType"),
        (lambda dev: Payload({"delta": {"x": torch.zeros(1, dtype=torch.complex64)}}), "complex64"),
        (lambda dev: dev.state.update(x=object()) or Payload({}), "a state holds a object"),
        (lambda dev: dev.state.update(x=float("nan")) or Payload({}), "not finite"),
    ],
)
def test_what_a_methods_client_does_wrong_names_device_and_method(reply, words, loaded, tmp_path):
    class Odd(Head):
        def client(self, dev, down):
            return reply(dev)

    found = seat(Odd(), loaded, tmp_path)
    with pytest.raises(MethodError, match="a: method 'mine', client: ") as failure:
        found.answer(0, 0, Payload({}).to_bytes())
    assert words in str(failure.value)


def test_what_memory_refuses_is_not_the_methods_fault(loaded, tmp_path):
    class Greedy(Head):
        def client(self, dev, down):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes")

    found = seat(Greedy(), loaded, tmp_path)
    with pytest.raises(RuntimeError, match="can't allocate") as failure:
        found.answer(0, 0, Payload({}).to_bytes())
    assert not isinstance(failure.value, MethodError)


def test_a_turn_of_no_conversation_is_refused(loaded, tmp_path):
    found = seat(METHODS["chats"], loaded, tmp_path)
    with pytest.raises(MethodError, match="a conversation that is over"):
        found.answer(0, 1, Payload({}).to_bytes())


def test_inline_loses_a_device_by_the_plan(loaded, tmp_path):
    told = brief(METHODS["fedavg"])
    engine = Inline(told, ground(loaded), {"a": budget(memory=MiB // 2)}, {"a": DATA["a"]}, tmp_path)
    from fedge.run.events import Lost, Seek

    engine.do(Seek("a", pinned=0))
    engine.wait()
    engine.do(Send("a", 0, 0, Payload({"weights": {}}).to_bytes()))
    lost = engine.wait()[0]
    assert isinstance(lost, Lost)
    assert (lost.cause, lost.peak, lost.cap) == ("memory", MiB, MiB // 2)
    engine.do(End("a"))
