"""Exact checks of libraries without a training, in seconds: what their users' gradients and losses rest on."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.libraries

EXAMPLES, TOKENS, WIDTH = 5, 4, 6


def attention():
    """Opacus's attention, of a sequence to itself."""
    from opacus.layers import DPMultiheadAttention
    from torch import nn

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = DPMultiheadAttention(WIDTH, 2, batch_first=True)

        def forward(self, x: Any) -> Any:
            return self.layer(x, x, x)[0]

    return Attention()


def recurrent():
    """Opacus's LSTM."""
    from opacus.layers import DPLSTM
    from torch import nn

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = DPLSTM(WIDTH, 3, batch_first=True)

        def forward(self, x: Any) -> Any:
            return self.layer(x)[0]

    return Recurrent()


@dataclass
class Layer:
    """A layer that Opacus has a rule for.

    Attributes:
        make: Makes it, given torch.nn.
        indices: Whether it takes token ids in place of values.
        shape: Of one example's input.
        ours: Whether this project has a rule for it too.
    """

    make: Callable[[Any], Any]
    shape: tuple[int, ...] = (TOKENS, WIDTH)
    indices: bool = False
    ours: bool = False


LAYERS = {
    "linear": Layer(lambda nn: nn.Linear(6, 3), (WIDTH,), ours=True),
    "linear over tokens": Layer(lambda nn: nn.Linear(6, 3), ours=True),
    "linear without bias": Layer(lambda nn: nn.Linear(6, 3, bias=False), ours=True),
    "layer norm": Layer(lambda nn: nn.LayerNorm(6), ours=True),
    "embedding": Layer(lambda nn: nn.Embedding(7, 3), (TOKENS,), indices=True, ours=True),
    "embedding with padding": Layer(lambda nn: nn.Embedding(7, 3, padding_idx=0), (TOKENS,), indices=True, ours=True),
    "group norm": Layer(lambda nn: nn.GroupNorm(2, 4)),
    "instance norm": Layer(lambda nn: nn.InstanceNorm1d(4, affine=True)),
    "convolution 1d": Layer(lambda nn: nn.Conv1d(4, 3, 2)),
    "convolution 2d": Layer(lambda nn: nn.Conv2d(2, 3, 2), (2, TOKENS, WIDTH)),
    "attention": Layer(lambda _: attention()),
    "recurrent": Layer(lambda _: recurrent()),
}


def model_of(layer: Layer):
    """A model in float64, an input, and what the loss of each example is multiplied with."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    model = nn.Sequential(layer.make(nn)).double()
    shape = (EXAMPLES, *layer.shape)
    x = torch.randint(7, shape) if layer.indices else torch.randn(shape, dtype=torch.float64)
    return model, x, torch.linspace(0.02, 2, EXAMPLES, dtype=torch.float64)


def losses(outputs, weights):
    """Losses [B]."""
    return outputs.flatten(1).square().mean(1) * weights


def each_alone(model, x, weights):
    """Gradients [B, P], each by a backward pass of its example alone: neither ours nor Opacus's."""
    import torch

    found = []
    for at in range(EXAMPLES):
        model.zero_grad()
        losses(model(x[at : at + 1]), weights[at : at + 1]).sum().backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    model.zero_grad()
    return torch.stack(found)


