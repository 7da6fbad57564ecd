"""What the cases can't show: the values themselves, places, overrides from Python, folders."""

import contextlib
from pathlib import Path

import pytest

from fedge.errors import ConfigError
from fedge.spec import LinkSpec, PartitionSpec, load_federation, resolved
from fedge.spec.device import bundled_profiles, rates_with

CASES = Path(__file__).with_name("cases")
EVERYTHING = CASES / "good-everything"


@pytest.fixture(scope="module")
def everything(catalogue):
    return load_federation(EVERYTHING, catalogue=catalogue)


def test_devices_are_expanded_in_the_order_written(everything):
    names = [device.name for device in everything.devices]
    assert names[:7] == ["pi-00", "pi-01", "pi-02", "pi-03", "pi-04", "pi-05", "phone-00"]
    assert names[-2:] == ["box", "own"]
    assert len(names) == 18


def test_a_hundred_and_one_devices_get_three_digits(catalogue):
    spec = load_federation(CASES / "good-minimal", ["devices.pi.count=101"], catalogue=catalogue)
    assert [d.name for d in spec.devices][::100] == ["pi-000", "pi-100"]


def test_a_group_overrides_its_profile(everything):
    phone = next(device for device in everything.devices if device.group == "phone")
    assert (phone.memory, phone.availability, phone.profile) == (512 * 2**20, 0.8, "pixel-6")
    assert (phone.stack, phone.rates_basis) == ("pytorch", "class default")
    assert phone.flops == rates_with(bundled_profiles()["pixel-6"], "pytorch").flops
    assert phone.link == LinkSpec("lte-cat4", 30e6, 8e6, 0.05, 0.015, 0.005)
    own = everything.devices[-1]
    assert (own.flops, own.memory_bandwidth, own.memory) == (9e9, 1.5e9, 256 * 2**20)
    assert own.link == LinkSpec(None, 2e6, 5e5, 0.04, 0.0, 0.0)
    assert own.profile == str((EVERYTHING / "mine.yaml").resolve())


def test_a_device_pinned_to_a_gpu_has_its_profile_s_accelerator(everything):
    box = next(device for device in everything.devices if device.group == "box")
    rates = rates_with(bundled_profiles()["jetson-orin-nano-8g"], "pytorch-cuda")
    assert (box.pin, box.stack, box.flops, box.memory_bandwidth) == (
        "cuda:0",
        "pytorch-cuda",
        rates.flops,
        rates.memory_bandwidth,
    )

    assert (box.idle_power, box.active_power) == (5.0, 25.0)


def test_stages(everything):
    train, customize, deploy = everything.stages
    assert (train.stage, train.index, train.server.optimizer, train.server.lr) == ("train", 0, "fedadam", 0.01)
    assert train.options == {"lr": 0.01, "steps": 8}
    assert [name for name, _ in customize.methods()] == ["lora", "head", "fedavg"]
    options = dict(customize.candidates)
    assert options["lora"]["rank"] == 4
    assert options["lora"]["lr"] == 3e-3
    assert options["head"] == {"lr": 3e-3, "freeze_norm": True}
    assert options["fedavg"] == {"lr": 3e-3, "steps": 2}
    assert (customize.quorum, customize.deadline, customize.pick) == (0.8, 90.0, "richest")
    assert deploy.options == {"exits": (2, 4, 6)}
    assert deploy.export.precision == ("fp32",)
    assert train.export is None


def test_quorum_counts_devices():
    from fedge.spec import StageSpec

    assert StageSpec("train", 0, "fedavg").needed(8) == 1
    assert StageSpec("train", 0, "fedavg", quorum=0.8).needed(5) == 4
    assert StageSpec("train", 0, "fedavg", quorum=0.81).needed(5) == 5
    assert StageSpec("train", 0, "fedavg", quorum=3).needed(8) == 3
    assert StageSpec("train", 0, "fedavg", quorum=3).needed(2) == 2


def test_data(everything):
    assert everything.data.partition == PartitionSpec("by", "hospital")
    assert everything.data.dataset == str((EVERYTHING / "rows.csv").resolve())
    assert (everything.data.test, everything.data.local_test) == (0.2, 0.2)


def test_specs_are_frozen(everything):
    for value in (everything, everything.data, everything.devices[0], everything.stages[0]):
        with pytest.raises((AttributeError, ValueError)):
            value.name = "other"


def test_where_points_at_the_key(everything):
    place = everything.where("stages.1.method")
    assert (place["line"], place["column"]) == (24, 25)
    assert everything.where("stages.1.customize.method")["line"] == 24
    assert everything.where("stages.1.momentum")["line"] == 24
    problem = everything.problem("stages.0.lr", "too large", hint="try 1e-3")
    assert str(problem).endswith("good-everything/federation.yaml:23:75: stages.0.lr: too large (try 1e-3)")


def test_a_merged_key_is_placed_where_it_was_written(everything):
    assert everything.where("devices.phone.network")["line"] == 1


