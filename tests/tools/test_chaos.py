"""The campaign's own logic without a run, what is found below a launcher, and a few blows that are really dealt."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress

import psutil
import pytest

from fedge.errors import ConfigError, FedgeError, MissingError
from tools.chaos import trial as trials
from tools.chaos.__main__ import main, parser
from tools.chaos.campaign import Goal, Ledger, blows, figures, matrix, table
from tools.chaos.disk import Disk
from tools.chaos.trial import Run, Struck, Trial, undisturbed
from tools.chaos.victims import COLD, USUAL, devices, marked, strike, zygotes
from tools.chaos.warm import Warm

# -- blows -------------------------------------------------------------------------------------------------------------


def test_blows_are_drawn_by_seed_and_run():
    drawn = blows(7, 3, 50, 10.0, USUAL)
    assert drawn == blows(7, 3, 50, 10.0, USUAL)
    assert drawn != blows(7, 4, 50, 10.0, USUAL)
    assert drawn != blows(8, 3, 50, 10.0, USUAL)
    moments = [blow.moment for blow in drawn]
    assert moments == sorted(moments)
    assert 0.0 <= moments[0] < 2.0 < 8.0 < moments[-1] <= 10.0
    assert {blow.kinds[0] for blow in drawn} == set(USUAL)
    assert all(sorted(blow.kinds) == sorted(USUAL) for blow in drawn)


@pytest.mark.parametrize(
    ("goal", "ended"),
    [
        (Goal(), False),
        (Goal(runs=3), False),
        (Goal(runs=2), True),
        (Goal(kills=6), False),
        (Goal(kills=5), True),
        (Goal(seconds=11.0), False),
        (Goal(seconds=9.0), True),
        (Goal(kills=9, seconds=10.0), True),
    ],
)
def test_goals(goal, ended):
    assert goal.reached(2, 5, 10.0) is ended


# -- the ledger --------------------------------------------------------------------------------------------------------

ABOUT = {"federation": "x.yaml", "model_sha256": "abc", "seed": 0, "victims": list(COLD), "per_run": 2}


def ended(outcome="same", *victims):
    struck = [Struck(1.5, victim, "python", "stage 0 round 2", "customize round 2/3") for victim in victims]
    return Trial(outcome, 12.0, 9.0, struck, 1, "why" if outcome != "same" else "", "abc", [{"stage": "train"}])


def test_a_ledger_is_continued(tmp_path):
    path = tmp_path / "chaos.jsonl"
    first = Ledger.open(path, ABOUT)
    assert (first.next_run, first.kills) == (0, 0)
    first.add(0, ended("same", "launcher", "device"))
    first.add(1, ended("failed", "zygote"))
    with path.open("a") as out:
        out.write('{"run": 2, "out')  # the campaign itself was killed
    again = Ledger.open(path, ABOUT)
    assert (again.next_run, again.kills) == (2, 3)
    again.add(2, ended())
    assert [row["run"] for row in Ledger.open(path, ABOUT).rows] == [0, 1, 2]
    row = again.rows[0]
    assert row["struck"][0] == {"moment": 1.5, "victim": "launcher", "name": "python"} | {
        "reached": "stage 0 round 2",
        "last": "customize round 2/3",
    }
    assert (row["seed"], row["outcome"], row["seconds"], row["resumes"]) == (0, "same", 12.0, 1)


def test_a_ledger_of_something_else_is_refused(tmp_path):
    path = tmp_path / "chaos.jsonl"
    Ledger.open(path, ABOUT)
    with pytest.raises(ConfigError, match="of another campaign: its model_sha256 is abc, not def"):
        Ledger.open(path, {**ABOUT, "model_sha256": "def"})
    with pytest.raises(MissingError, match="can't be written"):
        Ledger.open(tmp_path / "none" / "x.jsonl", ABOUT)
    (tmp_path / "folder").mkdir()
    with pytest.raises(MissingError, match="can't be read"):
        Ledger.open(tmp_path / "folder", ABOUT)


def test_figures_and_table():
    ledger = Ledger(ABOUT)
    for number, one in enumerate([ended("same", "launcher"), ended("same", "device"), ended("left", "device")]):
        ledger.add(number, one)
    found = {line["name"]: line for line in figures(ledger)}
    share = found["runs that end with the undisturbed model, or say which device was lost, and leave nothing behind"]
    assert (share["value"], share["holds"], share["n"]) == (66.67, False, 3)
    assert (found["runs: left"]["value"], found["runs: left"]["holds"]) == (1, False)
    assert found["runs: hung"]["holds"]
    assert [found[f"struck: {kind}"]["value"] for kind in COLD] == [1, 0, 2]
    assert (
        len([line for line in figures(Ledger({**ABOUT, "victims": ["device", "device"]})) if "struck" in line["name"]])
        == 1
    )
    lines = table(ledger)
    assert any(line.split() == ["device", "stage", "0", "2", "left", "1,", "same", "1"] for line in lines)
    assert [line.split()[:3] for line in matrix(ledger)[1:]] == [["device", "2", "1"], ["launcher", "1", "1"]]
    assert lines[-1].startswith("run 2: left: why (struck: device at 1.50 s, stage 0 round 2)")
    assert not figures(Ledger(ABOUT))[0]["holds"], "no run, no claim"


@pytest.mark.parametrize(("text", "seconds"), [("60m", 3600.0), ("90s", 90.0), ("1.5h", 5400.0), ("2min", 120.0)])
def test_times(text, seconds):
    assert parser().parse_args(["--for", text]).seconds == seconds


@pytest.mark.parametrize(
    "words",
    [
        ["--victims", "server"],
        ["--runs", "0"],
        ["--for", "soon"],
        ["--runs", "2", "--kills", "3"],
        ["--cold", "--victims", "corrupt"],
    ],
)
def test_a_wrong_command_line_is_refused(words, capsys):
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


# -- victims -----------------------------------------------------------------------------------------------------------

_DEVICE = "import time; time.sleep(600)"
_ZYGOTE = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {_DEVICE!r}])"
_LAUNCHER = f"""\
import subprocess, sys
proof = subprocess.Popen([sys.executable, "-c", {_DEVICE!r}])
subprocess.run([sys.executable, "-c", {_ZYGOTE!r}], start_new_session=True)
proof.wait()
"""


@pytest.fixture
def launcher(tmp_path):
    """A tree of processes of the shape that a run has."""
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    top = subprocess.Popen([sys.executable, "-c", _LAUNCHER], env=environment)
    end = time.monotonic() + 30.0
    while len(marked(str(tmp_path))) < 4 and time.monotonic() < end:
        time.sleep(0.02)
    yield top
    for one in marked(str(tmp_path)):
        with suppress(psutil.Error):
            one.kill()
    top.wait()


def test_who_is_who_below_a_launcher(launcher, tmp_path):
    chance = random.Random(0)
    (zygote,), (device,) = zygotes(launcher.pid), devices(launcher.pid)
    assert device.ppid() == zygote.pid
    assert len(marked(str(tmp_path))) == 4, "the child that proves the wall belongs to the run, and is neither"
    assert strike(launcher.pid, ("frozen-device", "zygote"), chance).pid == device.pid
    end = time.monotonic() + 20.0
    while device.status() != psutil.STATUS_STOPPED and time.monotonic() < end:
        time.sleep(0.01)  # a signal takes a moment on a busy host
    assert device.status() == psutil.STATUS_STOPPED
    struck = strike(launcher.pid, ("frozen-device", "zygote"), chance)
    assert (struck.kind, struck.pid) == ("zygote", zygote.pid), "what is frozen is not frozen again"
    assert strike(launcher.pid, ("launcher",), chance).pid == launcher.pid
    assert launcher.wait() == -signal.SIGKILL
    assert strike(launcher.pid, COLD, chance) is None


# -- what a run leaves -------------------------------------------------------------------------------------------------

_FEDGE = """\
import json, os, pathlib, subprocess, sys
runs = pathlib.Path(sys.argv[sys.argv.index("--runs") + 1])
folder = runs / "x"
folder.mkdir(parents=True)
(folder / "resolved.yaml").touch()
stage = dict.fromkeys(("stage", "method", "rounds", "metrics", "devices", "lost", "virtual_s"), 1)
stage |= dict.fromkeys(("bytes_up", "bytes_down", "energy_j"), 1)
{does}
print(json.dumps({{"status": "done", "model_sha256": "{sha}", "stages": [stage]}}))
"""


@pytest.fixture
def pretend(tmp_path, monkeypatch):
    """A program in fedge's place that says it is done."""

    def end(does="", sha="abc", like=None):
        package = tmp_path / "stand-in" / "fedge"
        package.mkdir(parents=True, exist_ok=True)
        (package / "__init__.py").touch()
        (package / "__main__.py").write_text(_FEDGE.format(does=does, sha=sha))
        monkeypatch.setattr(trials.fedge, "__file__", str(package / "__init__.py"))
        place = tmp_path / str(len(list(tmp_path.iterdir())))
        return Run("x.yaml", (), place).undergo((), random.Random(0), 60.0, like=like)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trials, "GRACE", 0.3)
    return end


