"""Methods and devices that break the rules, before the coordinator: named, dropped, and in nobody else's way."""

from dataclasses import dataclass

import pytest
import torch

from fedge.core.method import Ask
from fedge.core.payload import Payload
from fedge.errors import MethodError, ProtocolError
from tests.run.fakes import Sum, brief, number, play

# -- methods -----------------------------------------------------------------------------------------------------------


def misbehaving(turn):
    @dataclass(frozen=True, kw_only=True)
    class Odd(Sum):
        def round(self, srv, state):
            return turn(srv, state)

    return Odd()


def asks_a_stranger(srv, state):
    yield Ask({"nobody": number(1)})


def raises(srv, state):
    yield Ask({d: number(1) for d in srv.cohort})
    raise KeyError("delta")


def yields_garbage(srv, state):
    yield 5


def asks_garbage(srv, state):
    yield Ask({"d0": {"x": 1}})


def asks_what_is_not_json(srv, state):
    yield Ask({"d0": Payload({}, meta={"x": object()})})


def returns_nothing(srv, state):
    yield Ask({d: number(1) for d in srv.cohort})


def is_no_generator(srv, state):
    return state


@pytest.mark.parametrize(
    ("turn", "words"),
    [
        (asks_a_stranger, "it asks 'nobody', which is not a device of this federation"),
        (raises, "KeyError: 'delta'"),
        (yields_garbage, "it asked by a int"),
        (asks_garbage, "it asks 'd0' by a dict"),
        (asks_what_is_not_json, "not JSON serializable"),
        (returns_nothing, "it left a NoneType as its state"),
        (is_no_generator, "TypeError"),
    ],
)
def test_a_method_that_misbehaves_is_named(turn, words):
    with pytest.raises(MethodError, match="method 'sum', round") as failure:
        play(brief(misbehaving(turn)))
    assert words in str(failure.value)
    assert "\n" not in str(failure.value)


def test_an_init_that_raises_is_named():
    @dataclass(frozen=True, kw_only=True)
    class Odd(Sum):
        def init(self, srv):
            return 1 / 0

    with pytest.raises(MethodError, match="method 'sum', init: ZeroDivisionError"):
        play(brief(Odd()))


def test_the_servers_randomness_depends_on_its_place_alone():
    @dataclass(frozen=True, kw_only=True)
    class Noisy(Sum):
        def update(self, srv, state, replies):
            return {**state, "log": [*state["log"], float(torch.rand(()))]}

        def round(self, srv, state):
            replies = yield Ask({d: number(1) for d in srv.cohort})
            return self.update(srv, state, replies)

    told = brief(Noisy())
    torch.manual_seed(1)
    first = play(told).log
    torch.manual_seed(2)
    assert play(told).log == first
    assert len(set(first)) == 3


# -- devices on other machines -----------------------------------------------------------------------------------------


def test_devices_on_other_machines_take_no_slot():
    assert play(devices=6, slots=1, elsewhere=("d1", "d4")).computing == 3


def shaped(*shape):
    return Payload({"scalars": {"x": torch.zeros(shape, dtype=torch.float64)}})


def test_a_remote_device_whose_answer_has_another_shape_is_dropped_and_the_run_goes_on():
    lie = {("d3", 1, 0): shaped(2, 3)}
    found = play(brief(rounds=4), devices=4, faults=lie, elsewhere=("d3",))
    assert found.of.round == 4
    lost = found.of.accounts["d3"].lost
    assert (lost["round"], lost["cause"]) == (1, "protocol")
    details = [note["detail"] for note in found.notes if note["event"] == "lost"]
    assert details == ["its answer has scalars 'x' as float64 [2, 3], unlike everyone's"]
    assert [note["round"] for note in found.notes if note["event"] == "abandoned"] == [1]
    assert [line[0] for line in found.of.state["log"] if line[2] == "d0"] == [0, 2, 3]


def test_a_protocol_that_a_method_holds_itself_drops_the_remote_liar_too():
    @dataclass(frozen=True, kw_only=True)
    class Strict(Sum):
        def round(self, srv, state):
            replies = yield Ask({device: number(1.0) for device in srv.cohort})
            for reply in replies.values():
                if reply["scalars"]["x"].shape != ():
                    raise ProtocolError("a masked vector of another length")
            return {"x": state["x"], "log": [*state["log"], sorted(replies)]}

    found = play(brief(Strict(), rounds=3), devices=4, faults={("d3", 1, 0): shaped(2)}, elsewhere=("d3",))
    assert found.of.accounts["d3"].lost["cause"] == "protocol"
    assert found.of.state["log"] == [["d0", "d1", "d2", "d3"], ["d0", "d1", "d2"]]
    with pytest.raises(ProtocolError):
        play(brief(Strict(), rounds=3), devices=4, faults={("d3", 1, 0): shaped(2)})


def test_an_answer_of_another_shape_is_a_methods_error_where_nobody_remote_is_to_blame():
    with pytest.raises(MethodError):
        play(brief(rounds=2), devices=4, faults={("d3", 1, 0): shaped(2, 3)})
    with pytest.raises(MethodError):
        play(brief(rounds=2), devices=4, faults={("d3", 1, 0): shaped(2, 3)}, elsewhere=("d0",))
