"""Codecs in a run: what is sent is what was foretold, nothing is lost for good, and damage loses one device."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from fedge.codecs.make import chain
from fedge.core.payload import Payload
from fedge.core.rng import generator
from fedge.errors import ConfigError
from fedge.run.brief import Brief
from fedge.run.launcher import Options, up
from fedge.run.planning import plan
from fedge.run.states import load_state, state_file
from tests.run.conftest import sha, stage
from tests.run.fakes import Play, brief, coordinator
from tests.run.test_resume import Stopped, calm_and, resume, stop_at
from tests.run.test_seat import METHODS, loaded, seat  # noqa: F401

CHAIN = "[{topk: 0.1}, int8]"
KEEPS = "[{powersgd: 2}, topk, qsgd, zstd]"


def answers(run):
    """Bytes up of every answer of every device."""
    return [line["bytes_up"] for line in run.metrics if line.get("device") and line["round"] is not None]


@pytest.mark.parametrize("method", ["Alone", pytest.param("lora", marks=pytest.mark.slow)])
def test_a_fixed_chain_sends_the_bytes_that_were_foretold(method, federation, inline):
    path = federation(stage(method, 2, codec=CHAIN))
    coded = inline(path)
    rows = [row for row in plan(path, say=lambda line: None) if row["chosen"]]
    plain = [row for row in plan(path, ["stages.0.codec=null"], say=lambda line: None) if row["chosen"]]
    assert set(answers(coded)) == {row["bytes_up"] for row in rows}
    assert len(answers(coded)) == 8
    assert 3 * rows[0]["bytes_up"] < plain[0]["bytes_up"]
    assert coded.summary["stages"][0]["bytes_up"] == sum(answers(coded))
    assert rows[0]["peak_memory"] >= plain[0]["peak_memory"]


def test_a_chain_of_other_lengths_sends_no_more_than_was_foretold(federation, inline):
    path = federation(stage("Alone", 2, codec=KEEPS))
    foretold = {row["bytes_up"] for row in plan(path, say=lambda line: None) if row["chosen"]}
    found = answers(inline(path))
    assert max(found) <= min(foretold)


def test_a_lossless_chain_leaves_the_same_model(federation, inline):
    plain = inline(federation(stage("Alone", 2)))
    coded = inline(federation(stage("Alone", 2, codec="[zstd]")))
    assert sha(coded) == sha(plain)
    assert sum(answers(coded)) < sum(answers(plain))


@pytest.mark.parametrize("method", ["Alone", "Remembers", "Chats"])
def test_what_codecs_keep_outlives_a_stop(method, federation, inline, tmp_path):
    path = federation(stage(method, 3, codec=KEEPS), availability=0.8)
    calm, _ = calm_and(tmp_path, inline, path)
    with pytest.raises(Stopped):
        inline(path, say=stop_at("round 2/3"))
    assert sha(resume(inline, tmp_path)) == calm


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("codec", [CHAIN, KEEPS])
def test_processes_send_and_leave_what_inline_does(codec, federation, inline, tmp_path):
    path = federation(stage("lora", 2, codec=codec))
    alone = inline(path)
    for slots in (1, 3):
        runs = tmp_path / f"slots-{slots}"
        several = up(path, (), Options(runs=runs, slots=slots, best_effort=True), lambda line: None)
        assert sha(several) == sha(alone)
        assert answers(several) == answers(alone)


def test_a_replay_from_the_saved_state_gives_the_same_bytes(loaded, tmp_path):  # noqa: F811
    down = Payload({"weights": {}}).to_bytes()

    def fresh():
        found = seat(METHODS["fedavg"], loaded, tmp_path)
        found.brief = replace(found.brief, chain=chain([("topk", {}), ("qsgd", {})]))
        return found

    first = fresh()
    assert first.answer(0, 0, bytearray(down)).stateful == 0
    second = first.answer(1, 0, bytearray(down))
    assert second.stateful == 1
    again = fresh()
    again.restore(0)
    assert again.answer(1, 0, bytearray(down)).data == second.data
    unlike = fresh()
    assert unlike.answer(1, 0, bytearray(down)).data != second.data, "what was left over made no difference"
    kept = load_state(state_file(tmp_path, "a", first.brief.index, 0))
    assert kept["method"] == {}
    assert kept["codec"]["delta"]["residual"]


def test_the_chain_travels_with_the_brief():
    told = brief(chain=chain([("topk", {"fraction": 0.5}), ("int8", {})]))
    assert Brief.from_json(told.to_json()).chain == told.chain


@pytest.mark.parametrize("cut", [lambda data: data[:-1], lambda data: data.replace(b"int8.codes", b"int8.coded")])
def test_an_answer_that_can_not_be_decoded_loses_its_device_alone(cut):
    codecs = chain([("int8", {"only": ("delta",)})])
    sent = codecs.encode(Payload({"delta": {"x": torch.ones(50)}}), generator("x"), {}).to_bytes()
    play = Play(coordinator(brief(chain=codecs), devices=2))
    of = play.of
    play.run(of.seek_all(), lambda: of.settled)
    of.open_stage()
    of.open_round()
    from fedge.run.events import Answered

    of.handle(Answered("d0", 0, 0, bytearray(cut(bytes(sent))), True, None, 0, {}))
    assert of.accounts["d0"].lost["cause"] == "protocol"
    assert of.accounts["d1"].lost is None


@pytest.mark.parametrize(
    ("codec", "said"),
    [
        (
            "[mask]",
            "stages.0.codec: 'mask' is for mask, and 'tests.run.methods:Alone' sends delta",
        ),
        ("[{topk: {only: [gradients]}}]", "'topk' is for gradients, and 'tests.run.methods:Alone' sends delta"),
        ("['builtins:dict']", "stages.0.codec: codec 'builtins:dict': it gives a dict"),
        ("['fedge.codecs.int8:Int8', qsgd]", "stages.0.codec: codec 1: 'qsgd' quantises"),
        ("[{topk: 0}]", "stages.0.codec: codec 'topk': a share of the numbers is more than 0"),
    ],
)
def test_a_codec_that_can_do_nothing_here_is_refused_with_its_place(codec, said, federation, inline):
    with pytest.raises(ConfigError, match=re.escape(said)) as caught:
        inline(federation(stage("Alone", 1, codec=codec)))
    assert "small.yaml:9:" in str(caught.value) or "small.yaml:10:" in str(caught.value)
