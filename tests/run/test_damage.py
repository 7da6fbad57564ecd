"""Runs whose folder was damaged, changed or begun by another version: found when they are resumed, and said by name."""

import json
import os
import shutil

import pytest
import torch

import fedge
from fedge import __main__ as command
from fedge.core.payload import pack
from fedge.errors import FedgeError
from fedge.report.snapshot import Snapshot
from fedge.run.checkpoint import Checkpoint
from fedge.run.down import launcher_of
from fedge.run.folder import RunFolder, read_sealed, write_sealed
from fedge.run.host import check_host
from fedge.run.launcher import Options, up
from fedge.run.limits import clear
from fedge.run.states import load_state
from tests.run.conftest import DIGITS, USUAL, sha, stage


def test_any_byte_that_changes_is_found(tmp_path):
    write_sealed(tmp_path / "x", bytes(range(40)))
    whole = (tmp_path / "x").read_bytes()
    assert bytes(read_sealed(tmp_path / "x")) == bytes(range(40))
    for place in range(len(whole)):
        (tmp_path / "x").write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(FedgeError, match="x is damaged"):
            read_sealed(tmp_path / "x")
    for size in range(len(whole)):
        (tmp_path / "x").write_bytes(whole[:size])
        with pytest.raises(FedgeError, match="x is damaged"):
            read_sealed(tmp_path / "x")
    (tmp_path / "x").write_bytes(whole + b"0")
    with pytest.raises(FedgeError, match="x is damaged"):
        read_sealed(tmp_path / "x")
    with pytest.raises(FedgeError, match=r"y can't be read: No such file"):
        read_sealed(tmp_path / "y")


# -- what the fuzzer found, file by file: sealed as fedge seals, yet nothing that fedge writes ----------


def sealed_state(path, text):
    """A state's file whose JSON is ``text``; None: the file says nothing of a state."""
    write_sealed(path, pack({"0": torch.zeros(2)}, None if text is None else {"state": text}))
    return path


@pytest.mark.parametrize(
    "text",
    ["[1, 2]", "3", "null", '{"a": ', '{"a": {"$tensor": "7"}}', '{"a": {"$tensor": [0]}}', "[" * 100_000, None],
)
def test_a_state_that_holds_none_is_named(text, tmp_path):
    with pytest.raises(FedgeError, match=r"x\.state is damaged: it holds no state that fedge writes"):
        load_state(sealed_state(tmp_path / "x.state", text))


def test_a_state_whose_file_is_no_payload_is_named(tmp_path):
    write_sealed(tmp_path / "x.state", b"\xff" * 40)
    with pytest.raises(FedgeError, match=r"x\.state is damaged: it holds no state"):
        load_state(tmp_path / "x.state")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"stage": "0"}, "'stage' is a str"),
        ({"stage": True}, "'stage' is a bool"),
        ({"round": -1}, "'round' is a int"),
        ({"round": 1.5}, "'round' is a float"),
        ({"now": None}, "'now' is a NoneType"),
        ({"open": 1}, "'open' is a int"),
        ({"accounts": []}, "'accounts' is a list"),
        ({"done": {}}, "'done' is a dict"),
        ({"model_sha256": 3}, "'model_sha256' is a int"),
        ({"more": 1}, "of another version of fedge: it holds 'more'"),
    ],
)
def test_a_checkpoint_whose_values_are_of_another_kind_is_named(changes, told, tmp_path):
    Checkpoint().save(tmp_path)
    plain = load_state(tmp_path / "run.checkpoint")
    sealed_state(tmp_path / "run.checkpoint", json.dumps({**plain, **changes}))
    with pytest.raises(FedgeError, match=f"run.checkpoint is .*{told}"):
        Checkpoint.load(tmp_path)


@pytest.mark.parametrize("told", ["[]", "3", '"host"', "null"])
def test_a_record_of_the_host_that_is_no_mapping_is_named(told, tmp_path):
    (tmp_path / "host.json").write_text(told)
    with pytest.raises(FedgeError, match=r"host\.json is damaged"):
        check_host(RunFolder(tmp_path), lambda line: None)


LAUNCHER = {"pid": 4194304, "started": 1, "scratch": "/nowhere", "groups": None}


@pytest.mark.parametrize(
    "changes",
    [{"pid": "1"}, {"pid": 1.5}, {"pid": None}, {"started": []}, {"scratch": None}, {"scratch": 7}, {"groups": 7}],
)
def test_a_record_of_a_launcher_whose_values_are_of_another_kind_is_named(changes, tmp_path):
    (tmp_path / "launcher.json").write_text(json.dumps({**LAUNCHER, **changes}))
    with pytest.raises(FedgeError, match=r"launcher\.json is damaged"):
        clear(RunFolder(tmp_path), lambda line: None)


def test_a_record_of_a_launcher_that_is_gone_is_cleared(tmp_path):
    (tmp_path / "launcher.json").write_text(json.dumps(LAUNCHER))
    clear(RunFolder(tmp_path), lambda line: None)
    assert not (tmp_path / "launcher.json").exists()


@pytest.mark.parametrize("told", ['{"pid": 1e999, "started": 1}', '{"pid": 1, "started": null}', "[]", "{}"])
def test_who_asks_for_the_launcher_of_such_a_record_hears_of_none(told, tmp_path):
    (tmp_path / "launcher.json").write_text(told)
    assert launcher_of(RunFolder(tmp_path)) is None


