"""Tests of per-example gradients: against a loop of single examples, against vmap, and of what one example changes."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from peft_dp import Places, Spec, methods, registry
from peft_dp.methods import Method
from peft_dp.models.backbone import Backbone
from peft_dp.models.batch import IGNORED, Encoded
from peft_dp.models.view import view
from peft_dp.privacy.gradients import GAMMA, PerExample, finite_passes, per_example_pass, zeros
from peft_dp.privacy.per_example import Each, Product
from peft_dp.suite import papers
from peft_dp.training.job import build, cross_entropy, find_sources, mean_cross_entropy, square_error

from ..gradients import clipped_sum, per_example_gradients

METHODS = registry.names("methods")
FAMILIES = ("bert", "roberta", "distilbert")
CLIPPINGS = ("abadi", "automatic")
LOSSES = {"pairs": (3, cross_entropy), "regression": (1, square_error), "tokens": (3, mean_cross_entropy)}
LENGTHS = (12, 4, 7, 5, 9, 3)


@cache
def pretrained(family: str, kind: str, attention: str, width: int) -> nn.Module:
    """A tiny random model with the head that transformers gives it, dropout off."""
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoModelForTokenClassification

    sizes = (width, 2, 2, 32)
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    if family == "distilbert":
        names = ("dim", "n_layers", "n_heads", "hidden_dim")
    small = dict(zip(names, sizes, strict=True)) | {"vocab_size": 40, "max_position_embeddings": 34}
    config = AutoConfig.for_model(**registry.load("backbones", family).CONFIG | small, num_labels=LOSSES[kind][0])
    stock = AutoModelForTokenClassification if kind == "tokens" else AutoModelForSequenceClassification
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: nn.Module = stock.from_config(config, attn_implementation=attention)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model.train()


@cache
def examples(kind: str, lengths: Sequence[int]) -> Encoded:
    """Random examples of these lengths, the second half of each a second sentence; some tokens without a tag."""
    draw = torch.Generator().manual_seed(0)
    ids = [torch.randint(5, 40, (length,), generator=draw).tolist() for length in lengths]
    types = [[0] * (length // 2) + [1] * (length - length // 2) for length in lengths]
    labels = torch.randint(3, (len(lengths),), generator=draw)
    if kind == "regression":
        labels = 3.0 + labels
    elif kind == "tokens":
        labels = torch.randint(3, (len(lengths), max(lengths)), generator=draw)
        beyond = torch.arange(max(lengths)) >= torch.tensor(lengths)[:, None]
        labels[beyond | (torch.rand(labels.shape, generator=draw) < 0.2)] = IGNORED
    return Encoded(ids, types, labels, pad=1)


def additive(encoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Writes out the attention mask: transformers looks at its values, which vmap cannot do."""
    mask = kwargs["attention_mask"]
    return args, kwargs | {"attention_mask": ((1 - mask) * -1e30)[:, None, None, :]}


