"""What tools.planning makes of what it measured."""

from fedge.core.cost import Cost
from tools.planning import Found, pair_figures, picked, promise_figures, sizes

MB = 1 << 20


def offers(*peaks):
    return [
        {"method": "m", "variant": {"depth": at}, "cost": Cost(peak * MB, depth=10 - at)}
        for at, peak in enumerate(peaks)
    ]


def pair(offer, measured, **more):
    row = {"method": "m", "variant": offer["variant"], "peak_memory": offer["cost"].peak_memory, "device": "d"}
    row |= {"bytes_up": 10, "bytes_down": 20, "virtual_s": 1.0, "measured_peak_memory": measured}
    return {**row, "measured_bytes_up": 10, "measured_bytes_down": 20, "measured_virtual_s": 1.02, **more}


def test_sizes_are_those_at_which_a_pick_changes():
    rows = offers(100, 300, 50)  # the second is never picked: what holds it holds the first, which is preferred
    found = sizes({"m": rows}, 9)
    assert found == [rows[2]["cost"].memory_needed, rows[0]["cost"].memory_needed]
    assert [picked(rows, size)["variant"]["depth"] for size in found] == [2, 0]
    assert picked(rows, found[0] - 1) is None
    assert len(sizes({"m": rows}, 1)) == 1


def test_errors_of_pairs():
    (offer,) = offers(100)
    found = Found(pairs={"vit": [pair(offer, 102 * MB), pair(offer, 95 * MB, measured_bytes_up=11)]})
    found.coded = [
        {"fixed": True, "bytes_up": 5, "measured_bytes_up": 5},
        {"fixed": False, "bytes_up": 105, "measured_bytes_up": 100},
    ]
    values = [(line["value"], line.get("holds")) for line in pair_figures(found)]
    assert values == [(3.5, False), (5.0, True), (1, False), (2.0, True), (1.05, True), (0.952, True)]


def test_promises_are_judged_by_what_was_measured():
    honest, broken = offers(100)[0], offers(100)[0]
    found = Found(offers={"vit": {"m": [honest]}}, pairs={"vit": [pair(honest, 100 * MB)]})
    values = [line["value"] for line in promise_figures(found)]
    assert values == [0, 0, 0]
    # it needs half as much again as was promised
    found = Found(offers={"vit": {"m": [broken]}}, pairs={"vit": [pair(broken, 150 * MB)]}, killed=1)
    lines = promise_figures(found)
    assert lines[0]["value"] > 0
    assert (lines[1]["value"], lines[2]["value"], lines[2]["holds"]) == (0, 1, False)
    # it needs half of what was promised: refused far too often
    found = Found(offers={"vit": {"m": [broken]}}, pairs={"vit": [pair(broken, 50 * MB)]})
    assert promise_figures(found)[1]["value"] > 5
