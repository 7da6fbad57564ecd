"""The methods that tune tensors of one model, each against training and averaging written out."""

from dataclasses import replace
from itertools import islice

import peft
import pytest
import torch

from fedge.core.rng import generator
from fedge.core.server import ServerOptimizer
from fedge.methods.combine.mixed import Mixed
from fedge.methods.combine.stages import Stages
from fedge.methods.customize.bitfit import BitFit
from fedge.methods.customize.fedavg import FedAvg
from fedge.methods.customize.head import Head
from fedge.methods.customize.lora import LoRA
from fedge.methods.tuning import scaled
from fedge.models.names import tensors, trainable
from fedge.models.share import own, share
from fedge.models.variant import assemble, duplicate
from fedge.testing.driver import drive
from tests.methods.conftest import logits, rows, three

SGD = {"optimizer": "sgd", "lr": 0.1}


def heads(found):
    return tuple(name for name in found.model.state_dict() if name.startswith(("classifier.", "bert.pooler.")))


def pooled(model, found, devices):
    """The gradient over all rows of all devices at once."""
    batches = [next(one.chunks(1000)) for one in devices.values()]
    everything = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
    model.train()
    names, parameters = zip(*trainable(model).items(), strict=True)
    loss = found.task.loss(model, everything)
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


def coverage(start, sent):
    """What the server's weights must be: each coordinate's mean over those who sent it, one reply at a time."""
    expected = {}
    for name, tensor in start.items():
        total, weights = torch.zeros(tensor.shape, dtype=torch.float64), torch.zeros(tensor.shape, dtype=torch.float64)
        for payloads in sent.values():
            delta = payloads[-1]["delta"].get(name)
            if delta is not None:
                block = tuple(slice(size) for size in delta.shape)
                total[block] += payloads[-1].weight * delta
                weights[block] += payloads[-1].weight
        expected[name] = tensor + torch.where(weights > 0, total / weights.clamp_min(1), 0.0)
    return expected


def close(a, b, atol=1e-6):
    return a.keys() == b.keys() and all(torch.allclose(a[n].double(), b[n].double(), atol=atol) for n in a)


@pytest.mark.parametrize("method", [FedAvg, BitFit, Head, LoRA])
def test_one_full_step_each_is_one_full_step_on_the_pooled_rows(method, either):
    # the loss of a device is its mean, so weights by rows make the mean over all rows
    federated = method(**SGD, steps=1, batch=1000)
    driven = drive(federated, either.model, three(either), either.task)
    model = assemble(federated, either.model, *driven.server.seed).model
    before = {name: parameter.detach().clone() for name, parameter in trainable(model).items()}
    gradient = pooled(model, either, three(either))
    assert close(driven.state["weights"], {name: before[name] - 0.1 * gradient[name] for name in before})


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_one_device_with_everything_is_training_alone(optimizer, vit):
    rounds = 2 if optimizer == "sgd" else 1  # AdamW's division makes much of the last bits of one round in the next
    method = FedAvg(optimizer=optimizer, lr=1e-3, steps=3, batch=4, momentum=0.5, weight_decay=0.01)
    data = rows(vit, 10)
    driven = drive(method, vit.model, {"a": data}, vit.task, rounds)
    model = own(share(vit.model).requires_grad_(True)).train()
    for number in range(rounds):
        kind = torch.optim.SGD if optimizer == "sgd" else torch.optim.AdamW
        more = {"momentum": 0.5} if optimizer == "sgd" else {}
        stepper = kind(model.parameters(), lr=1e-3, weight_decay=0.01, **more)
        seed = (*driven.server.seed, number, "a", "batches")
        for batch in islice(data.batches(4, generator(*seed)), 3):
            stepper.zero_grad()
            parameters = list(model.parameters())
            found = torch.autograd.grad(vit.task.loss(model, batch), parameters)
            for parameter, gradient in zip(parameters, found, strict=True):
                parameter.grad = gradient
            stepper.step()
    # attention does not feel a bias of its keys, and AdamW makes steps of the rounding that is its gradient
    names = [name for name in driven.state["weights"] if not name.endswith("k_proj.bias")]
    assert close({name: driven.state["weights"][name] for name in names}, tensors(model, names))