@dataclass(frozen=True)
class Case:
    """A model with a method in one of its phases, examples to learn from, and whether they share rows."""

    backbone: Backbone
    data: Encoded
    loss: Callable[[Tensor, Tensor], Tensor]
    packed: bool = False

    @property
    def all(self) -> list[int]:
        """The indices of all examples."""
        return list(range(len(self.data)))

    def losses(self, indices: list[int]) -> Tensor:
        """Loss of each example [B]."""
        batch = (self.data.packed if self.packed else self.data.batch)(indices, "cpu")
        return self.loss(self.backbone.logits(batch), batch.labels)

    def one_pass(self, indices: list[int], factors: Tensor | None = None) -> PerExample:
        """One pass of the engine; the losses times factors [N], if given."""
        weights = torch.ones(len(self.data)) if factors is None else factors
        model, masks = self.backbone.model, self.backbone.masks
        return per_example_pass(model, lambda: self.losses(indices) * weights[indices], len(indices), masks)

    def finite_passes(self, indices: list[int], factors: Tensor) -> list[PerExample]:
        """As `one_pass`, in halves where an example is not finite."""
        model, masks = self.backbone.model, self.backbone.masks
        return [found for _, found in finite_passes(model, lambda cut: self.losses(cut) * factors[cut], indices, masks)]

    def loop(self) -> Tensor:
        """Gradients [N, P] of examples passed one at a time, unpadded."""
        trained, masks = self.backbone.trained(), self.backbone.masks
        alone = replace(self, packed=False)
        rows = []
        for index in self.all:
            found = torch.autograd.grad(alone.losses([index]).sum(), list(trained.values()))
            named = zip(trained, found, strict=True)
            rows.append(torch.cat([(gradient * masks.get(name, 1)).flatten() for name, gradient in named]))
        return torch.stack(rows)

    def vmapped(self) -> Tensor:
        """Gradients [N, P] of padded examples by torch.func."""
        batch = self.data.batch(self.all, "cpu")

        def loss(trained: dict[str, Tensor], row: dict[str, Tensor], label: Tensor) -> Tensor:
            inputs = {name: value[None] for name, value in row.items()}
            return self.loss(functional_call(self.backbone.model, trained, (), inputs).logits, label[None]).sum()

        trained = {name: parameter.detach() for name, parameter in self.backbone.trained().items()}
        handle = self.backbone.encoder.register_forward_pre_hook(additive, with_kwargs=True)
        found = vmap(grad(loss), in_dims=(None, 0, 0))(trained, self.backbone.inputs(batch), batch.labels)
        handle.remove()
        return torch.cat([(value * self.backbone.masks.get(name, 1)).flatten(1) for name, value in found.items()], 1)

    def sums(self, parts: Sequence[PerExample], clip: float, clipping: str) -> Tensor:
        """The clipped sum [P] of a logical batch, recorded in parts."""
        sums = zeros(self.backbone.model)
        for part in parts:
            part.add_clipped(sums, clip, clipping)
        return flat(sums).double()


def cases(
    family: str,
    method: str,
    kind: str = "pairs",
    *,
    lengths: Sequence[int] = LENGTHS,
    attention: str = "sdpa",
    width: int = 16,
) -> Iterator[Case]:
    """A method in each of its phases, in float32; what trains or is updated is moved off its start."""
    example: Method = methods.load(method).EXAMPLE
    backbone = view(copy.deepcopy(pretrained(family, kind, attention, width)))
    backbone.readout = "tokens" if kind == "tokens" else "cls"
    backbone.freeze()
    draw = torch.Generator().manual_seed(1)
    example.install(backbone, draw)
    for _ in example.phases(backbone, 2):
        backbone.model.float()
        with torch.no_grad():
            for name, parameter in (backbone.updated() | backbone.trained()).items():
                scale = 0.5 * parameter.abs() + 0.05
                parameter.add_(scale * torch.randn(parameter.shape, generator=draw) * backbone.masks.get(name, 1))
        example.begin_step(backbone, draw)
        for packed in (False, True)[: 1 + (backbone.packs and attention == "sdpa")]:
            backbone.model.float()
            yield Case(backbone, examples(kind, lengths), LOSSES[kind][1], packed)


def flat(sums: dict[str, Tensor]) -> Tensor:
    """The tensors of a sum in a row."""
    return torch.cat([value.flatten() for value in sums.values()])


def norms(found: PerExample) -> Tensor:
    """Norms [B] without the gradients."""
    return torch.stack([part.square_norm() for part in found.parts.values()]).sum(0).sqrt()


def gap(found: Tensor, expected: Tensor) -> float:
    """The largest error of an example, relative to its whole gradient or norm."""
    found, expected = (values.double().reshape(len(values), -1) for values in (found, expected))
    return ((found - expected).norm(dim=1) / expected.norm(dim=1)).max().item()


