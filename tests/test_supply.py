"""Model folders and messages from others are data: nothing that fedge reads can run code, by every file's syntax."""

import ast
from pathlib import Path

import pytest

import fedge

ROOT = Path(fedge.__file__).parent
FILES = sorted([*ROOT.rglob("*.py"), *(ROOT.parent / "tools").rglob("*.py")])
#: Modules whose readers run what they read.
RUNS_CODE = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "_pickle"}


def wrong(tree):
    """Lines that could run what they read, each with why."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, a.name) for a in node.names if a.name.split(".")[0] in RUNS_CODE]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in RUNS_CODE:
            found.append((node.lineno, node.module))
        elif isinstance(node, ast.Call):
            found += [(node.lineno, why) for why in _calls(node)]
    return found


def _calls(node):
    name = ast.unparse(node.func)
    given = {keyword.arg: keyword.value for keyword in node.keywords}

    def says(argument, value):
        return argument in given and isinstance(given[argument], ast.Constant) and given[argument].value is value

    if name in ("eval", "exec"):
        yield name
    if name == "torch.load" and not says("weights_only", True):
        yield "torch.load without weights_only"
    if name in ("np.load", "numpy.load") and "allow_pickle" in given and not says("allow_pickle", False):
        yield "np.load of pickles"
    if name in ("yaml.load", "yaml.load_all") and not any(
        "Safe" in ast.unparse(v) for v in [*node.args[1:], *given.values()]
    ):
        yield f"{name} without a safe loader"
    if says("trust_remote_code", True) or says("use_safetensors", False):
        yield "code or pickles of the Hub, unasked"


def test_what_is_looked_for_is_found():
    bad = """
import pickle
from joblib import load
torch.load(path)
np.load(path, allow_pickle=True)
yaml.load(text)
AutoModel.from_pretrained(name, trust_remote_code=True)
eval(text)
"""
    assert [line for line, _ in sorted(wrong(ast.parse(bad)))] == [2, 3, 4, 5, 6, 7, 8]
    good = "torch.load(p, weights_only=True)\nnp.load(p)\nyaml.load(t, Loader=MySafeLoader)\nmodel.eval()"
    assert not wrong(ast.parse(good))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT.parent).as_posix())
def test_nothing_that_is_read_can_run(path):
    assert not wrong(ast.parse(path.read_text()))


def test_the_hub_s_code_is_off_unless_asked():
    from fedge.spec.federation import ModelSpec

    assert ModelSpec.model_fields["trust_remote_code"].default is False
