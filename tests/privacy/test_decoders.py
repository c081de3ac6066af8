"""Tests of decoders under `attach` and the engine: GPT-2's and Llama's families, classes and language modelling."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

import peft_dp
from peft_dp import Privacy, PrivacyEngine, rng
from peft_dp.models.decoders import FAMILIES
from peft_dp.privacy.gradients import check_independent, finite_passes, per_example_pass, zeros
from peft_dp.suite.audit import attack
from peft_dp.suite.audit.attack import Target

LENGTHS = (9, 4, 7, 2, 6, 3)
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
GPT2 = {
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 2,
    "n_inner": 24,
    "attn_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "resid_pdrop": 0.0,
}
NORMS = {"biases": [], "gammas": ["attention_norm", "output_norm"]}
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("lora", {"rank": 2, "alpha": 4}),
    "lora everywhere": (
        "lora",
        {"rank": 2, "alpha": 4, "sites": ["query", "key", "value", "attention_output", "intermediate", "output"]},
    ),
    "biases": ("bitfit", {}),
    "norms": ("bitfit", NORMS),
    "adapters": ("adapter", {"bottleneck": 4}),
    "full": ("full", {}),
    "head": ("head", {}),
}
TASKS = ("classes", "language")
CASES = [
    (family, method, task)
    for family in ("gpt2", "llama")
    for method in METHODS
    for task in TASKS
    if (family, method) != ("llama", "biases") and (method, task) != ("head", "language")
]
ALIKE = [(family, method, "language") for family in ("mistral", "qwen2") for method in ("lora everywhere", "norms")]


def clipped_sum(gradients: Tensor, clip: float) -> Tensor:
    """The sum [P] of gradients [N, P], each cut to a clip."""
    return (gradients * (clip / gradients.norm(dim=1)).clamp(max=1)[:, None]).sum(0)


class Case:
    """A tiny random decoder with a method on it, and examples of several lengths."""

    def __init__(self, family: str, method: str, task: str, dtype: torch.dtype = torch.float64) -> None:
        torch.manual_seed(0)
        sizes = GPT2 if family == "gpt2" else SMALL | {"num_key_value_heads": 1, "attention_dropout": 0.0}
        config = AutoConfig.for_model(
            family, vocab_size=30, pad_token_id=0, bos_token_id=1, eos_token_id=2, tie_word_embeddings=False, **sizes
        )
        config.num_labels = 3
        kind = AutoModelForSequenceClassification if task == "classes" else AutoModelForCausalLM
        self.task = task
        self.model: Any = kind.from_config(config, attn_implementation="eager").to(dtype).train()
        name, settings = METHODS[method]
        self.trained = peft_dp.attach(self.model, name, **settings)
        with torch.no_grad():
            for parameter in self.trained.values():
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
        self.ids = torch.zeros(len(LENGTHS), max(LENGTHS), dtype=torch.long)
        for row, length in enumerate(LENGTHS):
            self.ids[row, :length] = torch.randint(3, 30, (length,))
        self.labels = torch.randint(3, (len(LENGTHS),))
        self.factors = torch.ones(len(LENGTHS), dtype=dtype)

    def losses(self, indices: Sequence[int], width: int = max(LENGTHS)) -> Tensor:
        """Loss of each example [B]: of its class, or the mean over its own tokens that follow one."""
        some = list(indices)
        ids = self.ids[some, :width]
        mask = (ids != 0).long()
        places = torch.arange(ids.shape[1]).expand_as(ids)
        logits = self.model(input_ids=ids, attention_mask=mask, position_ids=places, use_cache=False).logits
        if self.task == "classes":
            return functional.cross_entropy(logits, self.labels[some], reduction="none") * self.factors[some]
        found = functional.cross_entropy(logits[:, :-1].mT, ids[:, 1:], reduction="none") * mask[:, 1:]
        return found.sum(1) / mask[:, 1:].sum(1) * self.factors[some]

    def loop(self) -> Tensor:
        """Gradients [N, P] of examples passed one at a time, unpadded."""
        rows = []
        for index, length in enumerate(LENGTHS):
            found = torch.autograd.grad(self.losses([index], length).sum(), [*self.trained.values()], allow_unused=True)
            named = zip(self.trained.values(), found, strict=True)
            rows.append(torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in named]))
        return torch.stack(rows)


@pytest.mark.parametrize(("family", "method", "task"), CASES + ALIKE)
def test_gradients(family: str, method: str, task: str) -> None:
    """Every example's gradient, its norm and the clipped sum are those of a loop over examples passed alone."""
    case = Case(family, method, task)
    every = list(range(len(LENGTHS)))
    found, alone = per_example_pass(case.model, lambda: case.losses(every), len(every)), case.loop()
    sums = zeros(case.model)
    found.add_clipped(sums, 0.7, "abadi")

    torch.testing.assert_close(found.each(), alone, rtol=1e-4, atol=1e-6)  # an RMSNorm computes in float32
    torch.testing.assert_close(found.norms, alone.norm(dim=1), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(sums.flat, clipped_sum(alone, 0.7), rtol=1e-4, atol=1e-6)
    check_independent(case.model, lambda: case.losses([0, 1]))


@pytest.mark.parametrize(("family", "method", "task"), CASES)
def test_neighbour(family: str, method: str, task: str) -> None:
    """One example more, as large as one likes or not finite, moves the clipped sum by no more than a clip."""
    case, clip = Case(family, method, task), 0.01
    others = list(range(len(LENGTHS) - 1))

    def summed(indices: list[int], factor: float) -> Tensor:
        case.factors[-1] = factor
        sums = zeros(case.model)
        for _, part in finite_passes(case.model, case.losses, indices, {}):
            part.add_clipped(sums, clip, "abadi")
        return sums.flat

    without = summed(others, 1.0)
    for factor in (1.0, 1e6):
        moved = (summed([*others, len(others)], factor) - without).norm()
        assert moved == pytest.approx(clip, rel=1e-3)
    for factor in (float("nan"), float("inf")):
        torch.testing.assert_close(summed([*others, len(others)], factor), without, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(("family", "method", "task"), CASES)
def test_released(family: str, method: str, task: str) -> None:
    """A step of the engine sets the clipped sum of its batch, with the noise of its seed, over the expected batch."""
    case = Case(family, method, task)
    privacy = Privacy(epsilon=4.0, delta=0.01, clip=0.3, accountant="rdp")
    engine = PrivacyEngine(case.model, privacy, examples=len(LENGTHS), batch=3, epochs=1, seed=0)
    batch = next(engine.batches())
    alone = case.loop()[batch]
    engine.backward(lambda indices: case.losses(indices), batch)
    noised = torch.cat([(p.grad if p.grad is not None else p * 0).flatten() for p in case.trained.values()])
    sigma = engine.ledger()["noise_multiplier"] * privacy.clip
    draws = rng.normal(rng.generator(0, "noise"), [*case.trained.values()], sigma)
    expected = (clipped_sum(alone, privacy.clip) + torch.cat([draw.flatten() for draw in draws])) / 3

    torch.testing.assert_close(noised, expected, rtol=1e-4, atol=1e-6)


def target(case: Case, canaries: int) -> Target:
    """A decoder as what is attacked; a canary's row is one of its examples, cut to two tokens."""

    def losses(rows: list[int]) -> Tensor:
        return case.losses([row % len(LENGTHS) for row in rows], 2 if rows[0] < canaries else max(LENGTHS))

    def cut(rows: list[int]) -> list[list[int]]:
        planted, whole = ([row for row in rows if (row < canaries) is own] for own in (True, False))
        return [*(planted[at : at + 128] for at in range(0, len(planted), 128)), whole]

    return Target(canaries + len(LENGTHS), case.model, case.trained, losses, cut)


@pytest.mark.parametrize(("family", "method", "task"), CASES)
def test_audit(family: str, method: str, task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An attack finds the mu of the noise that is claimed, and refutes the claim where there is none."""
    case = Case(family, method, task, torch.float32)
    canaries = min(400, sum(p.numel() for p in case.trained.values()))
    privacy = Privacy(epsilon=4.0, delta=0.01, clip=0.3, accountant="rdp")
    found = attack.attack(target(case, canaries), privacy, canaries, seed=0)
    monkeypatch.setattr(rng, "normal", lambda source, like, size: [torch.zeros_like(one) for one in like])
    broken = attack.attack(target(case, canaries), privacy, canaries, seed=0)

    assert not found.alarms
    assert abs(found.mu - 0.5) < 5 * 2 / (3 * canaries) ** 0.5
    assert broken.alarms


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("task", TASKS)
def test_attached(family: str, task: str) -> None:
    """LoRA starts as the model was, and merged it gives the same logits; a language model's head stays frozen."""
    case = Case(family, "lora everywhere", task, torch.float32)
    case.model.eval()
    before = case.losses([0, 1, 2])
    frozen = [name for name, p in case.model.named_parameters() if "lm_head" in name and p.requires_grad]
    merged = copy.deepcopy(case.model)
    peft_dp.merge(merged)
    case.model = merged

    assert not frozen
    torch.testing.assert_close(case.losses([0, 1, 2]), before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "method", "settings", "words"),
    [
        ("llama", "bitfit", {}, "LlamaModel has no bias: name gammas to train, or take lora"),
        ("gpt2", "adapter", {"bottleneck": 4, "placement": "pfeiffer"}, "take placement 'houlsby'"),
        (
            "gpt2",
            "slash",
            {"size": 8},
            "slash is not made for decoders such as .*: take adapter, bitfit, full",
        ),
        ("llama", "warp", {"length": 2}, "warp is not made for decoders"),
    ],
)
def test_refused(family: str, method: str, settings: dict[str, Any], words: str) -> None:
    """What makes no sense on a decoder says so, and leaves the model as it was."""
    sizes = GPT2 if family == "gpt2" else SMALL
    model: nn.Module = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, vocab_size=30, **sizes))

    with pytest.raises(ValueError, match=words):
        peft_dp.attach(model, method, **settings)
    assert all(parameter.requires_grad for parameter in model.parameters())