def cut(indices: list[int], draw: torch.Generator) -> list[list[int]]:
    """A logical batch in a random order, cut at random into physical ones."""
    order = [indices[i] for i in torch.randperm(len(indices), generator=draw)]
    size = int(torch.randint(len(order) // 4 + 1, len(order) + 2, (), generator=draw))
    return [order[at : at + size] for at in range(0, len(order), size)]


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_equals_loop(family: str, method: str, kind: str) -> None:
    """In every phase gradients and ghost norms are those of examples passed alone, in float32 and in float64."""
    for case in cases(family, method, kind):
        single = case.one_pass(case.all)
        case.backbone.model.double()
        double, expected = case.one_pass(case.all), case.loop()

        assert gap(double.each(), expected) <= 1e-10
        assert gap(single.each(), expected) <= 1e-5
        assert gap(norms(double), expected.norm(dim=1)) <= 1e-9
        assert gap(norms(single), expected.norm(dim=1)) <= 1e-4


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("method", METHODS)
def test_equals_vmap(method: str, kind: str) -> None:
    """Per-example gradients of padded examples are those of torch.func's vmap over grad."""
    for case in cases("bert", method, kind, attention="eager"):
        case.backbone.model.double()

        assert gap(case.one_pass(case.all).each(), case.vmapped()) <= 1e-10


@pytest.mark.parametrize("lengths", [(2, 2, 2), (30, 11, 30)])
@pytest.mark.parametrize("method", METHODS)
def test_ghost_norms(method: str, lengths: tuple[int, ...]) -> None:
    """Norms found without forming gradients are those of the gradients formed, for short and long examples."""
    for case in cases("bert", method, "tokens", lengths=lengths, width=64):
        for dtype, bound in ((torch.float32, 1e-4), (torch.float64, 1e-9)):
            case.backbone.model.to(dtype)
            recorded = case.one_pass(case.all)

            assert gap(norms(recorded), recorded.each().norm(dim=1)) <= bound


def test_ghost_norms_of_real_weights() -> None:
    """On MiniLM's own weights a norm in float32 is never too short, and little too long, so that few are cut more."""
    spec = papers.find("embedded/smoke/full-dp/sentiment").spec
    job = build(spec, find_sources(spec, Places(device="cpu")))
    batch = job.batch(job.train, range(24))
    short, whole = (
        norms(per_example_pass(job.backbone.model.to(dtype), lambda: job.losses(batch), 24)).double()
        for dtype in (torch.float32, torch.float64)
    )
    over = short / whole - 1
    print(f"\nnorms in float32 over those in float64: {over.min():.1e} to {over.max():.1e} of themselves")

    assert over.min() >= -1e-6
    assert over.max() <= 1e-3


@pytest.mark.parametrize(
    "allow",
    [
        lambda: torch.set_float32_matmul_precision("high"),
        lambda: torch.set_float32_matmul_precision("medium"),
        lambda: setattr(torch.backends.cuda.matmul, "allow_tf32", True),
        lambda: setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32"),
        lambda: setattr(torch.backends.mkldnn.matmul, "fp32_precision", "bf16"),  # type: ignore[attr-defined]
        lambda: os.environ.update(NVIDIA_TF32_OVERRIDE="1"),
    ],
    ids=["high", "medium", "allow_tf32", "cuda", "mkldnn", "cublas"],
)
def test_coarse_products(allow: Callable[[], None]) -> None:
    """No norm is taken where float32 may be multiplied in a coarser type, until the error's remedy."""
    case = next(cases("bert", "bitfit", "pairs"))
    allow()
    try:
        with pytest.raises(ValueError, match="torch may make products of float32 in a coarser type such as TF32"):
            case.one_pass(case.all)
    finally:
        torch.set_float32_matmul_precision("highest")
        os.environ.pop("NVIDIA_TF32_OVERRIDE", None)

    assert case.one_pass(case.all).norms.isfinite().all()


def test_both_branches() -> None:
    """At 30 tokens the model of the ghost norms has linear weights of both kinds, formed and never formed."""
    case = next(cases("bert", "full", "tokens", lengths=(30, 11, 30), width=64))
    layer = "bert.encoder.layer.0."
    parts = case.one_pass(case.all).parts

    assert isinstance(parts[layer + "attention.self.query.weight"], Product)
    assert isinstance(parts[layer + "intermediate.dense.weight"], Each)


@pytest.mark.parametrize("seed", range(20))
def test_cancelling_norm(seed: int) -> None:
    """A gradient whose terms all but cancel, its ghost norm lost in rounding, still moves a sum by the clip at most."""
    generator = torch.Generator().manual_seed(seed)
    layer, clip = nn.Linear(256, 256, bias=False), 0.01
    common, little = (torch.randn(1, size, 256, generator=generator) for size in (1, 8))
    x = 100 * common / common.norm() + 0.01 * little / little.norm()
    signs = torch.tensor([1.0, -1.0]).repeat(4)
    found = per_example_pass(layer, lambda: (layer(x)[..., 0] * signs).sum(1), 1)
    sums = zeros(layer)
    found.add_clipped(sums, clip, "abadi")

    assert isinstance(found.parts["weight"], Product)
    assert sums["weight"].norm() <= clip * (1 + 1e-5)


@pytest.mark.parametrize("apart", [0.0002, 0.0003, 0.0005, 0.001, 0.002])
@pytest.mark.parametrize("size", [1.3, 130.0])
def test_cancelling_norm_of_like_values(size: float, apart: float) -> None:
    """So does one whose inner products sum equal terms, which all round the same way."""
    layer, clip = nn.Linear(256, 256, bias=False), 0.01
    signs = torch.tensor([1.0, -1.0]).repeat(32)
    x = (size * (1 + apart * signs))[None, :, None].expand(1, 64, 256)
    found = per_example_pass(layer, lambda: (layer(x).sum(2) * signs).sum(1), 1)
    sums = zeros(layer)
    found.add_clipped(sums, clip, "abadi")

    assert isinstance(found.parts["weight"], Product)
    assert sums["weight"].norm() <= clip * (1 + 1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_masks(method: str) -> None:
    """Entries outside a mask are zero, count in no norm and enter no sum, whatever trains."""
    draw = torch.Generator().manual_seed(2)
    for case in cases("bert", method):
        model = case.backbone.model.double()
        whole = case.one_pass(case.all).each()
        trained, held = case.backbone.trained(), case.backbone.masks
        masks = {name: torch.rand(p.shape, generator=draw) < 0.5 for name, p in trained.items()}
        masks |= {name: masks[name] & mask for name, mask in held.items()}
        found = per_example_pass(model, partial(case.losses, case.all), len(case.all), masks)
        expected = whole * flat(masks)
        sums = zeros(model)
        lengths = found.add_clipped(sums, 0.1, "abadi")

        assert gap(found.each(), expected) <= 1e-10
        assert gap(lengths, expected.norm(dim=1)) <= 1e-9
        torch.testing.assert_close(flat(sums), (0.1 / lengths).clamp(max=1) @ expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("clipping", CLIPPINGS)
@pytest.mark.parametrize("method", METHODS)
def test_clipped_sum(method: str, clipping: str) -> None:
    """The clipped sum is that of the loop, however the logical batch is cut."""
    for case in cases("bert", method):
        case.backbone.model.double()
        each = case.loop()
        lengths = each.norm(dim=1)
        for splits in (1, 2, 4):
            parts = [case.one_pass(case.all[at::splits]) for at in range(splits)]
            for clip in (1e-3, 1.0, float("inf")):
                if clipping == "automatic" and clip == float("inf"):
                    continue
                factors = clip / (lengths + GAMMA) if clipping == "automatic" else (clip / lengths).clamp(max=1)
                torch.testing.assert_close(case.sums(parts, clip, clipping), factors @ each, rtol=0, atol=1e-10)


@pytest.mark.parametrize("method", METHODS)
def test_sensitivity(method: str) -> None:
    """Removing any one example changes the clipped sum by at most the clip, by all of it where that is small.

    One example's loss is not a number; its removal changes nothing.
    """
    draw = torch.Generator().manual_seed(3)
    lengths = tuple(torch.randint(2, 13, (24,), generator=draw).tolist())
    factors = torch.ones(24)
    factors[0] = float("nan")
    for case in cases("bert", method, lengths=lengths):
        for dtype, slack in ((torch.float32, 1e-5), (torch.float64, 1e-9)):
            case.backbone.model.to(dtype)
            for _ in range(5):
                size = int(torch.randint(1, 17, (), generator=draw))
                batch = torch.randperm(24, generator=draw)[:size].tolist()
                whole, rest = (
                    [found for part in cut(b, draw) for found in case.finite_passes(part, factors)]
                    for b in (batch, batch[1:])
                )
                for clip in (1e-3, 10 ** (4 * torch.rand((), generator=draw).item() - 3), 10.0):
                    for clipping in CLIPPINGS:
                        change = (case.sums(whole, clip, clipping) - case.sums(rest, clip, clipping)).norm().item()
                        assert change <= clip * (slack if batch[0] == 0 else 1 + slack)
                        if clipping == "abadi" and clip == 1e-3 and batch[0] != 0:
                            assert change >= clip * (1 - slack)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("method", METHODS)
def test_lost_example(method: str, value: float) -> None:
    """An example whose gradient is not finite, or too long for float32, changes nothing."""
    for case in cases("bert", method):
        factors = torch.ones(len(case.data))
        factors[2] = value
        rest = [i for i in case.all if i != 2]
        for clipping in CLIPPINGS:
            found = case.sums(case.finite_passes(case.all, factors), 0.1, clipping)
            expected = case.sums([case.one_pass(rest)], 0.1, clipping)

            assert (found - expected).norm() <= 1e-6 * expected.norm()


@pytest.mark.parametrize("method", METHODS)
def test_lost_states(method: str) -> None:
    """An example whose hidden states are not finite changes nothing."""

    def poison(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Tensor) -> Tensor:
        bad = (kwargs["input_ids"] == 39)[..., None]
        return torch.cat([output[:, : -bad.shape[1]], output[:, -bad.shape[1] :].masked_fill(bad, float("nan"))], dim=1)

    for case in cases("bert", method):
        ids = [[39 if i == 2 else min(token, 38) for token in row] for i, row in enumerate(case.data.ids)]
        case = replace(case, data=replace(case.data, ids=ids))
        rest = [i for i in case.all if i != 2]
        expected = case.sums([case.one_pass(rest)], 0.1, "abadi")
        handle = case.backbone.embeddings.register_forward_hook(poison, with_kwargs=True)
        found = case.sums(case.finite_passes(case.all, torch.ones(len(case.data))), 0.1, "abadi")
        handle.remove()

        assert (found - expected).norm() <= 1e-6 * expected.norm()


@pytest.mark.parametrize("method", METHODS)
def test_job(spec: Callable[..., Spec], places: Places, method: str) -> None:
    """A job's gradients and clipped sum are those of its examples passed alone, a linear head reading the mean."""
    config = methods.load(method).EXAMPLE.model_dump(mode="json")
    made = spec(method=method, config=config, task="inference", readout="mean", dropout=False)
    job = build(made, find_sources(made, places))
    job.backbone.model.double().train()
    case = Case(job.backbone, job.train, job.loss)
    each, batch = case.loop(), job.train.batch(case.all, "cpu")
    part = clipped_sum(job, batch, 0.1)

    assert gap(per_example_gradients(job, batch), each) <= 1e-10
    assert gap(part.norms, each.norm(dim=1)) <= 1e-9
    torch.testing.assert_close(part.losses, case.losses(case.all), rtol=1e-10, atol=0)
    torch.testing.assert_close(flat(part.sums), (0.1 / part.norms).clamp(max=1) @ each, rtol=0, atol=1e-10)
