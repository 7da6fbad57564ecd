"""Which rates a device gets from a stack, and how it says that they are known."""

import pytest

from fedge.errors import ConfigError
from fedge.spec import load_federation
from fedge.spec.device import bundled_profiles, load_profile, rates_with, stacks_of
from fedge.spec.rates import FAMILIES, load_stacks

MINE = """\
name: mine
about: a board of my own
memory: 512MiB
compute: 10GFLOP/s
memory_bandwidth: 2GB/s
network: wifi4
power: {idle: 1W, active: 3W}
rates:
  pytorch: {matmul: 8GFLOP/s, traffic: 1GB/s, dispatch: 20us, slower: {depthwise: 9}}
"""
FEDERATION = """\
model: vit-nano
data: digits
devices:
  a: {{profile: {profile}, {more}}}
stages:
  - train: {{method: fedavg, rounds: 1}}
"""


def _load(tmp_path, profile, more):
    file = tmp_path / "federation.yaml"
    file.write_text(FEDERATION.format(profile=profile, more=more))
    return load_federation(file)


def test_a_calibrated_profile_says_its_own(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(MINE)
    profile = load_profile(path)
    rates = rates_with(profile, "pytorch")
    assert (rates.flops, rates.memory_bandwidth, rates.per_op, rates.basis) == (8e9, 1e9, 2e-5, "measured")
    assert dict(rates.slower) == {**dict.fromkeys(FAMILIES, 1.0), "depthwise": 9.0}
    assert rates_with(profile, "tflite").basis == "class default"
    device = _load(tmp_path, "./mine.yaml", "compute: 4GFLOP/s").devices[0]
    assert (device.flops, device.memory_bandwidth, device.per_op) == (4e9, 1e9, 2e-5)


def test_a_measured_device_is_told_from_one_of_its_class():
    profiles = bundled_profiles()
    assert rates_with(profiles["pi-4b-4g"], "pytorch").basis == "fitted"
    assert rates_with(profiles["pi-zero-2w"], "pytorch").basis == "class default"
    assert "tensorrt" not in stacks_of(profiles["pi-4b-4g"])
    assert "tensorrt" in stacks_of(profiles["jetson-nano-4g"])


def test_every_stack_gives_every_profile_rates():
    for profile in bundled_profiles().values():
        for stack in stacks_of(profile):
            rates = rates_with(profile, stack)
            assert min(rates.flops, rates.memory_bandwidth, rates.per_op) > 0
            assert {name for name, _ in rates.slower} == set(FAMILIES)
    assert {"pytorch", "pytorch-cuda"} <= set(load_stacks())


def test_the_stack_of_a_group(tmp_path):
    device = _load(tmp_path, "jetson-nano-4g", "stack: pytorch-cuda").devices[0]
    assert (device.stack, device.rates_basis) == ("pytorch-cuda", "class default")
    with pytest.raises(ConfigError, match=r"federation.yaml:4.*no stack 'pytroch'.*pytorch"):
        _load(tmp_path, "pi-4b-4g", "stack: pytroch")
    with pytest.raises(ConfigError, match="computes on a GPU, and 'pi-4b-4g' has none"):
        _load(tmp_path, "pi-4b-4g", "stack: tensorrt")