@pytest.mark.parametrize(
    "changes", [{"round": "3"}, {"at": None}, {"elapsed_s": 1e999}, {"run": 3}, {"stages": True}, {"left_s": "soon"}]
)
def test_a_snapshot_whose_values_are_of_another_kind_is_none(changes):
    plain = Snapshot("run", "small", 1.0, 2.0, "rounds").to_json()
    assert Snapshot.from_json(plain).round == 0
    with pytest.raises(TypeError, match=next(iter(changes))):
        Snapshot.from_json({**plain, **changes})


class Stopped(Exception):
    pass


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run that was stopped in its second stage, and what it would have come to."""
    place = tmp_path_factory.mktemp("stopped")
    path = place / "small.yaml"
    stages = [stage("Alone", 1, "train"), stage("Remembers", 2)]
    path.write_text(DIGITS.format(**{**USUAL, "count": 2}, stages="\n".join(stages)))

    def say(line):
        if "customize round 2/2" in line:
            raise Stopped

    calm = up(path, (), Options(runs=place / "calm", inline=True), lambda line: None)
    with pytest.raises(Stopped):
        up(path, (), Options(runs=place / "runs", inline=True), say)
    return next((place / "runs").iterdir()), sha(calm)


@pytest.fixture
def run(stopped, tmp_path):
    return shutil.copytree(stopped[0], tmp_path / "run")


@pytest.fixture
def resume(run, capsys):
    def resumed():
        code = command.run(["up", "--inline", "--resume", str(run)])
        error = capsys.readouterr().err
        assert "Traceback" not in error
        assert "not foreseen" not in error
        said = [line.removeprefix("fedge: ") for line in error.splitlines() if line.startswith("fedge: ")]
        return code, said, error

    return resumed


def flip(path, place):
    raw = bytearray(path.read_bytes())
    raw[place] ^= 4
    path.write_bytes(raw)


def only(run, pattern):
    return next((run / "checkpoints").glob(pattern))


def states(run):
    """Those of one device: the one that it goes on from, and any that is written anew."""
    return list((run / "checkpoints").glob("phone-00.*.state"))


def settings(run, old, new):
    text = (run / "resolved.yaml").read_text()
    assert old in text
    (run / "resolved.yaml").write_text(text.replace(old, new))


DAMAGE = {
    "half a checkpoint": (lambda run: os.truncate(only(run, "run.*"), 900), 1, "run.checkpoint is damaged: its bytes"),
    "an empty checkpoint": (lambda run: os.truncate(only(run, "run.*"), 0), 1, "run.checkpoint is damaged: its bytes"),
    "a bit of a checkpoint": (lambda run: flip(only(run, "run.*"), -5), 1, "run.checkpoint is damaged: its bytes"),
    "a checkpoint of old": (
        lambda run: only(run, "run.*").write_bytes(bytes(900)),
        1,
        "run.checkpoint is damaged, or of another version of fedge",
    ),
    "a bit of a base": (lambda run: flip(only(run, "base-1.*"), -5), 1, "base-1.safetensors is damaged: its bytes"),
    "no base": (lambda run: only(run, "base-1.*").unlink(), 1, "base-1.safetensors can't be read: No such file"),
    "a bit of a state": (lambda run: [flip(path, -5) for path in states(run)], 1, ".state is damaged: its bytes"),
    "no state": (lambda run: [path.unlink() for path in states(run)], 1, ".state is gone"),
    "changed settings": (
        lambda run: settings(run, "seed: 3", "seed: 4"),
        1,
        "resolved.yaml was changed since the run began (a resumed run keeps its settings",
    ),
    "broken settings": (lambda run: os.truncate(run / "resolved.yaml", 300), 2, "resolved.yaml:"),
    "another version": (
        lambda run: (run / "host.json").write_text(json.dumps({"fedge": "0.0.7", "torch": torch.__version__})),
        1,
        f"was begun with fedge 0.0.7, and this is {fedge.__version__} (resume it with that version",
    ),
    "a record that is none": (lambda run: (run / "host.json").write_text("{"), 1, "host.json is damaged"),
    "no record": (lambda run: (run / "host.json").unlink(), 1, "its host.json is gone"),
    "a launcher's record that is none": (
        lambda run: (run / "launcher.json").write_text("{"),
        1,
        "launcher.json is damaged",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_run_is_not_gone_on_with(case, run, resume):
    damage, expected, says = DAMAGE[case]
    damage(run)
    code, said, _ = resume()
    assert code == expected
    assert says in said[0]
    assert str(run) in said[0]
    if case != "broken settings":
        assert len(said) == 1


def test_another_torch_or_processor_is_said_and_gone_on_with(run, resume, stopped):
    host = json.loads((run / "host.json").read_text())
    (run / "host.json").write_text(json.dumps({**host, "torch": "2.0.0", "processor": "Z80"}))
    code, said, error = resume()
    assert (code, said) == (0, [])
    assert f"begun with torch 2.0.0, and this is {torch.__version__}: the last bits may differ" in error
    assert "begun on Z80, and this is " in error
    assert json.loads((run / "summary.json").read_text())["model_sha256"] == stopped[1]


def test_lines_that_were_cut_short_are_written_again(run, resume, stopped):
    for name in ("metrics.jsonl", "events.jsonl"):
        with (run / name).open("a") as file:
            file.write('{"half": ')
    code, said, _ = resume()
    assert (code, said) == (0, [])
    assert json.loads((run / "summary.json").read_text())["model_sha256"] == stopped[1]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rounds = [line["round"] for line in lines if line["stage_index"] == 1 and line.get("device") == "phone-00"]
    assert rounds == [0, 1, None], "a line for each round, and one for the end"
