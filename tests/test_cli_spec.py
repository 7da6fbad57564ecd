"""The commands that only read: what they print, how they end, and that they don't import torch."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fedge import __main__ as command
from fedge.errors import InfeasibleError

CASES = Path(__file__).parent / "spec" / "cases"
QUICK = (
    "seed: 3\nmodel: vit-nano\ndata: digits\ndevices:\n  pi: {profile: pi-4b-4g, count: 2}\n"
    "stages:\n  - customize: {method: 'mine:Own', rounds: 2}\n"
)


@pytest.fixture
def quick(tmp_path):
    (tmp_path / "federation.yaml").write_text(QUICK)
    return tmp_path


@pytest.fixture
def fedge(capsys):
    def call(*words):
        with pytest.raises(SystemExit) as ended:
            command.main([str(word) for word in words])
        out, err = capsys.readouterr()
        return ended.value.code, out, err

    return call


def test_config_prints_what_config_reads(fedge, quick):
    code, out, err = fedge("config", quick, "--set", "seed=4", "--set", "stages.customize.rounds=5")
    assert (code, err) == (0, "")
    assert "seed: 4" in out
    (quick / "again.yaml").write_text(out)
    assert fedge("config", quick / "again.yaml")[1] == out


def test_config_as_json(fedge, quick):
    code, out, _ = fedge("config", quick, "--json")
    document = json.loads(out)
    assert code == 0
    assert document["devices"]["pi"]["memory"] == "3700MiB"


def test_mistakes_are_a_line_each_and_code_2(fedge):
    code, out, err = fedge("config", CASES / "unknown-keys")
    assert (code, out) == (2, "")
    lines = err.splitlines()
    assert len(lines) > 3
    assert all(line.startswith("fedge: ") for line in lines)
    assert lines[0].endswith("federation.yaml:1:6: sed: unknown key (did you mean 'seed'?)")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["conifg", "x"], "No such command 'conifg'"),
        (["config"], "Missing argument"),
        (["config", "x", "--sett", "a=1"], "No such option: --sett"),
        (["methods", "--stage", "trian"], "'trian' is none of train, customize, deploy"),
        (["methods", "no-such"], "no method 'no-such'"),
        (["schema", "fleet"], "'fleet' is none of federation, device"),
        (["config", "/no/such.yaml"], "/no/such.yaml: no such file"),
    ],
)
def test_a_wrong_command_line_is_code_2(fedge, words, said):
    code, out, err = fedge(*words)
    assert (code, out) == (2, "")
    assert said in err
    assert err.startswith("fedge: ")
    assert err.count("\n") == 1


def test_version(fedge):
    code, out, _ = fedge("--version")
    assert code == 0
    assert out.startswith("fedge ")


def test_methods(fedge):
    code, out, _ = fedge("methods", "--stage", "deploy", "--json")
    rows = json.loads(out)["methods"]
    assert code == 0
    assert all("deploy" in row["stage"] for row in rows)
    assert "liu2022" in {name for row in rows for name in (row["key"], *row["aliases"].split(", "))}
    code, out, _ = fedge("methods")
    assert "deng2023" in out, "a method of the survey that is not built is listed by its citation"
    assert "HetLoRA" in fedge("methods", "cho2023")[1], "one that is built is found by its citation too"


def test_devices(fedge):
    code, out, _ = fedge("devices", "--json")
    document = json.loads(out)
    assert code == 0
    assert {row["name"]: row["memory"] for row in document["devices"]}["pi-zero-2w"] == 340 * 2**20
    assert len(document["links"]) == 15
    assert "too small" in fedge("devices")[1]


def test_a_device_says_how_each_figure_is_known(fedge):
    code, out, _ = fedge("devices", "jetson-orin-nano-8g", "--json")
    assert code == 0
    [found] = json.loads(out)["devices"]
    figures = {row["figure"]: row for row in found["figures"]}
    assert figures["memory"]["value"] == "6.84 GiB"
    assert figures["power"]["basis"] == "specification"
    assert "tinymembench" in fedge("devices", "pi-4b-4g")[1]
    for row in figures.values():
        assert row["basis"] in ("measured", "specification", "derived", "estimate")
        assert row["basis"] != "measured" or row["sources"]
    shown = fedge("devices", "jetson-orin-nano-8g")[1]
    assert all(place in shown for row in figures.values() for place in row["sources"])


def test_a_link_class_and_a_file_can_be_shown_too(fedge, tmp_path):
    assert "837 ms" in fedge("devices", "nbiot")[1]
    assert json.loads(fedge("devices", "nbiot", "--json")[1])["links"][0]["up"] == "60 kbit/s"
    file = tmp_path / "mine.yaml"
    file.write_text(
        "name: mine\nabout: my board\nmemory: 1GiB\ncompute: 4 GFLOP/s\nmemory_bandwidth: 1 GB/s\nnetwork: wifi4\n"
        "power: {idle: 1W, active: 2W}\n"
    )
    shown = fedge("devices", str(file))[1]
    assert "my board" in shown
    assert "not said" in shown
    code, _, err = fedge("devices", "pi-4b")
    assert code == 2
    assert "did you mean 'pi-4b-4g'" in err


def test_schema(fedge):
    assert json.loads(fedge("schema")[1])["title"] == "fedge federation"
    assert json.loads(fedge("schema", "device")[1])["title"] == "fedge device profile"


def test_init_writes_once(fedge, tmp_path):
    code, out, _ = fedge("init", tmp_path / "mine")
    file = tmp_path / "mine" / "federation.yaml"
    assert (code, out.strip()) == (0, str(file))
    file.write_text("mine")
    code, _, err = fedge("init", tmp_path / "mine")
    assert code == 2
    assert "is there already" in err
    assert file.read_text() == "mine"
    assert fedge("init", tmp_path / "mine", "--force")[0] == 0
    assert file.read_text() != "mine"
    assert fedge("init", tmp_path / "other.yaml")[1].strip() == str(tmp_path / "other.yaml")
    assert list(tmp_path.glob("**/.*")) == []


def test_every_help_has_an_example(fedge):
    from fedge.cli import app

    for verb in [registered.name or registered.callback.__name__ for registered in app.registered_commands]:
        code, out, _ = fedge(verb, "--help")
        assert code == 0
        assert f"fedge {verb}" in out.partition("Example")[2], verb


def _raise(error):
    def raising(*_, **__):
        raise error

    return raising


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (InfeasibleError("nobody can afford it", hint="add memory"), 3, "fedge: nobody can afford it (add memory)\n"),
        (KeyboardInterrupt(), 130, "fedge: interrupted\n"),
        (ZeroDivisionError("by zero"), 1, "fedge: ZeroDivisionError: by zero (not foreseen; --debug shows where)\n"),
    ],
)
def test_every_error_ends_with_its_code(fedge, monkeypatch, error, code, said):
    monkeypatch.setattr("fedge.spec.load_federation", _raise(error))
    assert fedge("config", "x") == (code, "", said)


def test_debug_shows_the_traceback_wherever_it_stands(fedge, monkeypatch):
    monkeypatch.setattr("fedge.spec.load_federation", _raise(InfeasibleError("no")))
    for words in (["--debug", "config", "x"], ["config", "x", "--debug"]):
        code, _, err = fedge(*words)
        assert code == 3
        assert "Traceback" in err
        assert err.endswith("fedge: no\n")


def test_a_reader_that_goes_away_is_no_error_message(quick):
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "fedge", "methods"], stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60
    )
    os.close(writer)
    assert done.stderr == ""


HEAVY = ("torch", "transformers", "numpy", "peft", "zmq", "sklearn", "rich", "onnx")


@pytest.mark.parametrize("words", [["config", "."], ["methods"], ["devices"], ["schema"], ["--version"]])
def test_nothing_heavy_is_imported(quick, words):
    program = (
        "import sys\nfrom fedge.__main__ import run\n"
        f"code = run({words!r})\n"
        f"print(code, [name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    root = str(Path(command.__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=quick,
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr == "0 []\n"


def test_tables_fit_a_terminal(monkeypatch):
    import io

    from fedge.report.tables import table

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    rows = [{"name": "a [very] long name " * 6, "memory": 3, "share": 0.123456, "ok": True, "lost": None}]
    screen, pipe = Terminal(), io.StringIO()
    monkeypatch.setenv("COLUMNS", "80")
    table(rows, ["name", "memory", "share", "ok", "lost"], "title", file=screen)
    lines = re.sub(r"\x1b\[[0-9;]*m", "", screen.getvalue()).splitlines()
    assert max(len(line) for line in lines) <= 80
    assert "[very]" in screen.getvalue()
    table(rows, {"name": "who", "share": "share"}, file=pipe)
    assert pipe.getvalue().splitlines()[0].split() == ["who", "share"]
    assert pipe.getvalue().splitlines()[1].endswith("0.1235")
