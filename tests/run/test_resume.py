"""Checkpoints: what they hold, and that a run which was stopped anywhere ends as one that never was."""

import json
import os
import re
import signal

import pytest
import torch

from fedge.core.payload import Payload
from fedge.emulation import process
from fedge.errors import FedgeError, Interrupted, MethodError, MissingError
from fedge.run.checkpoint import Checkpoint
from fedge.run.stage import Stage
from fedge.run.states import forget_states, load_state, save_state, state_file
from tests.run.conftest import sha, stage
from tests.run.fakes import Play, Sum, brief, coordinator, ending

# -- states ------------------------------------------------------------------------------------------------------------


def test_states_come_back_as_they_were(tmp_path):
    state = {
        "w": {"a": torch.arange(6.0).reshape(2, 3), "none": torch.empty(0, 3), "scalar": torch.tensor(1.5)},
        "half": torch.ones(3, dtype=torch.bfloat16),
        "mask": torch.tensor([True, False]),
        "list": [1, "two", None, {"deep": torch.tensor([7])}],
    }
    save_state(state, tmp_path / "s")
    found = load_state(tmp_path / "s")
    assert found["list"][:3] == [1, "two", None]
    for old, new in [(state["w"][k], found["w"][k]) for k in state["w"]] + [(state["half"], found["half"])]:
        assert old.dtype == new.dtype
        assert old.shape == new.shape
        assert torch.equal(old, new)
    assert torch.equal(found["list"][3]["deep"], torch.tensor([7]))
    found["half"].add_(1)  # memory of its own


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"x": {1: 2}}, "keys must be strings"),
        ({"x": {3}}, "holds a set"),
        ({"x": float("inf")}, "not finite"),
        ({"x": torch.zeros(1, dtype=torch.complex64)}, "complex64"),
    ],
)
def test_what_cannot_be_saved_is_said(state, words, tmp_path):
    with pytest.raises(MethodError, match=words):
        save_state(state, tmp_path / "s")
    assert not list(tmp_path.iterdir())


def test_states_that_nobody_needs_are_forgotten(tmp_path):
    for device, index, saved in [("a", 0, 3), ("a", 1, 0), ("a", 1, 1), ("a", 1, 2), ("b", 1, 0), ("a.b", 1, 0)]:
        state_file(tmp_path, device, index, saved).touch()
    forget_states(tmp_path, 1, {"a": 1, "b": 0, "c": None})
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "a.1.1.state",
        "a.1.2.state",
        "a.b.1.0.state",
        "b.1.0.state",
    ]


# -- checkpoints -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_coordinator_goes_on_from_its_checkpoint(stop, tmp_path):
    told = brief(Sum(want=2, keep=True), rounds=5)
    calm = Play(coordinator(told)).stage()
    first = Play(coordinator(told)).stage(stop)
    assert first.of.kept, "answers are under way"
    kept = Checkpoint(stage=0)
    kept.note(first.of)
    kept.save(tmp_path)
    second = Play(coordinator(told))
    Checkpoint.load(tmp_path).put(second.of)
    assert sorted(second.of.kept) == sorted(first.of.kept)
    second.run(second.of.seek_all(), lambda: second.of.settled)
    second.rounds(5 - stop)
    assert ending(second) == ending(calm)


def test_a_run_that_has_not_begun_has_an_empty_checkpoint(tmp_path):
    assert Checkpoint.load(tmp_path) == Checkpoint()


def test_late_answers_keep_their_bytes(tmp_path):
    from fedge.run.answers import Late

    of = coordinator(brief())
    payload = Payload({"delta": {"a": torch.randn(3, 5), "b": torch.zeros(0)}}, weight=7.0, meta={"k": [1]})
    of.kept = {"d1": Late(12.5, payload, 2)}
    kept = Checkpoint()
    kept.note(of)
    kept.save(tmp_path)
    other = coordinator(brief())
    Checkpoint.load(tmp_path).put(other)
    late = other.kept["d1"]
    assert (late.arrival, late.asked) == (12.5, 2)
    assert late.payload.to_bytes() == payload.to_bytes()
    assert other.server.waiting == {"d1"}


