"""Whatever stands in the file, the answer is a federation or a ConfigError whose every line says something."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedge.__main__ import run
from fedge.errors import ConfigError
from fedge.spec import load_federation, resolved
from fedge.spec.shipped import shipped

CASE = Path(__file__).with_name("cases") / "good-everything"
GOOD = (CASE / "federation.yaml").read_text()
WORDS = "null [] {} 0 -1 1e400 .nan *phone &x é [[ 512 true auto {a:b} !!set !!binary 2026-11-20 " + "1" * 50
ODD = st.sampled_from([*"'\"#~|>%@?[({&*:-\t\n ", "", "<<: ", "- ", ": ", "!!int x", "{a: b}", *WORDS.split()])


def problems(path, overrides, catalogue):
    try:
        resolved(load_federation(path, overrides, catalogue=catalogue))
    except ConfigError as error:
        return [*error.problems, *([] if error.problems else [None])]
    return []


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_file_with_a_piece_replaced(data, catalogue, tmp_path):
    text = GOOD
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(text)))
        text = text[:start] + data.draw(ODD) + text[start + data.draw(st.integers(0, 12)) :]
    file = tmp_path / "federation.yaml"
    file.write_text(text)
    assert all(problem.file and problem.message for problem in problems(file, (), catalogue))


PATHS = st.lists(
    st.sampled_from(
        ["stages", "0", "1", "train", "customize", "method", "candidates", "devices", "pi", "phone", "network"]
    )
    | st.sampled_from(
        ["data", "partition", "dirichlet", "model", "options", "server", "lr", "export", "seed", "name", ""]
    ),
    min_size=1,
    max_size=4,
).map(".".join)


@settings(max_examples=150, deadline=None)
@given(path=PATHS, value=ODD)
def test_any_override(path, value, catalogue):
    assert all(problem.file and problem.message for problem in problems(CASE, [f"{path}={value}"], catalogue))


def _mangled(lines, draw):
    """A slip of the hand: a line is lost, doubled, moved, indented otherwise, joined to the next, or cut."""
    at, other = draw(st.integers(0, len(lines) - 1)), draw(st.integers(0, len(lines) - 1))
    line = lines[at]
    slip = draw(st.integers(0, 7))
    cut = draw(st.integers(0, len(line)))
    changed = {
        0: [],
        1: [line, line],
        2: [lines[other]],
        3: ["  " + line],
        4: [line[1:] if line.startswith(" ") else line.lstrip("- ")],
        5: [line + (lines[at + 1] if at + 1 < len(lines) else "")],
        6: [line[:cut], line[cut:]],
        7: [line.replace(draw(st.sampled_from([":", ",", "{", "}", "-", " ", "e", "0"])), draw(ODD), 1)],
    }
    return lines[:at] + changed[slip] + lines[at + 1 :]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_file_with_lines_mangled(data, catalogue, tmp_path):
    lines = GOOD.splitlines()
    for _ in range(data.draw(st.integers(1, 4))):
        lines = _mangled(lines, data.draw) or [""]
    file = tmp_path / "federation.yaml"
    file.write_text("\n".join(lines), newline=data.draw(st.sampled_from(["\n", "\r\n", "\r"])))
    found = problems(file, (), catalogue)
    assert all(problem.file and problem.message for problem in found)
    assert all(problem.line is not None for problem in found), "every mistake of a file that is text has a line"


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_file_with_bytes_changed(data, catalogue, tmp_path):
    raw = bytearray((CASE / "federation.yaml").read_bytes())
    for _ in range(data.draw(st.integers(1, 5))):
        start = data.draw(st.integers(0, len(raw)))
        raw[start : start + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    file = tmp_path / "federation.yaml"
    file.write_bytes(raw)
    assert all(problem.file and problem.message for problem in problems(file, (), catalogue))


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_profile_with_lines_mangled(data, catalogue, tmp_path):
    lines = (CASE / "mine.yaml").read_text().splitlines()
    for _ in range(data.draw(st.integers(1, 3))):
        lines = _mangled(lines, data.draw) or [""]
    (tmp_path / "mine.yaml").write_text("\n".join(lines))
    file = tmp_path / "federation.yaml"
    file.write_text((CASE.with_name("broken-profile") / "federation.yaml").read_text())
    assert all(problem.file and problem.message for problem in problems(file, (), catalogue))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_the_command_says_no_more_than_lines(data, tmp_path, capsys):
    lines = (shipped("federations") / "quickstart.yaml").read_text().splitlines()
    for _ in range(data.draw(st.integers(1, 3))):
        lines = _mangled(lines, data.draw) or [""]
    file = tmp_path / "federation.yaml"
    file.write_text("\n".join(lines))
    code = run(["config", str(file)])
    out, err = capsys.readouterr()
    assert code in (0, 2)
    assert bool(out) == (code == 0)
    assert all(line.startswith("fedge: ") for line in err.splitlines())
    assert "not foreseen" not in err


@pytest.mark.parametrize(("before", "opened", "closed"), [("a: ", "[", "]"), ("a: ", "{a: ", "}"), ("", "- ", "")])
@pytest.mark.parametrize("depth", [120, 1000, 200_000])
def test_deep_nesting(before, opened, closed, depth, catalogue, tmp_path):
    file = tmp_path / "federation.yaml"
    file.write_text(before + opened * depth + "1" + closed * depth)
    with pytest.raises(ConfigError, match="nested more than 100 deep"):
        load_federation(file, catalogue=catalogue)


def test_what_is_far_too_large_is_not_read(catalogue, tmp_path):
    file = tmp_path / "federation.yaml"
    with file.open("wb") as out:
        out.truncate(1 << 40)
    for path in (file, Path("/dev/zero")):
        with pytest.raises(ConfigError, match="is larger than 4 MiB; a federation is a page of text"):
            load_federation(path, catalogue=catalogue)
