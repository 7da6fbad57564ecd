"""Variants that scale down beside a method's own: less of each text, fewer steps, frozen matrices in bfloat16."""

from dataclasses import replace

import pytest
import torch

from fedge.errors import ConfigError
from fedge.methods.combine.mixed import Mixed
from fedge.methods.customize.bitfit import BitFit
from fedge.methods.customize.fedavg import FedAvg
from fedge.methods.customize.head import Head
from fedge.methods.customize.lora import LoRA
from fedge.methods.tuning import scaled
from fedge.models.halved import halves
from fedge.models.share import storage
from fedge.models.variant import assemble, seated
from fedge.plan.choose import quality
from fedge.plan.menu import menu_of, method_of, spared
from fedge.plan.trace import Setting, Tracer
from fedge.run.trust import trusted
from fedge.spec import load_federation
from fedge.testing.driver import drive
from fedge.testing.kit import check_method
from fedge.testing.tiny import tiny

ALL = {"scale_steps": True, "scale_length": True, "scale_base": True}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


def test_the_order_of_what_is_offered_is_the_order_of_preference():
    found = scaled([LoRA(steps=4, **ALL), LoRA(steps=4, micro_batch=4, **ALL)])
    points = [(v.length, v.steps, v.base, v.micro_batch) for v in found]
    assert points[:4] == [(1, 4, "fp32", None), (1, 4, "fp32", 4), (1, 4, "bf16", 4), (1, 2, "fp32", None)]
    assert points == sorted(points, key=lambda p: (-p[0], -p[1], p[2] != "fp32", -(p[3] or 99)))
    assert scaled([LoRA(), LoRA(micro_batch=4)]) == [LoRA(), LoRA(micro_batch=4)], "nothing that nobody asked for"
    assert {v.length for v in scaled([LoRA(scale_length=True)])} == {1.0, 0.5}
    assert [v.member.base for v in Mixed(members=(Head(scale_base=True),)).variants()] == ["fp32", "fp32", "bf16"]


@pytest.mark.parametrize("setting", ["text", "causal", "masked"])
def test_a_shorter_length_cuts_what_a_device_reads_and_nothing_else(setting):
    found = tiny(setting)
    rows = found.rows(6, "r")
    whole, half = next(rows.chunks(6)), next(LoRA(length=0.5).reads(rows).chunks(6))
    assert half["input_ids"].shape == (6, 6)
    if setting != "masked":  # masks are drawn for each position anew
        assert torch.equal(half["input_ids"], whole["input_ids"][:, :6])
    assert half["labels"].shape == (whole["labels"].shape if setting == "text" else (6, 6))
    assert LoRA(length=0.5).reads(rows.take([1, 2])).spec(2)["input_ids"][0] == (2, 6)
    assert len(LoRA(length=0.5).reads(rows)) == len(rows)


def test_images_have_no_length():
    rows = tiny("image").rows(3, "r")
    assert FedAvg(length=0.5).reads(rows).spec(3) == rows.spec(3)


@pytest.mark.parametrize("setting", ["text", "image", "causal"])
def test_a_base_in_bf16_computes_as_if_its_matrices_had_been_rounded_before(setting):
    found = tiny(setting)
    built = seated(BitFit(base="bf16"), found.model, "seed")
    rounded = assemble(BitFit(), found.model, "seed").model
    kept = [p for p in built.model.parameters() if p.dtype == torch.bfloat16]
    assert kept
    shared = {storage(half) for half in halves(found.model).values()}
    assert all(not p.requires_grad and storage(p) in shared for p in kept)
    with torch.no_grad():
        for mine, theirs in zip(built.model.parameters(), rounded.parameters(), strict=True):
            if mine.dtype == torch.bfloat16:
                theirs.data = theirs.to(torch.bfloat16).float()
    batch = next(found.rows(4, "r").chunks(4))
    for model in (built.model.eval(), rounded.eval()):
        found.task.loss(model, batch).backward()
    pairs = [(m, t) for m, t in zip(built.model.parameters(), rounded.parameters(), strict=True) if m.requires_grad]
    assert pairs
    for mine, theirs in pairs:
        assert (mine.grad is None) == (theirs.grad is None)
        if mine.grad is not None:
            assert torch.allclose(mine.grad, theirs.grad, atol=1e-6)


def test_a_device_that_starts_anew_finds_its_base_in_bf16_again():
    built = seated(LoRA(base="bf16"), tiny("text").model, "seed")
    before = [p.detach().clone() for p in built.model.parameters()]
    for parameter in built.model.parameters():
        parameter.data = parameter.data + 1
    built.reset()
    assert all(torch.equal(a, b) for a, b in zip(before, built.model.parameters(), strict=True))


