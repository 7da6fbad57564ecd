"""A link's rates out of a csv: with or without a header, one column or two, and every way in which it can be wrong."""

import pytest

from fedge.errors import ConfigError
from fedge.spec import load_federation, resolved
from fedge.spec.trace import read_trace


@pytest.fixture
def lte(tmp_path):
    return tmp_path / "lte.csv"


def test_a_trace_is_read_with_or_without_a_header(lte):
    lte.write_text("second,down,up\n10,8,1\n11,0,2\n12,16,0\n")
    trace = read_trace(lte)
    assert (trace.seconds, trace.length) == ((0.0, 1.0, 2.0), 3.0)
    assert (trace.down, trace.up) == ((8e6, 0.0, 16e6), (1e6, 2e6, 0.0))
    assert (trace.mean(trace.down), trace.mean(trace.up)) == (8e6, 1e6)
    other = lte.with_name("one.csv")
    other.write_text("0,8\n0.5,4\n")
    assert read_trace(other).down == read_trace(other).up == (8e6, 4e6)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("second,mbps\n0,8\n1,fast\n", r"lte\.csv:3: expected a second and Mbit/s, got '1, fast'"),
        ("0,8\n0,9\n", r"lte\.csv:2: second 0 does not come after 0"),
        ("0,8\n1,-1\n", r"lte\.csv:2: expected a second"),
        ("0,0\n1,0\n", r"a rate above zero"),
        ("0,8\n", r"two rows or more"),
        ("", r"two rows or more"),
        ("second,mbps\n0,8\n1,nan\n", r"lte\.csv:3: expected"),
        ("second,down,up\n0,8\n1,2,3\n", r"lte\.csv:2: expected"),
    ],
)
def test_what_is_no_trace(tmp_path, text, said):
    file = tmp_path / "lte.csv"
    file.write_text(text)
    read_trace.cache_clear()
    with pytest.raises(ConfigError, match=said):
        read_trace(file)


FEDERATION = """name: traced
model: vit-nano
data: digits
devices:
  phone: {{profile: pixel-6, network: {network}}}
stages: [{{train: {{method: fedavg}}}}]
"""


def load(folder, network):
    file = folder / "federation.yaml"
    file.write_text(FEDERATION.format(network=network))
    return load_federation(file)


def test_a_federation_s_link_follows_a_trace_beside_it(lte):
    lte.write_text("second,down,up\n0,8,1\n1,4,2\n")
    spec = load(lte.parent, "{trace: lte.csv, loss: 1%}")
    link = spec.devices[0].link
    assert (link.down, link.up, link.loss, link.latency) == (6e6, 1.5e6, 0.01, 0.03)
    written = lte.with_name("resolved.yaml")
    written.write_text(resolved(spec))
    assert load_federation(written).devices == spec.devices


@pytest.mark.parametrize(
    ("network", "said"),
    [
        (
            "{trace: none.csv}",
            r"federation\.yaml:5:\d+: devices\.phone\.network\.trace: can't read the trace .*none\.csv",
        ),
        ("{trace: lte.csv, down: 4Mbit/s}", r"network\.down: the trace says the rates \(leave out down"),
        ("{trace: bad.csv}", r"bad\.csv:1: expected a second"),
    ],
)
def test_a_trace_that_can_not_be_had_is_told_with_its_place(lte, network, said):
    lte.write_text("0,8\n1,4\n")
    lte.with_name("bad.csv").write_text("0,8,\n1,x\n".replace("0,8,", "0,-8"))
    with pytest.raises(ConfigError, match=said):
        load(lte.parent, network)
