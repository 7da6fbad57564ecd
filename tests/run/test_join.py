"""Federations with devices that really join over tcp, as processes of their own: whole runs, and what befalls them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from fedge.core.task import Task
from fedge.data import store
from fedge.data.encode import Data
from fedge.data.rows import Rows
from fedge.errors import ConfigError, ProtocolError
from fedge.run.foreign import refuse_code
from fedge.run.launcher import Options, up
from fedge.run.pack import packed, unpack
from tests.run.conftest import processes_left, sha

ROOT = Path(__file__).parents[2]
PATIENCE = 300.0
FEDERATION = """\
name: small
seed: 3
model: {{name: vit-nano, options: {{hidden: 16, layers: 2, mlp: 32}}}}
data: {{dataset: digits, partition: {{dirichlet: 0.5}}, test: 5%, rows: 300}}
devices:
  phone: {{profile: android-low-3g, count: 2, memory: 64MiB}}
  pi:    {{profile: pi-zero-2w, memory: 64MiB, count: {count}, remote: true}}
remote: {{listen: "tcp://127.0.0.1:*", keys: keys, wait: {wait}}}
evaluate: {{every: 1, rows: 32}}
stages:
  - customize: {{method: {method}, rounds: {rounds}, steps: 2, batch: 8}}
"""


class World:
    """A folder in which commands of fedge run, each as a process of its own."""

    def __init__(self, folder):
        self.folder = folder
        self.started = []

    def write(self, *, count=1, wait="60s", method="lora", rounds=3):
        text = FEDERATION.format(count=count, wait=wait, method=method, rounds=rounds)
        (self.folder / "small.yaml").write_text(text)
        return self.folder / "small.yaml"

    def start(self, *words):
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        out = (self.folder / f"{len(self.started)}.out").open("w+")
        made = subprocess.Popen(
            [sys.executable, *words], cwd=self.folder, env=env, stdout=out, stderr=subprocess.STDOUT
        )
        made.said = lambda: Path(out.name).read_text()
        self.started.append(made)
        return made

    def fedge(self, *words):
        return self.start("-m", "fedge", *words)

    def until(self, what, *alive):
        end = time.monotonic() + PATIENCE
        while not (found := what()):
            for process in alive:
                assert process.poll() is None, process.said()
            assert time.monotonic() < end, [process.said() for process in self.started]
            time.sleep(0.05)
        return found

    def run(self):
        return next(iter(sorted((self.folder / "runs").glob("*-small"))), None)

    def address(self, *alive):
        def read():
            file = self.run() and self.run() / "remote.json"
            return file and file.exists() and json.loads(file.read_text())["address"]

        return self.until(read, *alive)

    def join(self, device, address, *words):
        return self.fedge("join", address, "--key", f"keys/{device}.key", *words)

    def begun(self, device="pi", line=None, **settings):
        """A run that a device has been told to join: both processes. line: what the run has said when this returns."""
        self.write(**settings)
        launcher = self.fedge("up", "small.yaml")
        joiner = self.join(device, self.address(launcher))
        if line is not None:
            self.until(lambda: line in launcher.said(), launcher, joiner)
        return launcher, joiner

    def ended(self, process):
        try:
            assert process.wait(PATIENCE) == 0, process.said()
        except subprocess.TimeoutExpired:
            pytest.fail(process.said())
        return process.said()

    def summary(self):
        return json.loads((self.run() / "summary.json").read_text())


@pytest.fixture
def world(tmp_path):
    made = World(tmp_path)
    yield made
    for process in made.started:
        process.kill()
        process.wait()
    time.sleep(0.2)
    assert not processes_left(str(tmp_path))


def undisturbed(world):
    return sha(
        up(world.folder / "small.yaml", (), Options(runs=world.folder / "alone", inline=True), lambda line: None)
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_device_that_joins_gives_the_bits_of_one_that_is_emulated_and_intruders_get_none(world):
    world.write(method="fedavg", rounds=4)
    launcher = world.fedge("up", "small.yaml")
    address = world.address(launcher)
    world.until(lambda: (world.folder / "keys" / "pi.key").exists())
    world.ended(world.fedge("keys", "mallory"))  # listed, and no device of this federation
    joiner = world.join("pi", address)
    intruder = str(ROOT / "tests" / "wire" / "intruder.py")
    world.until(lambda: "pi joined" in launcher.said(), launcher, joiner)
    hows = [("none", "pi"), ("foreign", "pi"), (f"pi.{10**17}9", "mallory"), (f"mallory.{10**17}", "mallory")]
    intruders = [world.start(intruder, address, how, f"keys/{key}.key", "2") for how, key in hows]
    told = [json.loads(world.ended(one)) for one in intruders]
    world.ended(launcher)
    assert "is done, 4 turns answered" in world.ended(joiner)
    assert world.summary()["model_sha256"] == undisturbed(world)
    assert [one["bytes"] for one in told[:3]] == [0, 0, 0]
    assert told[3]["bytes"] < 300  # it is told why, and nothing else
    remote = world.summary()["remote"]
    assert remote["turned_away"]["key"] >= 1
    assert remote["turned_away"]["handshake"] >= 1
    assert remote["devices"]["pi"]["refused"] == {}
    assert remote["devices"]["pi"]["joined"] == 1


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_device_outlives_the_coordinator_and_takes_part_again(world):
    launcher, joiner = world.begun(line="round 3/12", rounds=12)
    address = world.address()
    launcher.kill()
    launcher.wait()
    world.until(lambda: "the connection broke" in joiner.said(), joiner)
    world.ended(world.fedge("up", "--resume", str(world.run())))
    said = world.ended(joiner)
    assert said.count("takes part in") == 2
    assert world.summary()["model_sha256"] == undisturbed(world)
    assert world.summary()["remote"]["address"] == address


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_device_that_is_killed_and_started_anew_begins_its_turn_again(world):
    launcher, joiner = world.begun(line="round 3/12", rounds=12)
    joiner.kill()
    joiner.wait()
    again = world.join("pi", world.address(launcher))
    world.ended(launcher)
    world.ended(again)
    assert world.summary()["model_sha256"] == undisturbed(world)
    assert world.summary()["remote"]["devices"]["pi"]["joined"] == 2


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_device_that_lies_is_dropped_and_told_why_and_the_run_ends_with_the_others(world):
    world.write(method="fedavg", rounds=3)
    launcher = world.fedge("up", "small.yaml")
    address = world.address(launcher)
    liar = world.start(str(Path(__file__).with_name("liar.py")), address, "keys/pi.key")
    said = world.ended(launcher)
    told = json.loads(world.ended(liar))
    why = "its answer's delta 'classifier.weight' holds numbers that are not finite"
    assert (told["kind"], told["cause"]) == ("FAIL", "protocol")
    assert why in told["message"]
    assert f"pi is dropped: {why}" in said
    summary = world.summary()
    assert summary["status"] == "done"
    assert summary["remote"]["devices"]["pi"]["refused"] == {"answer": 1}
    [line] = [line for line in summary["devices"] if line["name"] == "pi"]
    assert line["lost"]["cause"] == "protocol"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_who_does_not_come_is_lost_and_who_leaves_says_so(world):
    launcher, joiner = world.begun("pi-00", "round 2/30", count=2, wait="6s", rounds=30)
    assert "waiting for" in launcher.said()
    joiner.send_signal(signal.SIGINT)
    assert joiner.wait(PATIENCE) == 130
    assert joiner.said().splitlines()[-1] == "fedge: left the federation (the same command joins again)"
    said = world.ended(launcher)
    assert "pi-01 is lost: it did not join within 6 s" in said
    # on a busy host its last word was seen not to arrive: then its silence tells, and it is waited for as for any other
    assert "pi-00 is lost: left" in said or "pi-00 is lost: it did not come back within 6 s" in said
    causes = {line["name"]: line["lost"]["cause"] for line in world.summary()["devices"] if line["lost"]}
    assert causes == {"pi-00": "host", "pi-01": "host"}


# -- without processes -------------------------------------------------------------------------------------------------


def test_a_pack_holds_a_devices_rows_in_their_order_and_repeats_byte_for_byte(tmp_path):
    columns = {"input_ids": torch.arange(40).reshape(10, 4), "labels": torch.arange(10)}
    rows = Rows(columns, "text")
    task = Task("text-classification", 10)
    whole = Data(rows, rows, rows.take(torch.arange(2)), task, np.arange(10), None, tuple("abcdefghij"), "x")
    told = packed(whole, np.array([7, 2, 5]), np.array([9]), share=0, seed=1)
    assert told == packed(whole, np.array([7, 2, 5]), np.array([9]), share=0, seed=1)
    (tmp_path / "pack").write_bytes(told)
    unpack(tmp_path / "pack", tmp_path / "data", 1 << 20)
    found = store.open(tmp_path / "data")
    assert found.train.gather().columns["labels"].tolist() == [7, 2, 5, 9]
    assert found.labels is None
    with pytest.raises(ProtocolError, match="larger than"):
        unpack(tmp_path / "pack", tmp_path / "small", 10)
    (tmp_path / "no-pack").write_bytes(b"no zip")
    with pytest.raises(ProtocolError, match="can't be read"):
        unpack(tmp_path / "no-pack", tmp_path / "none", 1 << 20)


@pytest.mark.parametrize(
    ("brief", "order", "named"),
    [
        ({}, {"name": "mine:model"}, "mine:model"),
        ({}, {"name": "hub/model", "trust_remote_code": True}, "the code of hub/model"),
        ({"method": {"class": "mine:Method"}}, {"name": "vit-nano"}, "mine:Method"),
        ({"variants": [{"fields": {"inner": {"method": {"class": "os:system"}}}}]}, {"name": "vit-nano"}, "os:system"),
        ({"chain": [{"class": "mine:Codec"}]}, {"name": "vit-nano"}, "mine:Codec"),
    ],
)
def test_code_that_is_not_fedges_own_is_refused(brief, order, named):
    with pytest.raises(ConfigError, match=f"asks this machine to run {named}"):
        refuse_code(brief, order)


def test_fedges_own_is_not():
    told = {"method": {"class": "fedge.methods.customize.lora:LoRA", "fields": {}}, "chain": []}
    assert refuse_code(told, {"name": "vit-nano", "trust_remote_code": False}) is None