def by_opacus(model, x, weights, clip, mode):
    """The clipped sum [P] by Opacus, without noise."""
    import torch
    from opacus.grad_sample import GradSampleModule
    from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import GradSampleModuleFastGradientClipping
    from opacus.optimizers import DPOptimizer
    from opacus.optimizers.optimizer_fast_gradient_clipping import DPOptimizerFastGradientClipping
    from opacus.utils.fast_gradient_clipping_utils import DPTensorFastGradientClipping

    sgd = torch.optim.SGD(model.parameters(), lr=0.0)
    options: Any = {
        "noise_multiplier": 0.0,
        "max_grad_norm": clip,
        "expected_batch_size": EXAMPLES,
        "loss_reduction": "sum",
    }
    if mode == "hooks":
        made: Any = GradSampleModule(model, loss_reduction="sum")
        optimiser: Any = DPOptimizer(sgd, **options)
        losses(made(x), weights).sum().backward()
    else:
        made = GradSampleModuleFastGradientClipping(
            model, use_ghost_clipping=True, max_grad_norm=clip, loss_reduction="sum"
        )
        optimiser = DPOptimizerFastGradientClipping(sgd, **options)
        DPTensorFastGradientClipping(made, optimiser, losses(made(x), weights), "sum").backward()
    optimiser.step()
    found = torch.cat([p.summed_grad.flatten() for p in model.parameters()])
    made.remove_hooks()
    return found


def by_ours(model, x, weights, clip):
    """The clipped sum [P] by this project."""
    import torch

    from peft_dp.privacy.gradients import per_example_pass, zeros

    sums = zeros(model)
    per_example_pass(model, lambda: losses(model(x), weights), EXAMPLES).add_clipped(sums, clip, "abadi")
    return torch.cat([value.flatten() for value in sums.values()])


@pytest.mark.parametrize("mode", ["hooks", "ghost"])
@pytest.mark.parametrize("name", LAYERS)
def test_clipped_sum(name, mode):
    """Opacus's clipped sum of each kind of layer, beside gradients of examples passed alone, and beside ours."""
    import torch

    pytest.importorskip("opacus")
    layer = LAYERS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Opacus's own, of backward hooks
        model, x, weights = model_of(layer)
        gradients = each_alone(model, x, weights)
        norms = gradients.norm(dim=1)
        clip = float(norms.mean())  # some are longer, and some are not
        expected = (clip / (norms + 1e-6)).clamp(max=1.0) @ gradients  # Opacus adds 1e-6 to a norm
        found = by_opacus(model, x, weights, clip, mode)

    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    if layer.ours:
        exact = (clip / norms).clamp(max=1.0) @ gradients
        torch.testing.assert_close(by_ours(model, x, weights, clip), exact, rtol=1e-9, atol=1e-12)


def bert(kind: str = "AutoModelForSequenceClassification", labels: int = 3):
    """A small BERT with random weights."""
    import torch
    import transformers

    torch.manual_seed(0)
    shape = transformers.AutoConfig.for_model(
        "bert", hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, vocab_size=50
    )
    shape.num_labels = labels
    return getattr(transformers, kind).from_config(shape).eval()


def sentences(number: int = 6):
    """Arguments of a model: sentences of different lengths, padded."""
    import torch

    draw = torch.Generator().manual_seed(1)
    lengths = torch.arange(number) % 4 + 3
    mask = (torch.arange(7) < lengths[:, None]).long()
    return {"input_ids": torch.randint(1, 50, (number, 7), generator=draw) * mask, "attention_mask": mask}


