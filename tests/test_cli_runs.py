"""The verbs for runs on the command line, completion, and that every help's examples can be typed as they stand."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from fedge import __main__ as command
from fedge.cli import app, usage_error

GROUP = typer.main.get_command(app)
ROOT = Path(command.__file__).parent.parent


def killed(folder):
    (folder / "devices").mkdir(parents=True)
    (folder / "checkpoints").mkdir()
    (folder / "resolved.yaml").touch()
    (folder / "summary.json").write_text(json.dumps({"status": "running"}))
    left = {"pid": 1 << 22, "started": 1, "scratch": str(folder / "none"), "groups": None}
    (folder / "launcher.json").write_text(json.dumps(left))
    (folder / "launcher.log").write_text("one\ntwo\n")
    return folder


# -- help --------------------------------------------------------------------------------------------------------------


def examples(verb):
    """The commands of ``fedge`` in the examples of a verb's help, as lists of words."""
    text = " ".join((GROUP.commands[verb].help or "").split())
    found = []
    for part in re.split(r"Example: ", text)[1:]:
        for piece in re.split(r" && | \| | > \S+", part):
            words = shlex.split(piece)
            if words[:1] == ["fedge"]:
                found.append(words[1:])
    return found


@pytest.mark.parametrize("verb", sorted(GROUP.commands))
def test_the_examples_of_every_help_can_be_typed(verb):
    found = examples(verb)
    assert found, f"fedge {verb} --help has no example"
    assert found[0][0] == verb
    for first, *rest in found:
        try:
            GROUP.commands[first].make_context(first, list(rest))
        except usage_error as error:
            pytest.fail(f"fedge {first} {' '.join(rest)}: {error.format_message()}")


@pytest.mark.parametrize("verb", sorted(GROUP.commands))
def test_an_example_stands_on_lines_of_its_own(verb, fedge):
    code, out, _ = fedge(verb, "--help")
    assert code == 0
    assert re.search(r"^\s+Example: fedge", out, re.MULTILINE)
    assert "--told-to" not in out


# -- runs --------------------------------------------------------------------------------------------------------------


def test_ps_shows_what_needs_a_look(fedge, tmp_path):
    assert fedge("ps") == (0, "no runs\n", "")
    killed(tmp_path / "runs" / "20260101-000000-clinic")
    code, out, _ = fedge("ps", "--json")
    (row,) = json.loads(out)["ps"]
    assert (code, row["status"], row["run"], row["pid"]) == (0, "killed", "runs/20260101-000000-clinic", None)
    code, out, err = fedge("down", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == {"down": [{"run": row["run"], "how": "cleared", "status": "interrupted"}]}
    assert fedge("ps")[1] == "no runs\n"
    assert "interrupted" in fedge("ps", "-a")[1]
    assert fedge("down", "20260101-000000-clinic")[:2] == (0, f"{row['run']}: interrupted already\n")


def test_logs_print_whose_line_it_is(fedge, tmp_path):
    killed(tmp_path / "runs" / "20260101-000000-clinic")
    assert fedge("logs") == (0, "launcher | one\nlauncher | two\n", "")
    assert fedge("logs", "-f", "-n", 1, "20260101-000000-clinic") == (0, "launcher | two\n", "")
    code, _, err = fedge("logs", "--device", "lancher")
    assert (code, "did you mean 'launcher'?" in err) == (2, True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["stats"], "there is no run under way in runs (fedge ps --all lists what is there)"),
        (["down"], "there is no run under way in runs"),
        (["logs"], "there is no run in runs"),
        (["logs", "nowhere"], "nowhere is not a run's folder, nor the name of one in runs"),
        (["down", "x", "--all"], "give a run, or --all"),
        (["up", "x", "--progress", "fancy"], "'fancy' is none of auto, plain, live"),
        (["up", "-d"], "give a federation, or --resume RUN"),
        (["up", "-d", "no-such.yaml"], "no-such.yaml: no such file"),
    ],
)
def test_a_wrong_command_line_is_a_line_and_code_2(fedge, words, said):
    code, out, err = fedge(*words)
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1


def test_stats_of_a_run_that_is_over_is_code_1(fedge, tmp_path):
    killed(tmp_path / "runs" / "x")
    assert fedge("stats", "x") == (1, "", "fedge: runs/x is not under way: killed (fedge ps lists those that are)\n")


# -- completion --------------------------------------------------------------------------------------------------------


def completed(line, cwd):
    """What bash is offered for a line whose last word is being typed."""
    words = line.split(" ")
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "_FEDGE_COMPLETE": "complete_bash",
        "COMP_WORDS": "\n".join(words),
        "COMP_CWORD": str(len(words) - 1),
    }
    program = "import sys\nfrom fedge.__main__ import main\ntry: main([])\nfinally: assert 'torch' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=cwd, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.stderr == ""
    return done.stdout.split()


def test_a_tab_offers_what_there_is(tmp_path):
    devices = "devices:\n  pi: {profile: pi-4b-4g, count: 2}\n"
    federation = f"model: vit-nano\ndata: digits\n{devices}stages:\n  - train: {{method: fedavg, rounds: 1}}\n"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "federation.yaml").write_text(federation)
    (tmp_path / "mine" / "device.yaml").write_text("memory: 1MiB\n")
    killed(tmp_path / "runs" / "20260101-000000-clinic")
    assert completed("fedge up ", tmp_path) == ["mine/federation.yaml"]
    assert completed("fedge down ", tmp_path) == ["runs/20260101-000000-clinic"]
    assert completed("fedge logs --device ", tmp_path) == ["launcher"]
    assert completed("fedge plan mine --device pi-", tmp_path) == ["pi-00", "pi-01"]
    assert completed("fedge plan nowhere --device pi-", tmp_path) == []
    assert "lora" in completed("fedge methods lo", tmp_path)
    assert completed("fedge devices pi-4", tmp_path) == ["pi-4b-4g"]
    assert completed("fedge up --progress l", tmp_path) == ["live"]
    assert {"ps", "plan", "profile"} <= set(completed("fedge p", tmp_path))


HEAVY = ("torch", "transformers", "numpy", "peft", "zmq", "sklearn", "rich", "onnx")


@pytest.mark.parametrize("words", [["ps", "--all"], ["logs", "x"], ["down", "x"]])
def test_nothing_heavy_is_imported_to_look_at_runs(words, tmp_path):
    killed(tmp_path / "runs" / "x")
    program = (
        "import sys\nfrom fedge.__main__ import run\n"
        f"code = run({words!r})\n"
        f"print(code, [name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.stderr == "0 []\n"