def test_what_differs_or_is_left_is_told(pretend, tmp_path):
    calm = pretend()
    assert (calm.outcome, calm.detail) == ("same", "")
    other = pretend(sha="def", like=calm)
    assert (other.outcome, other.detail) == ("differs", "model_sha256 def")
    dearer = pretend("stage['bytes_up'] = 2", like=calm)
    assert (dearer.outcome, dearer.detail) == (
        "differs",
        "the same model, but stage 0 has bytes_up 2, not 1",
    )
    line = json.dumps({"stage_index": 0, "round": 1, "device": "a"}) + "\n"
    twice = pretend(f"(folder / 'metrics.jsonl').write_text({line * 2!r})", like=calm)
    assert (twice.outcome, twice.detail) == ("differs", "metrics.jsonl holds twice: (0, 1, 'a')")
    half = pretend("(folder / '.model-x').mkdir()", like=calm)
    assert (half.outcome, half.detail.endswith(".model-x")) == ("left", True)
    scratch = pretend("(pathlib.Path(os.environ['TMPDIR']) / 'fedge-run-x').mkdir()", like=calm)
    assert (scratch.outcome, scratch.detail.endswith("fedge-run-x")) == ("left", True)
    sleeper = "import time; time.sleep(600)"
    orphan = pretend(f"subprocess.Popen([sys.executable, '-c', {sleeper!r}], start_new_session=True)", like=calm)
    assert orphan.outcome == "left"
    assert "process " in orphan.detail
    assert not [one for one in psutil.process_iter() if sleeper in " ".join(_words(one))], "and it is ended"
    failed = pretend("sys.exit('fedge: no')")
    assert (failed.outcome, failed.detail) == ("failed", "exit code 1: fedge: no")


