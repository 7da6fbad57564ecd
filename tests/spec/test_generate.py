"""The catalogue is written from the methods themselves and is never out of date."""

import dataclasses
import sys
import types
from typing import ClassVar, Literal

import pytest

from fedge.methods import generate, table
from fedge.spec.catalogue import FILE, from_json

SURVEY = [
    {"key": "a2020", "name": "A", "citation": "A (2020)", "stage": "customize", "path": "customize/fine-tune/lora"}
    | {"complexity": 1, "efficiency": 2, "scalability": 3},
    {"key": "b2021", "name": "B", "citation": "B (2021)", "stage": "customize", "path": "customize/fine-tune/other"}
    | {"complexity": 1, "efficiency": 2, "scalability": 3},
    {"key": "c2022", "name": "C", "citation": "C (2022)", "stage": "deploy", "path": "deploy"}
    | {"complexity": 1, "efficiency": 1, "scalability": 1},
]


class _Card:
    name, summary, paper, path = "Own", "does it", "A 2020", "customize/fine-tune/lora (mine)"
    stages, leaves, deviations, tasks, alternatives = ("customize",), ("factors",), (), ("causal-lm",), ()
    stars, family, final = None, "tensors", "plain"
    roles, waives = ("delta",), ()


@pytest.fixture
def own():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Own:
        card: ClassVar = _Card
        rank: int = dataclasses.field(default=8, metadata={"doc": "rank of the factors"})
        lr: float = 1e-3
        targets: tuple[str, ...] | None = None
        layers: tuple[int, ...] = (1, 2)
        optimizer: Literal["adamw", "sgd"] = "adamw"
        needed: bool

    module = types.ModuleType("own_method")
    module.Own = Own
    sys.modules["own_method"] = module
    yield Own
    del sys.modules["own_method"]


@pytest.mark.usefixtures("own")
def test_a_method_s_fields_and_card_are_written():
    document = generate.catalogue({"own": "own_method:Own"}, {"a2020": "own"}, SURVEY)
    method = from_json(document).find("a2020")
    assert (method.key, method.built, method.stars, method.citation) == ("own", True, (1, 2, 3), "A (2020)")
    kinds = {name: (option.type, option.default) for name, option in method.fields.items()}
    assert kinds == {
        "rank": ("int", 8),
        "lr": ("float", 1e-3),
        "targets": ("list[str] | None", None),
        "layers": ("list[int]", (1, 2)),
        "optimizer": ("str", "adamw"),
        "needed": ("bool", None),
    }
    assert method.fields["optimizer"].choices == ("adamw", "sgd")
    assert method.fields["rank"].doc == "rank of the factors"
    assert method.fields["needed"].required
    assert [(info.key, info.nearest) for info in from_json(document).methods[1:]] == [("b2021", "own"), ("c2022", None)]


@pytest.mark.usefixtures("own")
def test_what_would_confuse_is_refused():
    with pytest.raises(ValueError, match="not built"):
        generate.catalogue({"own": "own_method:Own"}, {"a2020": "other"}, SURVEY)
    with pytest.raises(ValueError, match="a key itself"):
        generate.catalogue({"own": "own_method:Own"}, {"own": "own"}, SURVEY)


def test_a_field_that_yaml_has_no_value_for_is_refused(own):
    with pytest.raises(TypeError, match="YAML has no such value"):
        generate._type(dict[str, int], "Own.field")


def test_a_field_may_not_hide_a_key_of_the_stage(own):
    made = dataclasses.make_dataclass("Made", [("rounds", int, 3)], kw_only=True)
    made.card = _Card
    sys.modules["own_method"].Made = made
    with pytest.raises(ValueError, match="rounds are keys of every stage"):
        generate.catalogue({"made": "own_method:Made"}, {}, SURVEY)


def test_the_catalogue_is_up_to_date():
    assert FILE.read_text() == generate.text(generate.catalogue()), "run python -m fedge.methods.generate"


def test_every_survey_alias_is_in_the_survey_or_a_plain_word():
    assert all(key in table.BUILT for key in table.ALIASES.values())