# -- whole runs, inline ------------------------------------------------------------------------------------------------


class Stopped(Exception):
    pass


def stop_at(words):
    def say(line):
        if words in line:
            raise Stopped

    return say


def resume(inline, tmp_path, path=None):
    run = inline(None, resume=path or next((tmp_path / "runs").iterdir()))
    lines = [(line["stage_index"], line["round"], line.get("device")) for line in run.metrics]
    assert len(lines) == len(set(lines)), "a round is recorded once"
    return run


def calm_and(tmp_path, inline, path):
    """The undisturbed run's digest; its folder is out of the way of the one that is stopped."""
    run = inline(path)
    (tmp_path / "runs").rename(tmp_path / "calm")
    run.folder = tmp_path / "calm" / run.folder.name
    return sha(run), run


FLAVOURS = {
    "state": ([stage("Remembers", 3)], {"availability": 0.7}),
    "turns": ([stage("Chats", 3)], {"dropout": 0.1}),
    "late": ([stage("fedbuff", 4, inner="bitfit", buffer=2)], {}),
    "split": ([stage("split", 2)], {"dropout": 0.2}),
}


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("after", [1, 2])
def test_a_run_that_failed_goes_on_to_the_same_model(flavour, after, federation, inline, tmp_path):
    stages, changes = FLAVOURS[flavour]
    path = federation(*stages, **changes)
    expected, calm = calm_and(tmp_path, inline, path)
    # the line of a round comes before its checkpoint: that round is done again
    with pytest.raises(Stopped):
        inline(path, stop_at(f"round {after}/"))
    folder = next((tmp_path / "runs").iterdir())
    assert json.loads((folder / "summary.json").read_text())["status"] == "failed"
    run = resume(inline, tmp_path)
    assert sha(run) == expected
    assert run.folder == folder

    def timeless(found):
        return [{k: v for k, v in line.items() if k != "seconds"} for line in found.metrics]

    assert timeless(run) == timeless(calm)
    for key in ("stages", "devices", "baselines", "exports"):
        assert run.summary[key] == calm.summary[key]


def test_across_a_stages_end(federation, inline, tmp_path, monkeypatch):
    path = federation(stage("Alone", 2, "train"), stage("Remembers", 2), stage("Chats", 1))
    expected, _ = calm_and(tmp_path, inline, path)
    with pytest.raises(Stopped):
        inline(path, stop_at("stage 1: customize"))
    with pytest.raises(Stopped):
        inline(None, stop_at("customize round 2/2"), resume=next((tmp_path / "runs").iterdir()))
    # the last round is in its checkpoint, but the stage is not closed
    with monkeypatch.context() as patch:
        patch.setattr(Stage, "close", lambda self: (_ for _ in ()).throw(Stopped()))
        with pytest.raises(Stopped):
            inline(None, resume=next((tmp_path / "runs").iterdir()))
    assert Checkpoint.load(next((tmp_path / "runs").iterdir()) / "checkpoints").stage == 1
    run = resume(inline, tmp_path)
    assert sha(run) == expected
    assert [record["stage"] for record in run.summary["stages"]] == ["train", "customize", "customize"]


def test_ctrl_c_ends_the_round_and_says_how_to_go_on(federation, inline, tmp_path):
    path = federation(stage("Remembers", 4))
    expected, _ = calm_and(tmp_path, inline, path)
    said = []

    def say(line):
        said.append(line)
        if "round 2/4" in line:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted, match="fedge up --resume") as stopped:
        inline(path, say)
    assert stopped.value.exit_code == 130
    folder = next((tmp_path / "runs").iterdir())
    assert str(folder) in str(stopped.value)
    assert "stopping after this round (again to stop at once)" in said
    assert not any("round 3/4" in line for line in said)
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["status"], summary["model_sha256"]) == ("interrupted", None)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert sha(resume(inline, tmp_path)) == expected


