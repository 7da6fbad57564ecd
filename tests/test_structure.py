"""Habits that keep sixty methods readable, read from the syntax of every file."""

import ast
import io
import tokenize
from pathlib import Path

import pytest

import fedge
from fedge.methods.table import ALIASES, BUILT

ROOT = Path(fedge.__file__).parent
#: Lines of code of a method, its card and its texts apart, beyond which its docstring says why it is long.
LONG = 120
#: Who else may ask for gradients, and why.
GRADIENTS = {
    "core/fit.py",
    "testing/rounds.py",  # plain training, written out, beside which the kit holds methods
    "audit/inversion.py",  # an attack follows the gradient of a gradient, which no training needs
}
#: Words that are a method's key and something else too: a server optimizer, the key of a run's stages, a file.
OTHERWISE = {"fedavg", "stages", "head", "local", "split"}
METHODS = sorted(
    p for room in ("train", "customize", "deploy", "combine") for p in (ROOT / "methods" / room).glob("*.py")
)
EVERY = sorted(ROOT.rglob("*.py"))


def name(path):
    return path.relative_to(ROOT).as_posix()


def code_lines(path):
    """Lines that hold code, without docstrings, comments and the card."""
    text = path.read_text()
    skipped = set()
    for node in ast.walk(ast.parse(text)):
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node)
        if documented:
            skipped |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == "card":
            skipped |= set(range(node.lineno, node.end_lineno + 1))
    silent = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    found = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in silent:
            found |= set(range(token.start[0], token.end[0] + 1))
    return len(found - skipped)


@pytest.mark.parametrize("path", METHODS, ids=name)
def test_a_long_method_says_why(path):
    if code_lines(path) > LONG:
        said = ast.get_docstring(ast.parse(path.read_text())) or ""
        assert "longer" in said.lower(), f"{name(path)} has {code_lines(path)} lines: split it, or say why it is longer"


@pytest.mark.parametrize("path", EVERY, ids=name)
def test_gradients_are_taken_in_one_place(path):
    asked = [
        node.lineno
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and (node.attr == "backward" or (node.attr == "grad" and ast.unparse(node.value).endswith("autograd")))
    ]
    assert not asked or name(path) in GRADIENTS, f"{name(path)}, lines {asked}: use fedge.core.fit"


@pytest.mark.parametrize("path", [p for p in EVERY if name(p).split("/")[0] in ("core", "run", "wire")], ids=name)
def test_no_method_is_named_where_all_are_alike(path):
    keys = ({*BUILT, *ALIASES}) - OTHERWISE
    strings = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Constant)]
    assert not [(node.lineno, node.value) for node in strings if isinstance(node.value, str) and node.value in keys]
