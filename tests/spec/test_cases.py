"""Every folder of ``cases`` holds a federation and what comes of it.

``expected.txt`` holds the exact lines of the errors, ``resolved.yaml`` the federation with every default filled in;
``set.txt`` an override a line. Paths are written as if the folder were the current one.
To write them anew: ``UPDATE_CASES=1 pytest tests/spec/test_cases.py``; then read the difference.
"""

import os
import re
from pathlib import Path

import pytest

from fedge.errors import ConfigError
from fedge.spec import load_federation, resolved

CASES = sorted(path for path in Path(__file__).with_name("cases").iterdir() if path.is_dir())


def _overrides(case):
    file = case / "set.txt"
    return file.read_text().splitlines() if file.exists() else []


def _outcome(case, catalogue):
    try:
        spec = load_federation(case / "federation.yaml", _overrides(case), catalogue=catalogue)
    except ConfigError as error:
        return "expected.txt", "\n".join(str(problem) for problem in error.problems) + "\n"
    return "resolved.yaml", resolved(spec)


def _unwrapped(text):
    """Without the breaks in long lines: where they fall depends on how long the absolute path of this folder is."""
    return re.sub(r",\n +", ", ", text)


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.name)
def test_case(case, catalogue):
    name, text = _outcome(case, catalogue)
    text = text.replace(f"{case.resolve()}/", "").replace(f"{case}/", "")
    if os.environ.get("UPDATE_CASES"):
        (case / name).write_text(text)
    assert _unwrapped((case / name).read_text()) == _unwrapped(text)
    assert (name == "resolved.yaml") == case.name.startswith("good-")


@pytest.mark.parametrize("case", [case for case in CASES if case.name.startswith("good-")], ids=lambda path: path.name)
def test_resolved_reads_back_equal(case, catalogue, tmp_path):
    spec = load_federation(case, _overrides(case), catalogue=catalogue)
    file = tmp_path / "elsewhere.yaml"
    file.write_text(resolved(spec))
    again = load_federation(file, catalogue=catalogue)
    assert again == spec
    assert resolved(again) == resolved(spec)


def test_there_are_enough_cases():
    assert len([case for case in CASES if case.name.startswith("good-")]) >= 5
    assert len([case for case in CASES if not case.name.startswith("good-")]) >= 120
    expected = [(case / "expected.txt").read_text() for case in CASES if (case / "expected.txt").exists()]
    assert len(set(expected)) == len(expected) - 1, "only an empty file and one of comments may read alike"