@pytest.mark.parametrize("change", [{"micro_batch": 1}, {"micro_batch": 3}, {"checkpointing": True}])
def test_variants_that_save_memory_train_the_same(change, either):
    plain = FedAvg(**SGD, steps=2, batch=4)
    a = drive(plain, either.model, three(either), either.task)
    b = drive(replace(plain, **change), either.model, three(either), either.task)
    assert close(a.state["weights"], b.state["weights"])


def test_head_leaves_the_body_as_it_was(either):
    driven = drive(Head(steps=2, batch=4), either.model, three(either), either.task, 2)
    assert set(driven.sent[0]["a"][0]["delta"]) == set(heads(either))
    final, base = driven.final().state_dict(), either.model.state_dict()
    for name in base:
        assert torch.equal(final[name], base[name]) == (name not in heads(either))


def test_bitfit_sends_the_biases_and_the_head_and_nothing_else_moves(either):
    driven = drive(BitFit(steps=2, batch=4, lr=1e-2), either.model, three(either), either.task, 2)
    final, base = driven.final().state_dict(), either.model.state_dict()
    trained = {name for name in base if name.endswith("bias") or name in heads(either)}
    assert set(driven.sent[0]["a"][0]["delta"]) == trained
    for name in base:
        if name not in trained:
            assert torch.equal(final[name], base[name])
    assert all(not torch.equal(final[name], base[name]) for name in trained if "key.bias" not in name)


@pytest.mark.parametrize(("method", "layered"), [(FedAvg, ""), (BitFit, "bias"), (LoRA, "lora_")])
def test_depth_trains_the_upper_blocks_alone(method, layered, vit):
    driven = drive(method(steps=1, batch=4, depth=0.5), vit.model, {"a": rows(vit, 4)}, vit.task)
    sent = driven.sent[0]["a"][0]["delta"]
    blocks = {name.split("layers.")[1][0] for name in sent if "layers." in name}
    assert blocks == {"2", "3"}
    assert all(layered in name or name.startswith("classifier") for name in sent)
    assert not [name for name in sent if "embeddings" in name]
    assert {name for name in sent if name.startswith("classifier")} == set(heads(vit))


def test_adapters_have_the_names_of_peft_s_own_files(either):
    method = LoRA(steps=1, batch=4, rank=4)
    driven = drive(method, either.model, {"a": rows(either, 4)}, either.task)
    targets = ["q_proj", "v_proj"] if either.task.kind == "image-classification" else ["query", "value"]
    wrapped = peft.get_peft_model(duplicate(either.model), peft.LoraConfig(r=4, target_modules=targets))
    theirs = peft.get_peft_model_state_dict(wrapped)
    ours = {name: tensor for name, tensor in driven.sent[0]["a"][0]["delta"].items() if "lora_" in name}
    assert {n: t.shape for n, t in ours.items()} == {n: t.shape for n, t in theirs.items()}


def test_merged_is_the_model_with_its_adapters_and_the_base_rests(either):
    driven = drive(LoRA(steps=3, batch=4, lr=1e-2), either.model, three(either), either.task, 2)
    final, adapted = driven.final(), driven.server.method.adapter(driven.server, driven.state)
    assert torch.allclose(logits(final, either), logits(adapted, either), atol=1e-5)
    assert not torch.allclose(logits(final, either), logits(either.model, either), atol=1e-3)
    held, base = tensors(adapted), either.model.state_dict()
    assert all(torch.equal(held[name], base[name]) for name in base if name not in heads(either))


def test_a_few_rank_slots_are_trained_and_all_are_run(vit):
    full = LoRA(steps=2, batch=4, rank=6, lr=1e-2)
    picks = {"a": replace(full, train_rank=2), "b": replace(full, train_rank=4), "c": full}
    driven = drive(full, vit.model, three(vit), vit.task, 1, variants=picks)
    shapes = {d: driven.sent[0][d][0]["delta"] for d in "abc"}
    name = "base_model.model.vit.layers.0.attention.q_proj.lora_A.weight"
    assert [len(shapes[d][name]) for d in "abc"] == [2, 4, 6]
    start = full.init(driven.server)["weights"]
    assert close(driven.state["weights"], coverage(start, driven.sent[0]))
    outputs = [logits(driven.synced(device), vit) for device in "abc"]
    assert all(torch.allclose(output, logits(driven.final(), vit), atol=1e-5) for output in outputs)


