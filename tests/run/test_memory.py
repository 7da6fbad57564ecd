"""The memory wall from end to end: a device below what it needs is killed there and picks lower; one above is not."""

import json
import re

import pytest

from fedge.emulation import wall
from fedge.errors import LimitError
from fedge.run.folder import RunFolder
from fedge.run.launcher import Options, up
from fedge.run.planning import plan
from fedge.units import format_bytes

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("nothing_left")]
MiB = 2**20

FEDERATION = """\
name: small-wall
model: {{name: vit-nano, options: {{hidden: 256, layers: 6, heads: 4, mlp: 1024}}}}
data: {{dataset: digits, test: 5%}}
devices:
  below: {{profile: pi-4b-4g, memory: {below}}}
  above: {{profile: pi-4b-4g, memory: {above}}}
evaluate: {{every: 1, rows: 16}}
emulation: {{processes: {processes}}}
stages:
  - customize: {{method: {method}, rounds: 3, steps: 2, batch: 32, pick: richest}}
"""


@pytest.fixture
def cgroup():
    try:
        found = wall.choose("auto")
    except LimitError as error:
        pytest.skip(str(error))
    found.close()
    if not found.name.startswith("cgroup"):
        pytest.skip(f"the wall of this host is {found.name}")


@pytest.mark.parametrize(("method", "processes"), [("fedavg", 2), ("lora", 2), ("fedavg", 1)])
def test_the_wall_kills_below_the_need_and_not_above_it(method, processes, cgroup, tmp_path):
    path = tmp_path / "small-wall.yaml"

    def write(below, above):
        path.write_text(FEDERATION.format(method=method, processes=processes, below=f"{below}B", above=f"{above}B"))

    write(1 << 30, 1 << 30)
    richest = next(row for row in plan(path, (), lambda line: None) if row["chosen"])
    need = richest["peak_memory"]
    below = need - max(int(0.05 * need), 4 * MiB)
    above = need + max(int(0.10 * need), 4 * MiB)
    write(below, above)
    said = []
    run = up(path, (), Options(runs=tmp_path / "runs", slots=processes), said.append)

    events = list(RunFolder(run.folder).read_lines("events.jsonl"))
    lost = [event for event in events if event["event"] == "lost"]
    assert [event["device"][:5] for event in lost] == ["below"]
    event = lost[0]
    assert (event["cause"], event["method"]) == ("memory", method)
    # all weights come down from the second round on; before, a device that trains them all holds less than its need
    assert event["round"] <= (1 if method == "fedavg" else 0)
    assert event["variant"] == richest["variant"]
    assert event["phase"] in ("load", "forward", "backward", "optimizer", "pack")
    assert event["cap"] == below
    assert below - MiB <= event["peak"] <= below + MiB, "the peak is what stood at the wall"
    line = next(line for line in said if "out of memory" in line)
    assert re.search(rf"lost: out of memory in \w+ with {method}, peak .+, cap {re.escape(format_bytes(below))}", line)

    picked = [event for event in events if event["event"] == "picked" and event["device"].startswith("below")]
    assert len(picked) == 2
    assert picked[1]["predicted_peak"] < need
    answered = {(m["device"], m["round"]) for m in run.metrics if m.get("device") and m["round"] is not None}
    everyone = {(device, round) for device in ("above", "below") for round in range(3)}
    assert {(device[:5], round) for device, round in answered} == everyone - {("below", event["round"])}
    devices = {device["name"][:5]: device for device in run.summary["devices"]}
    assert devices["above"]["lost"] is None
    assert devices["below"]["lost"]["phase"] == event["phase"]
    assert devices["above"]["peak_memory"] <= above
    assert json.loads((run.folder / "summary.json").read_text())["degraded"] == []
