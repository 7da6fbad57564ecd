"""Whatever stands in the file, the answer is a federation or a ConfigError whose every line says something."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedge.errors import ConfigError
from fedge.spec import load_federation, resolved

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


@pytest.mark.parametrize("depth", [200, 3000])
def test_deep_nesting(depth, catalogue, tmp_path):
    file = tmp_path / "federation.yaml"
    file.write_text("a: " + "[" * depth + "]" * depth)
    with pytest.raises(ConfigError):
        load_federation(file, catalogue=catalogue)
