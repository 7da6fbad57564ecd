"""Profiles, links, schema and catalogue as they come with fedge."""

import json

import pytest

from fedge.errors import ConfigError
from fedge.spec.catalogue import OptionInfo, load
from fedge.spec.device import bundled_profiles, load_links, load_profile
from fedge.spec.federation import load_federation
from fedge.spec.schema import json_schema
from fedge.spec.shipped import names, shipped

NEEDED = [
    "pi-zero-2w",
    "pi-3b-plus",
    "pi-4b-4g",
    "pi-5-8g",
    "jetson-nano-4g",
    "jetson-orin-nano-8g",
    "android-low-3g",
    "android-mid-6g",
    "pixel-6",
    "galaxy-s22",
    "iphone-12",
    "laptop-m1-8g",
    "laptop-i5-ultrabook",
    "nuc-n100-16g",
    "edge-server-t4",
]


def test_every_profile_is_whole():
    profiles = bundled_profiles()
    assert set(NEEDED) < set(profiles)
    assert len(profiles) >= 24
    for name, profile in profiles.items():
        assert profile.name == name
        assert profile.memory <= profile.memory_total
        assert profile.power.idle <= profile.power.active
        assert {"memory", "compute", "memory_bandwidth", "power"} <= set(profile.basis), name
        assert (profile.accelerator is None) == ("accelerator" not in profile.basis), name
        # what claims to be measured or specified by a third party says where it was read
        for figure, basis in profile.basis.items():
            if basis.startswith("M"):
                assert profile.sources.get(figure), f"{name}: {figure}"
    assert [name for name, profile in profiles.items() if profile.refused] == ["mcu-m7"]


@pytest.mark.parametrize("name", names("federations"))
def test_a_federation_says_what_it_shows(name):
    path = shipped("federations") / f"{name}.yaml"
    comment = path.read_text().partition("\nname: ")[0].splitlines()
    assert all(line.startswith("# ") for line in comment)
    assert any(line.startswith("# It shows: ") for line in comment)
    assert load_federation(path).name == name


def test_links():
    links = load_links()
    assert len(links) == 15
    assert links["wifi4"].down == 30e6
    assert links["ethernet1000"].jitter == 5e-5
    assert all(link.basis for link in links.values())


def test_a_profile_of_one_s_own_names_a_known_link(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        "name: mine\nabout: mine\nmemory: 1GiB\ncompute: 4 GFLOP/s\nmemory_bandwidth: 1 GB/s\nnetwork: wify\n"
        "power: {idle: 1W, active: 2W}\n"
    )
    with pytest.raises(ConfigError, match=r"mine\.yaml:6:10: network: no link class 'wify' \(did you mean"):
        load_profile(file)


@pytest.mark.parametrize("kind", ["federation", "device", "links"])
def test_schema_is_json_and_every_reference_leads_somewhere(kind):
    schema = json.loads(json.dumps(json_schema(kind), allow_nan=False))

    def references(part):
        if isinstance(part, dict):
            if "$ref" in part:
                yield part["$ref"]
            for value in part.values():
                yield from references(value)
        elif isinstance(part, list):
            for value in part:
                yield from references(value)

    for reference in references(schema):
        assert reference.removeprefix("#/definitions/") in schema["definitions"]


def test_schema_knows_profiles_links_and_methods(catalogue):
    schema = json_schema(catalogue=catalogue)
    group = schema["definitions"]["Group"]["properties"]
    assert "pi-4b-4g" in group["profile"]["anyOf"][0]["enum"]
    assert "mcu-m7" not in group["profile"]["anyOf"][0]["enum"]
    assert "lte-weak" in group["network"]["anyOf"][0]["enum"]
    customize = schema["properties"]["stages"]["items"]["anyOf"][1]["properties"]["customize"]
    assert customize["properties"]["method"]["anyOf"][0]["enum"] == ["auto", "fedavg", "head", "lora", "zhang2024a"]
    lora = customize["allOf"][3]
    assert lora["if"]["properties"]["method"]["enum"] == ["lora", "zhang2024a"]
    assert lora["then"]["properties"]["rank"] == {
        "type": "integer",
        "description": "rank of the adapters",
        "default": 8,
    }
    for name in ("name", "model", "data", "devices", "stages"):
        assert schema["properties"][name]["description"]


def test_the_survey_s_rows_are_all_in_the_catalogue():
    known = load()
    cited = [info for info in known.methods if info.citation]
    assert sum(len(info.citation.split("; ")) for info in cited) == 48
    assert len({info.key for info in known.methods}) == len(known.methods)


@pytest.mark.parametrize(
    ("kind", "given", "value"),
    [
        ("int", 3, 3),
        ("float", 3, 3.0),
        ("list[int]", [1, 2], (1, 2)),
        ("list[str] | None", None, None),
        ("bool", True, True),
    ],
)
def test_options_are_read(kind, given, value):
    assert OptionInfo(kind).read(given) == value


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        ("int", True),
        ("int", 2.0),
        ("int", None),
        ("float", "3"),
        ("float", float("nan")),
        ("list[int]", 3),
        ("list[int]", ["a"]),
    ],
)
def test_options_are_refused(kind, given):
    with pytest.raises(ValueError, match="expected"):
        OptionInfo(kind).read(given)