def test_an_override_is_its_own_place(catalogue):
    spec = load_federation(CASES / "good-minimal", ["stages.train.lr=0.5"], catalogue=catalogue)
    assert str(spec.problem("stages.0.lr", "too large")) == "--set stages.train.lr=0.5: stages.0.lr: too large"


def test_overrides_from_python(catalogue):
    values = {"seed": 5, "stages.train.lr": 0.5, "data": {"dataset": "digits", "public": 3}}
    spec = load_federation(CASES / "good-minimal", values, catalogue=catalogue)
    assert (spec.seed, spec.stages[0].options["lr"], spec.data.public) == (5, 0.5, 3)


def test_an_override_leaves_the_anchor_s_other_users_alone(catalogue, tmp_path):
    file = tmp_path / "federation.yaml"
    text = (CASES / "good-minimal" / "federation.yaml").read_text()
    file.write_text(text.replace("{profile: pi-4b-4g, count: 3}", "&p {profile: pi-4b-4g}\n  other: *p"))
    spec = load_federation(file, ["devices.pi.memory=1GiB"], catalogue=catalogue)
    assert [device.memory for device in spec.devices] == [2**30, 3700 * 2**20]


def test_a_folder_means_its_federation(catalogue, tmp_path):
    with pytest.raises(ConfigError, match=r"has no federation\.yaml"):
        load_federation(tmp_path, catalogue=catalogue)
    (tmp_path / "federation.yml").write_bytes((CASES / "good-minimal" / "federation.yaml").read_bytes())
    assert load_federation(tmp_path, catalogue=catalogue).name == "federation"


def test_a_path_that_does_not_exist(catalogue, tmp_path):
    (tmp_path / "clinic.yaml").write_text("")
    with pytest.raises(ConfigError, match=r"no such file \(did you mean 'clinic\.yaml'\?\)"):
        load_federation(tmp_path / "clinik.yaml", catalogue=catalogue)
    with pytest.raises(ConfigError, match="no such file"):
        load_federation(tmp_path / "clinic.yaml" / "x", catalogue=catalogue)


def test_the_file_s_name_names_the_federation(catalogue, tmp_path):
    file = tmp_path / "My Fleet.yaml"
    file.write_bytes((CASES / "good-minimal" / "federation.yaml").read_bytes())
    spec = load_federation(file, catalogue=catalogue)
    assert spec.name == "my-fleet"
    assert "name: my-fleet" in resolved(spec)


def test_windows_line_ends_and_a_byte_order_mark(catalogue, tmp_path):
    file = tmp_path / "federation.yaml"
    text = (CASES / "good-minimal" / "federation.yaml").read_text()
    file.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert len(load_federation(file, catalogue=catalogue).devices) == 3


def test_hub_ids_and_functions_are_not_looked_for(catalogue):
    for name in ("zalando-datasets/fashion_mnist", "openai/gsm8k:main", "mine:rows"):
        spec = load_federation(CASES / "good-minimal", {"data": name}, catalogue=catalogue)
        assert spec.data.dataset == name


def test_a_bundled_name_is_not_a_folder_beside_the_file(catalogue, tmp_path):
    from fedge.data.bundled import BUNDLED
    from fedge.models.nano import TASKS
    from fedge.spec.paths import BUNDLED_DATASETS, BUNDLED_MODELS

    assert set(BUNDLED_MODELS) == set(TASKS)
    assert set(BUNDLED_DATASETS) == set(BUNDLED)
    for name in ("digits", "vit-nano", "mine"):
        (tmp_path / name).mkdir()
    file = tmp_path / "federation.yaml"
    file.write_bytes((CASES / "good-minimal" / "federation.yaml").read_bytes())
    spec = load_federation(file, catalogue=catalogue)
    assert (spec.model.name, spec.data.dataset) == ("vit-nano", "digits")
    spec = load_federation(file, ["model=mine", "data=mine"], catalogue=catalogue)
    assert (spec.model.name, spec.data.dataset) == (str(tmp_path / "mine"), str(tmp_path / "mine"))


@pytest.mark.parametrize("word", ["a" * 5000, "~no-such-user/x", "x\0y", "./" + "b" * 5000])
def test_words_that_no_file_can_have(word, catalogue):
    good = CASES / "good-minimal"
    for path in ("model", "data", "data.test", "devices.pi.profile"):
        values = {"data": {"dataset": "digits"}, path: word}
        with contextlib.suppress(ConfigError):
            load_federation(good, values, catalogue=catalogue)
    with pytest.raises(ConfigError, match="no such file"):
        load_federation(word, catalogue=catalogue)


def test_a_path_typed_with_set_counts_from_where_it_is_typed(catalogue, tmp_path, monkeypatch):
    (tmp_path / "rows.csv").write_text("text,label\na,0\nb,1\n")
    monkeypatch.chdir(tmp_path)
    spec = load_federation(CASES / "good-minimal", ["data.dataset=./rows.csv"], catalogue=catalogue)
    assert spec.data.dataset == str(tmp_path / "rows.csv")
    with pytest.raises(ConfigError, match="no such file"):  # from Python: as if the file said it
        load_federation(CASES / "good-minimal", {"data.dataset": "./rows.csv"}, catalogue=catalogue)