@pytest.mark.parametrize(
    "state", ["unmerged", "merged", "merged and unmerged", "saved and loaded", "with dropout in evaluation"]
)
def test_peft_lora(state, tmp_path: Path):
    """Logits of peft's LoRA are those of ours with the same values, whatever was done to it."""
    peft = pytest.importorskip("peft")
    import torch

    from peft_dp import attach
    from peft_dp.methods._common import LowRank

    plain = bert()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's own
        dropout = 0.5 if state == "with dropout in evaluation" else 0.0
        config = peft.LoraConfig(r=2, lora_alpha=8, target_modules=["query", "value"], lora_dropout=dropout)
        theirs = peft.get_peft_model(plain, config).eval()
        zero = [p for name, p in theirs.named_parameters() if "lora_B" in name]
        assert not any(p.any() for p in zero)
        ours = bert()
        attach(ours, "lora", rank=2, alpha=8.0)
        draw = torch.Generator().manual_seed(2)
        for path, module in ours.named_modules():
            if isinstance(module, LowRank):
                wrapped: Any = theirs.get_submodule(f"base_model.model.{path.removesuffix('.lora')}")
                with torch.no_grad():
                    for mine, other in ((module.a, wrapped.lora_A), (module.b, wrapped.lora_B)):
                        value = 0.3 * torch.randn(mine.weight.shape, generator=draw)
                        mine.weight.copy_(value)
                        other["default"].weight.copy_(value)
        if state == "merged":
            theirs = theirs.merge_and_unload()
        elif state == "merged and unmerged":
            theirs.merge_adapter()
            theirs.unmerge_adapter()
        elif state == "saved and loaded":
            theirs.save_pretrained(tmp_path)
            theirs = peft.PeftModel.from_pretrained(bert(), tmp_path).eval()
    inputs = sentences()

    torch.testing.assert_close(theirs(**inputs).logits, ours(**inputs).logits, rtol=1e-5, atol=1e-6)
    assert (bert()(**inputs).logits - ours(**inputs).logits).abs().max() > 1e-3


def gradient_of_trainer(parts: int, folder: Path, loss: Any = None):
    """The gradient [P] that Trainer gives the optimiser for a batch of 6, in so many physical ones."""
    import torch
    import transformers

    model, inputs = bert(), sentences()
    labels = torch.arange(6) % 3
    data: Any = [{name: values[at] for name, values in inputs.items()} | {"labels": labels[at]} for at in range(6)]
    found = []

    class Watcher(transformers.TrainerCallback):
        def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
            found.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))

    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=1,
        per_device_train_batch_size=6 // parts,
        gradient_accumulation_steps=parts,
        max_grad_norm=0.0,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    trainer = transformers.Trainer(model, arguments, train_dataset=data, compute_loss_func=loss, callbacks=[Watcher()])
    trainer.remove_callback(transformers.PrinterCallback)
    with torch.random.fork_rng():
        trainer.train()
    return found[0]


def share(outputs, labels, num_items_in_batch):
    """A physical batch's part of the mean loss of the logical one."""
    from torch.nn import functional

    return functional.cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch


@pytest.mark.parametrize("parts", [2, 3])
def test_trainer_accumulates(parts, tmp_path: Path):
    """With a loss that divides by what Trainer passes it, accumulation gives the gradient of the whole batch."""
    pytest.importorskip("accelerate")
    import torch

    whole, parted = gradient_of_trainer(1, tmp_path), gradient_of_trainer(parts, tmp_path, share)

    torch.testing.assert_close(parted, whole, rtol=1e-4, atol=1e-7)


@pytest.mark.xfail(
    reason="a model's own loss ignores the number that Trainer passes it, and Trainer divides by nothing else",
    strict=True,
    raises=AssertionError,
)
def test_trainer_accumulates_own_loss(tmp_path: Path):
    """With BERT's own loss, accumulation gives the gradient of the whole batch."""
    pytest.importorskip("accelerate")
    import torch

    whole, parted = gradient_of_trainer(1, tmp_path), gradient_of_trainer(2, tmp_path)

    torch.testing.assert_close(parted, whole, rtol=1e-4, atol=1e-7)


def test_entity_loss():
    """The loss of transformers is a mean over the tags of a batch; ours of each example's own, for privacy's sake."""
    import torch

    from peft_dp.models.batch import IGNORED
    from peft_dp.training.job import mean_cross_entropy

    model, inputs = bert("AutoModelForTokenClassification"), sentences()
    labels = torch.where(inputs["attention_mask"] == 1, inputs["input_ids"] % 3, IGNORED)
    output = model(**inputs, labels=labels)
    ours, tags = mean_cross_entropy(output.logits, labels), (labels != IGNORED).sum(1)

    torch.testing.assert_close(output.loss, (ours * tags).sum() / tags.sum())
    assert (output.loss - ours.mean()).abs() > 1e-4