def test_a_device_that_trains_slots_starts_them_where_the_others_do(vit):
    full = LoRA(steps=1, batch=4, rank=6)
    driven = drive(full, vit.model, three(vit), vit.task, 0)
    whole = tensors(driven.server.model(full))
    part = tensors(driven.server.model(replace(full, train_rank=2, depth=0.5)))
    assert all(torch.equal(whole[name], part[name]) for name in whole)


def test_partial_coverage_is_a_mean_over_those_who_trained(vit):
    full = FedAvg(steps=2, batch=4, lr=1e-2)
    picks = {"a": replace(full, depth=0.25), "b": replace(full, depth=0.5), "c": full}
    driven = drive(full, vit.model, three(vit), vit.task, 1, variants=picks)
    assert close(driven.state["weights"], coverage(full.init(driven.server)["weights"], driven.sent[0]))


@pytest.mark.parametrize("kind", ["fedadam", "fedavgm"])
def test_the_server_optimizer_takes_the_step(kind, vit):
    method = Head(steps=2, batch=4)
    optimizer = ServerOptimizer(kind, lr=0.1)
    driven = drive(method, vit.model, three(vit), vit.task, 1, optimizer=optimizer)
    start = method.init(driven.server)["weights"]
    mean = {name: value - start[name] for name, value in coverage(start, driven.sent[0]).items()}
    expected, _ = optimizer.step(start, {name: value.float() for name, value in mean.items()}, {})
    assert close(driven.state["weights"], expected, 1e-5)


# -- the pull of FedProx -----------------------------------------------------------------------------------------------


def test_without_a_pull_there_is_none_and_the_first_step_feels_none(vit):
    plain = FedAvg(**SGD, steps=1, batch=4)
    a = drive(plain, vit.model, three(vit), vit.task)
    b = drive(replace(plain, prox=5.0), vit.model, three(vit), vit.task)
    assert close(a.state["weights"], b.state["weights"], 0)


def test_the_pull_is_mu_times_the_way_gone(vit):
    data, mu = rows(vit, 4), 0.7
    method = FedAvg(**SGD, steps=2, batch=4, prox=mu, micro_batch=3)
    driven = drive(method, vit.model, {"a": data}, vit.task)
    model = own(share(vit.model).requires_grad_(True)).train()
    start = {name: parameter.detach().clone() for name, parameter in trainable(model).items()}
    for _ in range(2):
        gradient = pooled(model, vit, {"a": data})
        with torch.no_grad():
            for name, parameter in trainable(model).items():
                parameter -= 0.1 * (gradient[name] + mu * (parameter - start[name]))
    assert close(driven.state["weights"], tensors(model, driven.state["weights"]))


# -- combinations ------------------------------------------------------------------------------------------------------


def mixed():
    return Mixed(members=(LoRA(steps=2, batch=4, rank=4, lr=1e-2), BitFit(steps=2, batch=4), Head(steps=2, batch=4)))


def test_members_train_their_own_and_all_run_the_whole(either):
    method = mixed()
    lora, bitfit, head = method.members
    picks = {
        "a": replace(method, member=replace(lora, train_rank=2, depth=0.5)),
        "b": replace(method, member=bitfit),
        "c": replace(method, member=head),
    }
    driven = drive(method, either.model, three(either), either.task, 1, variants=picks)
    assert close(driven.state["weights"], coverage(method.init(driven.server)["weights"], driven.sent[0]))
    driven = drive(method, either.model, three(either), either.task, 3, variants=picks, absent={1: ["c"]})
    final = logits(driven.final(), either)
    assert not torch.allclose(final, logits(either.model, either), atol=1e-3)
    for device in "abc":
        assert torch.allclose(logits(driven.synced(device), either), final, atol=1e-5)
    names = {device: set(driven.sent[0][device][0]["delta"]) for device in "abc"}
    assert names["c"] == set(heads(either))
    assert not [name for name in names["b"] if "lora_" in name]
    assert all("lora_" in name or name in heads(either) for name in names["a"])


def test_a_cohort_of_one_method_is_that_method(vit):
    lora = mixed().members[0]
    method = mixed()
    picks = dict.fromkeys("abc", replace(method, member=lora))
    together = drive(method, vit.model, three(vit), vit.task, 2, variants=picks)
    alone = drive(lora, vit.model, three(vit), vit.task, 2)
    kept = {name: together.state["weights"][name] for name in alone.state["weights"]}
    assert close(kept, alone.state["weights"], 0)


