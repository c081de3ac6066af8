"""How many operations a step hands to the device: what a GPU waits for where a step is small."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModel

from peft_dp import methods, rng
from peft_dp.backbones.bert import FAMILY
from peft_dp.models.backbone import Backbone, Classifier
from peft_dp.models.batch import Encoded
from peft_dp.privacy.noised_sum import noised_sum
from peft_dp.privacy.plan import Plan
from peft_dp.training.job import cross_entropy

LAYERS = 24
EXAMPLES = list(range(8))


class Counted(TorchDispatchMode):
    """Counts what is dispatched, but for views, which ask nothing of a device.

    Attributes:
        names: Of what was dispatched.
    """

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if not func.is_view:
            self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def backbone(method: str) -> Backbone:
    """A BERT of 24 tiny layers with a method installed."""
    torch.manual_seed(0)
    shape = AutoConfig.for_model(
        "bert",
        hidden_size=16,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        intermediate_size=32,
        vocab_size=100,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    encoder = AutoModel.from_config(shape, add_pooling_layer=False)
    model = Classifier(encoder, 16, 2, "cls", torch.Generator().manual_seed(0))
    made = Backbone(model.train(), encoder, FAMILY, [model.head])
    made.freeze()
    methods.make(method, {}).install(made, torch.Generator().manual_seed(0))
    return made


def data() -> Encoded:
    """Eight sentences of 5 to 8 tokens."""
    draw = torch.Generator().manual_seed(1)
    ids = [torch.randint(5, 100, (5 + at % 4,), generator=draw).tolist() for at in EXAMPLES]
    return Encoded(ids, [[0] * len(each) for each in ids], torch.arange(len(ids)) % 2, 0)


def operations(method: str, *, private: bool) -> tuple[int, int]:
    """Operations of a gradient, and of its bare forward and backward pass."""
    made = backbone(method)
    batch = data().packed(EXAMPLES, "cpu")
    size, options = len(EXAMPLES), {"clip": 1.0, "noise_multiplier": 1.0} if private else {}
    plan = Plan(
        examples=80,
        batch=size,
        steps=10,
        steps_per_epoch=10,
        sampling="poisson",
        sample_rate=0.1,
        **options,  # type: ignore[arg-type]
    )

    def losses(_: list[int]) -> Tensor:
        return cross_entropy(made.logits(batch), batch.labels)

    noise = rng.generator(0, "noise")
    noised_sum(made.model, losses, [EXAMPLES], plan, noise, divisor=size)  # what is made once is there then
    with Counted() as whole:
        noised_sum(made.model, losses, [EXAMPLES], plan, noise, divisor=size)
    with Counted() as bare:
        torch.autograd.grad(losses(EXAMPLES).sum(), list(made.trained().values()))
    return len(whole.names), len(bare.names)


def test_private_bias_steps() -> None:
    """A private step of BitFit has at most 1.2 times the operations of an ordinary one, and of a bare pass."""
    private, bare = operations("bitfit", private=True)
    plain, _ = operations("bitfit", private=False)

    assert private <= 1.2 * plain
    assert private <= 1.2 * bare


@pytest.mark.parametrize("method", ["bitfit", "full"])
def test_ordinary_steps(method: str) -> None:
    """An ordinary step on one physical batch has hardly an operation that the bare pass has not."""
    plain, bare = operations(method, private=False)

    assert plain <= bare + 10


def test_shared_gradient() -> None:
    """Two parameters that are added have a gradient each, so that what changes one in place does not change both."""

    class Added(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))

    model = Added()
    plan = Plan(examples=4, batch=2, steps=1, steps_per_epoch=1, sampling="shuffle", sample_rate=0.5)
    found = noised_sum(model, lambda cut: (model.a + model.b).sum() * torch.ones(2), [[0, 1]], plan, torch.Generator())
    found["a"][0] = 0

    assert found["a"].tolist() == [0.0, 2.0, 2.0]
    assert found["b"].tolist() == [2.0, 2.0, 2.0]