def _words(process):
    with suppress(psutil.Error):
        return process.cmdline()
    return []


def test_a_run_that_hangs_is_ended(pretend, monkeypatch):
    real = Run.undergo
    monkeypatch.setattr(Run, "undergo", lambda self, blows, chance, limit, **more: real(self, blows, chance, 1.0))
    hung = pretend("import time; time.sleep(600)")
    assert hung.outcome == "hung"
    assert hung.seconds < 30.0


def test_a_run_that_ends_on_a_full_disk_is_judged_by_its_words(tmp_path):
    one = Run("x.yaml", (), tmp_path / "x")
    log = tmp_path / "x" / "progress.log"
    one._said = 4
    for said, wrong in (
        ("fedge: runs/x/summary.json can't be written: No space left on device", ""),
        ("Traceback\nOSError: No space left", "a traceback: OSError: No space left"),
        ("fedge: it failed", "it said: fedge: it failed"),
        ("", "it said: "),
    ):
        log.write_text("old\n" + said)
        assert one._unclean() == wrong


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting takes root")
def test_a_disk_is_full_to_the_last_byte_and_keeps_what_it_had(tmp_path):
    try:
        disk = Disk(tmp_path / "runs")
    except FedgeError as error:
        pytest.skip(str(error))
    try:
        (tmp_path / "runs" / "kept").write_text("before")
        disk.fill()
        with pytest.raises(OSError, match="No space left"):
            (tmp_path / "runs" / "more").write_text("after")
        disk.clear()
        (tmp_path / "runs" / "more").write_text("after")
    finally:
        disk.close()
    assert not os.path.ismount(tmp_path / "runs")
    assert (tmp_path / "runs" / "kept").read_text() == "before"


# -- really ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_few_blows_change_nothing(tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("FEDGE_CACHE", str(tmp_path / "cache"))
    ledger = tmp_path / "chaos.jsonl"
    code = main(["--runs", "2", "--per-run", "3", "--ledger", str(ledger), "--json"])
    told = capfd.readouterr()
    found = json.loads(told.out)["figures"]
    assert code == 0, told.err
    assert found[0]["value"] == 100.0
    rows = [json.loads(line) for line in ledger.read_text().splitlines()]
    assert {row["outcome"] for row in rows[1:]} <= {"same", "lost"}
    assert sum(line["value"] for line in found if line["name"].startswith("struck")) >= 2


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_warm_launcher_is_fedge_and_its_orphans_are_found(tmp_path):
    warm = Warm()
    try:
        out, log = tmp_path / "out", tmp_path / "log"
        launcher = warm.start(["config", "no-such.yaml"], {"TMPDIR": str(tmp_path)}, out, log)
        assert launcher.wait() == 2
        assert log.read_text().startswith("fedge: no-such.yaml: no such file")
        words = ["up", str(trials.Path(trials.__file__).with_name("tiny.yaml")), "--runs", str(tmp_path / "runs")]
        launcher = warm.start(words, {"TMPDIR": str(tmp_path)}, out, log)
        while not devices(launcher.pid):
            assert launcher.poll() is None, log.read_text()
            time.sleep(0.01)
        assert len(warm.left()) >= 3
        launcher.kill()
        assert launcher.wait() == -signal.SIGKILL
        end = time.monotonic() + 20.0
        while warm.left() and time.monotonic() < end:
            time.sleep(0.05)
        assert warm.left() == []
    finally:
        warm.close()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_undisturbed_run_that_fails_is_told(tmp_path):
    with pytest.raises(Exception, match="undisturbed, the federation failed: exit code 2"):
        undisturbed("no-such.yaml", (), tmp_path / "x", 300.0, False)
