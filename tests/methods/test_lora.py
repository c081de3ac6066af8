"""LoRA: equal to Hugging Face's, foldable, and as large as the papers print."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification

from peft_dp import Places, Spec, methods, registry
from peft_dp.methods._attach import attach
from peft_dp.methods._common import LINEAR, LowRank
from peft_dp.methods.lora import Config
from peft_dp.models.view import view
from peft_dp.training.job import Job, build, find_sources

Make = Callable[..., Spec]


def meta(backbone: str, *, outputs: int) -> nn.Module:
    """A classification model of a paper's shape, without weights."""
    with torch.device("meta"):
        shape = AutoConfig.for_model(**registry.load("backbones", backbone).CONFIG, num_labels=outputs)
        model: nn.Module = AutoModelForSequenceClassification.from_config(shape)
    return model


def moved(spec: Spec, places: Places) -> Job:
    """A job whose trained values have left their start, in float64 and evaluation."""
    job = build(spec, find_sources(spec, places))
    job.backbone.model.double().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in job.backbone.trained().values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return job


@pytest.mark.parametrize(
    ("backbone", "config", "count"),
    [
        ("roberta_large", {"rank": 1, "alpha": 8}, 98_304),
        ("roberta_large", {"rank": 8, "alpha": 8}, 786_432),
        ("bert", {"rank": 1, "alpha": 8}, 36_864),
        ("bert_large", {"rank": 64, "alpha": 128, "sites": ("query", "key", "value")}, 9_440_259 - 3_075),
        ("bert_large", {"rank": 64, "alpha": 128, "sites": LINEAR[:4]}, 12_585_987 - 3_075),
        ("distilbert", {"rank": 2, "alpha": 4, "sites": LINEAR}, 2 * 6 * (4 * 1_536 + 2 * 3_840)),
    ],
    ids=str,
)
def test_counts(backbone: str, config: dict[str, Any], count: int) -> None:
    """A site has r (in + out) values: SLaSh's and SPAFIT's counts but for the head."""
    made = view(meta(backbone, outputs=3))
    made.freeze()
    Config(**config).install(made, torch.Generator())

    assert count == made.count() - sum(p.numel() for p in made.head)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("sites", [("query", "value"), LINEAR], ids=len)
def test_equals_peft(spec: Make, places: Places, sites: tuple[str, ...]) -> None:
    """With the same values, the logits are those of Hugging Face's LoRA on the same model."""
    peft = pytest.importorskip("peft")
    job = moved(spec(method="lora", config={"rank": 3, "alpha": 6, "sites": list(sites)}, head="stock"), places)
    plain = moved(spec(method="head", head="stock"), places).backbone.model
    plain.load_state_dict(job.backbone.model.state_dict(), strict=False)
    targets = [f"layer.{n}.{job.backbone.family.sites[role]}" for n in range(2) for role in sites]
    theirs = peft.get_peft_model(plain, peft.LoraConfig(r=3, lora_alpha=6, target_modules=targets)).eval()
    batch = job.train.batch(list(range(4)), "cpu")
    inputs = job.backbone.inputs(batch)
    before = theirs(**inputs).logits
    with torch.no_grad():
        for name, module in job.backbone.model.named_modules():
            if isinstance(module, LowRank):
                wrapped = theirs.get_submodule(f"base_model.model.{name.removesuffix('.lora')}")
                wrapped.lora_A["default"].weight.copy_(module.a.weight)
                wrapped.lora_B["default"].weight.copy_(module.b.weight)
    expected, ours = theirs(**inputs).logits, job.backbone.logits(batch)

    assert len(targets) == sum(isinstance(module, LowRank) for module in job.backbone.model.modules())
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)
    assert (before - expected).abs().max() > 1e-4


def test_start(spec: Make, places: Places) -> None:
    """The logits are the pretrained model's at first; A is as wide as Kaiming's law says, B is 0."""
    specs = spec(method="head"), spec(method="lora", config={"rank": 64, "alpha": 8})
    job, other = (build(made, find_sources(made, places)) for made in specs)
    plain, ours, batch = job.backbone, other.backbone, job.train.batch([0, 1], "cpu")
    plain.model.eval(), ours.model.eval()
    values = ours.trained()
    a = torch.cat([value.flatten() for name, value in values.items() if name.endswith("lora.a.weight")])

    assert torch.equal(plain.logits(batch), ours.logits(batch))
    # Kaiming-uniform with a = sqrt(5) is uniform on +-1/sqrt(in), of variance 1/(3 in).
    assert a.abs().max().item() == pytest.approx(0.25, rel=0.01)
    assert a.var().item() == pytest.approx(1 / 48, rel=0.05)
    assert not any(value.any() for name, value in values.items() if name.endswith("lora.b.weight"))


def test_merge(spec: Make, places: Places) -> None:
    """Folded into the weights, the model is of its old shape and gives the same logits."""
    job = moved(spec(method="lora", config={"rank": 2, "alpha": 8, "sites": list(LINEAR)}), places)
    batch = job.train.batch(list(range(4)), "cpu")
    expected = job.backbone.logits(batch)
    job.backbone.merge()

    torch.testing.assert_close(job.backbone.logits(batch), expected, rtol=0, atol=1e-12)
    assert not [name for name, _ in job.backbone.model.named_parameters() if "lora" in name]


def test_draws_from_its_stream_only() -> None:
    """The same seed gives the same values, whatever the global generator holds; a model's dtype is kept."""
    config = AutoConfig.for_model("bert", hidden_size=16, num_hidden_layers=2, num_attention_heads=2, vocab_size=20)
    found = []
    for seed in (0, 0, 1):
        model = AutoModelForSequenceClassification.from_config(config).bfloat16()
        found.append(
            attach(model, "lora", seed=seed, rank=2, alpha=4)["bert.encoder.layer.0.attention.self.query.lora.a.weight"]
        )

    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert torch.bfloat16 == found[0].dtype


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"rank": 0}, "field 'rank': Input should be greater than 0"),
        ({"rank": 2.5}, r"field 'rank': Input should be a valid integer \(it holds 2.5\)"),
        ({"alpha": -1}, "field 'alpha': Input should be greater than 0"),
        ({"sites": ["output_norm"]}, r"field 'sites.0': Input should be 'query', .* \(it holds 'output_norm'\)"),
        ({"sites": []}, "field 'sites': Tuple should have at least 1 item"),
    ],
    ids=str,
)
def test_bad_settings(config: dict[str, Any], message: str) -> None:
    """A setting that cannot be is refused by name."""
    with pytest.raises(ValueError, match=message):
        methods.make("lora", {"rank": 1, "alpha": 8} | config)