def test_stages_switch_at_their_round_and_what_was_trained_stays(vit):
    parts = (BitFit(steps=2, batch=4), Head(steps=2, batch=4), LoRA(steps=2, batch=4, rank=4))
    method = Stages(of=parts, switch=(1, 3))
    driven = drive(method, vit.model, three(vit), vit.task, 4)
    names = [set(sent["a"][0]["delta"]) for sent in driven.sent]
    assert names[1] == names[2] == set(heads(vit))
    assert any(name.endswith("bias") and "layers" in name for name in names[0])
    assert all("lora_" in name or name in heads(vit) for name in names[3])
    first = drive(method, vit.model, three(vit), vit.task, 1)
    bias = "vit.layers.0.attention.q_proj.bias"
    assert torch.equal(driven.state["weights"][bias], first.state["weights"][bias])
    for device in "abc":
        assert torch.allclose(logits(driven.synced(device), vit), logits(driven.final(), vit), atol=1e-5)


def test_a_second_part_starts_where_the_server_thinks_it_does(vit):
    # a step of AdamW moves a number by about its rate, whatever the gradient: further means another start
    method = Stages(of=(Head(steps=1, batch=4), LoRA(steps=2, batch=4, rank=4, lr=1e-3)), switch=(1,))
    driven = drive(method, vit.model, three(vit), vit.task, 2)
    for name, delta in driven.sent[1]["a"][0]["delta"].items():
        assert delta.abs().max() <= 2.1e-3, name
    alone = drive(replace(method, of=method.of[::-1]), vit.model, three(vit), vit.task, 1)
    ours, theirs = method.init(driven.server)["weights"], alone.server.method.init(alone.server)["weights"]
    assert set(ours) == set(theirs)


def test_parts_of_stages_are_checked():
    with pytest.raises(ValueError, match="1 rising rounds"):
        Stages(switch=(1, 2))
    with pytest.raises(ValueError, match="no part of stages"):
        Stages(of=("split", "head"))
    assert [part.steps for part in Stages(steps=3).parts] == [3, 3]
    method = Stages(of=("head", "lora", "bitfit"), switch=(2, 5))
    assert [type(method.part_at(round)) for round in (0, 1, 2, 4, 5, 9)] == [Head, Head, LoRA, LoRA, BitFit, BitFit]


# -- steps by speed ----------------------------------------------------------------------------------------------------


def test_steps_are_offered_by_halves_where_that_is_wanted():
    assert scaled([FedAvg(steps=8)]) == [FedAvg(steps=8)]
    slow = FedAvg(steps=8, scale_steps=True)
    assert [v.steps for v in scaled([slow, replace(slow, depth=0.5)])] == [8, 8, 4, 4, 2, 2]
    assert [v.steps for v in scaled([FedAvg(steps=1, scale_steps=True)])] == [1]
    assert list(dict.fromkeys(v.member.steps for v in Mixed(members=(slow,)).variants())) == [8, 4, 2]


def test_fewer_steps_count_by_fednova(vit):
    full = Head(steps=8, batch=4, optimizer="sgd", lr=0.1, scale_steps=True)
    few = replace(full, steps=2)
    data = {"a": rows(vit, 6, "a"), "b": rows(vit, 12, "b")}
    driven = drive(full, vit.model, data, vit.task, 1, variants={"a": full, "b": few})
    start = full.init(driven.server)["weights"]
    sent = {name: answers[-1] for name, answers in driven.sent[0].items()}
    p, taken = {"a": 6 / 18, "b": 12 / 18}, {"a": 8, "b": 2}
    effective = sum(p[name] * taken[name] for name in p)
    for name, before in start.items():
        change = sum(p[d] * sent[d]["delta"][name].double() / taken[d] for d in p) * effective
        assert torch.allclose(driven.state["weights"][name].double(), before.double() + change, atol=1e-6)
    alike = drive(full, vit.model, data, vit.task, 1)
    plain = drive(replace(full, scale_steps=False), vit.model, data, vit.task, 1)
    for name, tensor in plain.state["weights"].items():
        assert torch.equal(alike.state["weights"][name], tensor), "alike steps are FedAvg, bit for bit"
