"""A method that another package brings, from its entry point to the kit. It is the one that CONTRIBUTING.md shows."""

import importlib
import json
import re
import sys
from pathlib import Path

import pytest

from fedge.errors import ConfigError
from fedge.methods.make import make
from fedge.report.listings import method_card, methods_table
from fedge.spec import catalogue as catalogues
from fedge.spec import load_federation
from fedge.testing import PROPERTIES, check_method

PAGE = Path(__file__).parents[2] / "CONTRIBUTING.md"
FEDERATION = """
name: own
model: vit-nano
data: digits
devices: {pi: {profile: pi-4b-4g, count: 2}}
stages:
  - customize: {method: %s, %s rounds: 1}
"""


def written() -> str:
    """The method that CONTRIBUTING.md shows."""
    return re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[1]


def install(folder: Path, name: str, points: dict[str, str], version: str = "1.0") -> None:
    about = folder / f"{name}-{version}.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = [f"{key} = {value}" for key, value in points.items()]
    (about / "entry_points.txt").write_text("\n".join(["[fedge.methods]", *lines, ""]))


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder of packages on the path, with an empty cache."""
    monkeypatch.setenv("FEDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "own_layer_norm.py").write_text(written())
    catalogues.load.cache_clear()
    yield tmp_path / "site"
    catalogues.load.cache_clear()
    sys.modules.pop("own_layer_norm", None)


def federation(folder, method, more=""):
    path = folder / "federation.yaml"
    path.write_text(FEDERATION % (method, more))
    return load_federation(path)


def test_the_method_of_the_page_has_forty_lines_at_most():
    assert len(written().splitlines()) <= 40


@pytest.mark.slow
def test_it_is_known_checked_and_made_by_its_name(site, tmp_path, monkeypatch):
    install(site, "own-package", {"layer_norm": "own_layer_norm:LayerNormTuning"})
    info = catalogues.load().find("layer_norm")
    assert (info.built, info.package, info.stages) == (True, "own-package", ("customize",))
    assert "own_layer_norm" not in sys.modules, "describing a method imports nothing here"
    (row,) = [row for row in methods_table()[0]["methods"] if row["key"] == "layer_norm"]
    assert row["package"] == "own-package"
    assert method_card("layer_norm")[0]["methods"][0]["tasks"]
    (stage,) = federation(tmp_path, "layer_norm", "lr: 0.5,").stages
    assert stage.options["lr"] == 0.5
    with pytest.raises(ConfigError, match="did you mean 'layer_norm'"):
        federation(tmp_path, "layernorm")
    with pytest.raises(ConfigError, match="expected a number"):
        federation(tmp_path, "layer_norm", "lr: fast,")
    method = make("layer_norm", {"lr": 0.5})
    assert method.lr == 0.5
    # a second process finds the description and starts none of its own
    monkeypatch.setattr("fedge.spec.installed.subprocess.run", lambda *given, **named: pytest.fail("described again"))
    catalogues.load.cache_clear()
    assert catalogues.load().find("layer_norm").fields["lr"].default == 1e-3


@pytest.mark.slow
def test_it_runs_through_the_kit(site):
    install(site, "own-package", {"layer_norm": "own_layer_norm:LayerNormTuning"})
    names = [name for name in PROPERTIES if name not in ("bytes", "export")]
    importlib.invalidate_caches()
    assert len(check_method("layer_norm", settings=["image"], properties=names)) == len(names)


@pytest.mark.slow
def test_what_can_not_be_used_is_listed_with_the_reason(site, tmp_path):
    (site / "own_broken.py").write_text("import no_such_package\n")
    (site / "own_other.py").write_text("class NoMethod: ...\n")
    install(site, "first", {"lora": "own_layer_norm:LayerNormTuning", "twice": "own_layer_norm:LayerNormTuning"})
    points = {"broken": "own_broken:Method", "none": "own_other:NoMethod", "twice": "own_other:NoMethod"}
    install(site, "second", points)
    rows = {row["key"]: row for row in methods_table()[0]["methods"] if row["refused"]}
    assert {key: row["refused"] for key, row in rows.items()} == {
        "broken": "own_broken:Method can't be imported: ModuleNotFoundError: No module named 'no_such_package'",
        "none": "own_other:NoMethod is no fedge method: a frozen dataclass that derives from fedge.core.method.Method",
        "twice": "registered by first and second",
        "first/lora": "fedge has a method of this name; register it under another",
    }
    assert catalogues.load().find("lora").package is None
    with pytest.raises(ConfigError) as caught:
        federation(tmp_path, "broken")
    (problem,) = caught.value.problems
    assert problem.line == 7
    assert "'broken' of the package second can't be used: own_broken:Method can't be imported" in problem.message
    with pytest.raises(ConfigError, match="'twice' is not built"):
        make("twice")
    assert json.loads(json.dumps(methods_table()[0]))