def test_devices_of_every_point_finish_rounds_together_and_the_model_stays_in_fp32():
    found = tiny("text")
    method = LoRA(steps=2, batch=4, **ALL)
    variants = scaled(method.variants())
    picked = {f"d{n:02}": variant for n, variant in enumerate(variants)}
    assert {v.length for v in variants} == {1.0, 0.5}
    assert {v.base for v in variants} == {"fp32", "bf16"}
    rows = {name: found.rows(4, name) for name in picked}
    once, again = (drive(method, found.model, rows, found.task, 2, variants=picked) for _ in range(2))
    for name, tensor in once.state["weights"].items():
        assert torch.isfinite(tensor).all()
        assert torch.equal(tensor, again.state["weights"][name])
    assert {p.dtype for p in once.final().parameters()} == {torch.float32}


@pytest.mark.parametrize("method", [LoRA(base="bf16", length=0.5), Head(base="bf16", length=0.5)])
def test_a_method_scaled_down_keeps_the_kits_rules(method):
    # not 'absent': a device whose frozen matrices are rounded runs the global function to three digits only
    names = ["value", "variants", "still", "order", "resume", "replaced", "bytes"]
    assert check_method(method, settings=["text"], properties=names)


def test_the_plan_charges_each_point_what_it_needs():
    found = tiny("text")
    setting = Setting(found.model, found.task, found.rows(16, "r"))
    method = LoRA(steps=6, micro_batch=4)
    tracer = Tracer(method, setting)
    whole = tracer.trace(method)
    half = tracer.trace(replace(method, length=0.5))
    low = tracer.trace(replace(method, base="bf16"))
    few = tracer.trace(replace(method, steps=3))
    assert not any(cost.measured for cost in (whole, half, low, few))
    assert half.peak_memory < whole.peak_memory
    assert half.flops < 0.7 * whole.flops
    assert (half.bytes_up, half.bytes_down) == (whole.bytes_up, whole.bytes_down)
    trained = {storage(p) for name, p in found.model.named_parameters() if "pooler" in name or "classifier" in name}
    matrices = sum(half.nbytes for at, half in halves(found.model).items() if at not in trained)
    assert low.shared == whole.shared - matrices, "half of what the matrices take"
    assert low.peak_memory < whole.peak_memory
    assert low.flops == whole.flops
    assert low.traffic > whole.traffic
    assert few == Tracer(method, setting).trace(replace(method, steps=3))
    assert few.peak_memory == whole.peak_memory
    assert few.flops < 0.6 * whole.flops


def test_what_helps_nobody_is_not_offered(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = tiny("text")
    setting = Setting(found.model, found.task, found.rows(8, "r"))
    whole = FedAvg(steps=2, batch=4, scale_base=True)
    menu = menu_of(whole, [("fedavg", whole, v) for v in scaled(whole.variants())], setting)
    points = [(offer.variant.get("depth", 1.0), offer.variant.get("base", "fp32")) for offer in menu.offers]
    assert "bf16" not in dict(points).values(), "what others train comes in fp32, and at full depth nothing is frozen"
    method = LoRA(steps=2, batch=4, scale_base=True)
    menu = menu_of(method, [("lora", method, v) for v in scaled(method.variants())], setting)
    points = [(offer.variant.get("depth", 1.0), offer.variant.get("base", "fp32")) for offer in menu.offers]
    assert (1.0, "bf16") in points
    assert len(menu.variants) == len(menu.offers)
    assert [o.index for o in menu.offers] == list(range(len(points)))
    for offer in menu.offers:
        assert not any(spared(other, offer) for other in menu.offers if quality(other) < quality(offer))


@pytest.mark.parametrize(
    ("fields", "task", "said"),
    [
        ("scale_length: true", "image-classification", "scale_length: images have no length to cut"),
        ("length: 0.5", "image-classification", "length: images have no length to cut"),
        ("scale_steps: true, privacy: {noise: 1}", "text-classification", "under privacy the server is given only"),
        (
            "scale_steps: true, aggregate: {rule: median}",
            "text-classification",
            "under aggregate the server is given only",
        ),
    ],
)
def test_a_point_that_has_no_place_here_is_refused_at_its_key(fields, task, said, tmp_path):
    path = tmp_path / "federation.yaml"
    path.write_text(
        "model: bert-nano\ndata: {dataset: digits}\ndevices: {pi: {profile: pi-4b-4g, count: 4}}\n"
        f"stages:\n  - customize: {{method: lora, {fields}}}\n"
    )
    spec = load_federation(path)
    with pytest.raises(ConfigError, match=said) as error:
        trusted(spec, spec.stages[0], *method_of(spec, spec.stages[0], task), 8)
    assert str(error.value).startswith(f"{path}:5:")


def test_steps_may_differ_where_noise_is_put_on_the_device(tmp_path):
    path = tmp_path / "federation.yaml"
    path.write_text(
        "model: bert-nano\ndata: {dataset: digits}\ndevices: {pi: {profile: pi-4b-4g, count: 4}}\n"
        "stages:\n  - customize: {method: lora, scale_steps: true, privacy: {noise: 1, where: local}}\n"
    )
    spec = load_federation(path)
    found = trusted(spec, spec.stages[0], *method_of(spec, spec.stages[0], "text-classification"), 8)
    assert len({variant.working(0).steps for _, _, variant in found.variants}) == 3