def test_a_signal_in_the_last_round_is_told_to_the_caller_of_a_run_that_is_done(federation, inline, tmp_path):
    def say(line):
        if "round 2/2" in line:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match="the run was done"):
        inline(federation(stage("Remembers", 2)), say)
    assert sha(resume(inline, tmp_path))


def test_a_signal_before_the_rounds_ends_the_run_before_any_stage_begins(federation, inline, tmp_path):
    said = []

    def say(line):
        said.append(line)
        if not any("stopping" in earlier for earlier in said):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match="fedge up --resume"):
        inline(federation(stage("Remembers", 2)), say)
    assert "stopping after this step (again to stop at once)" in said
    assert not any(line.startswith("stage 0") for line in said)
    assert sha(resume(inline, tmp_path))


def test_a_second_ctrl_c_is_not_taken_for_the_failure_of_what_it_struck(federation, inline, tmp_path):
    said = []
    with pytest.raises(Interrupted, match="fedge up --resume"):
        inline(federation(stage("Rings", once=f"'{tmp_path / 'once'}'")), said.append)
    assert said[-1] == "stopping after this step (again to stop at once)"


def test_a_run_that_is_done_stays_as_it_is(federation, inline, tmp_path):
    run = inline(federation(stage("bitfit", 1)))
    again = inline(None, resume=run.folder)
    for key in ("status", "model_sha256", "stages", "devices", "exports"):
        assert again.summary[key] == run.summary[key]


@pytest.mark.parametrize(("name", "ours"), [("fedge-run-x", True), ("mine", False)])
def test_leftovers_of_a_killed_launcher_are_cleared(name, ours, federation, inline, tmp_path):
    path = federation(stage("bitfit", 1))
    with pytest.raises(Stopped):
        inline(path, stop_at("stage 0"))
    folder = next((tmp_path / "runs").iterdir())
    assert not (folder / "launcher.json").exists()
    scratch = tmp_path / name
    for place in (scratch, folder / ".model-a1_bcdef", folder / "export" / ".exit-1-a1_bcdef-old", folder / ".git"):
        place.mkdir(parents=True)
        (place / "file").touch()
    (folder / "checkpoints" / ".run.checkpoint.abcdefgh").touch()
    (folder / ".progress.json.4242").touch()
    record = {"pid": 1 << 22, "started": 1, "scratch": str(scratch), "groups": str(scratch)}
    (folder / "launcher.json").write_text(json.dumps(record))
    sha(resume(inline, tmp_path))
    assert scratch.exists() is not ours, "what has another name is not ours"
    assert [path.name for path in folder.rglob(".*")] == [".git"], "nor is what a user put there"


def test_a_run_that_was_killed_before_it_began_is_cleared(inline, tmp_path):
    scratch = tmp_path / "fedge-run-x"
    scratch.mkdir()
    record = {"pid": 1 << 22, "started": 1, "scratch": str(scratch), "groups": None}
    (tmp_path / "launcher.json").write_text(json.dumps(record))
    with pytest.raises(MissingError, match="is not a run's folder"):
        inline(None, resume=tmp_path)
    assert not scratch.exists()
    assert not (tmp_path / "launcher.json").exists()


def test_a_run_whose_launcher_lives_is_left_alone(federation, inline, tmp_path):
    run = inline(federation(stage("bitfit", 1)))
    own = {"pid": os.getpid(), "started": process.start_time(os.getpid())}
    (run.folder / "launcher.json").write_text(json.dumps({**own, "scratch": "/x", "groups": None}))
    with pytest.raises(FedgeError, match=re.escape(f"is still under way, as process {os.getpid()}")):
        inline(None, resume=run.folder)
    assert (run.folder / "launcher.json").exists()


def test_a_folder_that_is_no_run_is_refused(inline, tmp_path):
    with pytest.raises(MissingError, match="is not a run's folder"):
        inline(None, resume=tmp_path)
