"""What was measured decides what comes first; where it makes no difference, the cheaper does."""

import json

import pytest

from fedge.core.cost import Budget, Cost
from fedge.errors import ConfigError
from fedge.plan.choose import Offer, choose
from fedge.plan.worth import fingerprint, read_learned, weighed

MB = 1 << 20
BUDGET = Budget(100 * MB, flops=1e9, memory_bandwidth=1e9, down=1e6, up=1e6)


def offer(index, method, depth, flops, variant=None):
    return Offer(index, method, variant or {}, Cost(10 * MB, flops=flops, depth=depth, trainable=depth))


MENU = [
    offer(0, "fedavg", 6, 1e9),
    offer(1, "lora", 6, 5e8),
    offer(2, "lora", 2, 3e8, {"depth": 0.3}),
    offer(3, "head", 0, 1e8),
    offer(4, "bitfit", 6, 4e8),
]


def learned(**worth):
    variants = {"lean": {"depth": 0.3}}
    return {
        "rows": [
            {"method": name.split("_")[0], "variant": variants.get(name.partition("_")[2], {}), "worth": w, "spread": s}
            for name, (w, s) in worth.items()
        ]
    }


def order(menu):
    from fedge.plan.choose import ranked

    return [found.offer.index for found in ranked(menu, BUDGET, "quality")]


def test_without_measurements_the_prior_holds():
    assert order(MENU) == [0, 1, 4, 2, 3]
    assert weighed(MENU, {"rows": []}) == tuple(MENU)


def test_a_steep_ladder_goes_by_worth():
    found = weighed(MENU, learned(head=(0.9, 0.0), lora=(0.8, 0.0), fedavg=(0.7, 0.0)))
    assert [o.tier for o in found] == [2, 1, None, 0, None]
    assert order(found) == [3, 1, 0, 4, 2]  # those that nobody measured come last, by the prior


def test_on_a_flat_ladder_the_cheap_rung_is_the_honest_choice():
    found = weighed(MENU, learned(fedavg=(0.851, 0.0), lora=(0.85, 0.0), lora_lean=(0.849, 0.0), head=(0.80, 0.0)))
    assert [o.tier for o in found] == [0, 0, 0, 1, None]
    choice = choose(found, BUDGET)
    assert choice.index == 2
    assert choice.reason == "measured: worth as much as the best here, 0.849, and the least of those to pay for"
    # the spread of the seeds widens what counts as the same
    assert choose(weighed(MENU, learned(fedavg=(0.85, 0.06), head=(0.80, 0.06))), BUDGET).index == 3


def test_what_was_learned_is_forgotten_when_it_is_not_named():
    assert weighed(weighed(MENU, learned(head=(0.9, 0.0))), {"rows": []}) == tuple(MENU)


def test_the_file(tmp_path):
    path = tmp_path / "learned.json"
    path.write_text(json.dumps({"task": "t", "metric": "accuracy", "rows": [{"method": "head", "worth": 0.9}]}))
    assert read_learned(path)["rows"] == [{"method": "head", "variant": {}, "worth": 0.9, "spread": 0.0}]
    for text in ("", "[]", '{"rows": [{}]}', '{"task": "t", "rows": [{"method": "head", "worth": "good"}]}'):
        path.write_text(text)
        with pytest.raises(ConfigError, match="is not what `fedge compare --learn` writes"):
            read_learned(path)
    with pytest.raises(ConfigError, match="can't be read"):
        read_learned(tmp_path / "none.json")


def test_a_task_is_known_by_model_data_and_kind():
    same = fingerprint("/a/MiniLM", "/x/news.csv", "text-classification")
    assert same == fingerprint("/b/MiniLM", "news.csv", "text-classification")
    assert same != fingerprint("MiniLM", "news.csv", "causal-lm")
