"""Models and losses that the engine refuses, and how often it looks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from peft_dp.privacy.noised_sum import noised_sum

from .engine_cases import bert, engine, flat, plan, regression, small


@pytest.mark.parametrize("place", [0, 1])
def test_check_is_blind_to_values(place: int) -> None:
    """An example that is not finite does not stop the run at its first step either, wherever it stands."""
    case = small()
    made = engine(case.model)
    indices = next(made.batches())
    made.backward(lambda i: case.losses(i) / torch.tensor([index != indices[place] for index in i]), indices)

    assert 1 == made.ledger()["steps"]
    assert flat(list(case.gradients().values())).isfinite().all()


class Convolution(nn.Module):
    """A convolution, for which there is no rule."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(1, 2, 3)
        self.head = nn.Linear(6, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs [B, 1] of inputs [B, 5]."""
        found: Tensor = self.head(self.convolution(inputs[:, None]).flatten(1))
        return found


class Repeated(nn.Module):
    """A layer called a number of times, and a head."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times
        self.layer = nn.Linear(5, 5)
        self.head = nn.Linear(5, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs [B, 1] of inputs [B, 5]."""
        for _ in range(self.times):
            inputs = self.layer(inputs)
        found: Tensor = self.head(inputs)
        return found


class Beside(nn.Module):
    """A layer whose weight is used once more, without a call."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(5, 5), nn.Linear(5, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 1] of x [B, 5]."""
        found: Tensor = self.head(functional.linear(self.layer(x).tanh(), self.layer.weight))
        return found


class Bounded(nn.Module):
    """An embedding that shortens what is looked up."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(9, 4, max_norm=0.1), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 1] of x [B, 5]."""
        found: Tensor = self.head(self.table(x.abs().long().clamp(max=8)).mean(1))
        return found


def normalised(place: int, *, trained: bool) -> nn.Module:
    """Two layers and, at that place, a batch norm."""
    layers = [nn.Linear(5, 5), nn.Linear(5, 1)]
    layers.insert(place, nn.BatchNorm1d(5).requires_grad_(trained))  # type: ignore[arg-type]
    return nn.Sequential(*layers)


class Added(nn.Module):
    """Adds in place to what a layer gives."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.top = nn.Linear(5, 7), nn.Linear(7, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, 1]."""
        y = self.layer(x)
        y += 1
        found: Tensor = self.top(y)
        return found


CHANGED = "the output of a module that trains is changed in place, so its gradient cannot be told: "
REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "trained batch norm": (
        lambda: normalised(1, trained=True),
        "1 is a batch norm, which mixes examples: call its eval(), or exchange it",
    ),
    "frozen batch norm below what trains": (
        lambda: normalised(0, trained=False),
        "0 is a batch norm, which mixes examples: call its eval(), or exchange it",
    ),
    "used beside its call": (Beside, "layer.weight is used beside the call of its module, which its rule does not see"),
    "in place": (
        lambda: nn.Sequential(nn.Linear(5, 7), nn.ReLU(inplace=True), nn.Linear(7, 1)),
        f"{CHANGED}set inplace=False on 1",
    ),
    "in place, an input kept": (
        lambda: nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Hardtanh(inplace=True), nn.Linear(7, 1)),
        f"{CHANGED}set inplace=False on 2",
    ),
    "in place, by hand": (Added, f"{CHANGED}write x = x + y in place of x += y"),
    "max_norm": (Bounded, "table has a max_norm, so a look-up changes its weights without noise: leave it out"),
    "nothing trains": (lambda: nn.Linear(5, 1).requires_grad_(False), "the losses depend on nothing that trains: let"),
    "convolution": (
        Convolution,
        "convolution.weight trains, but there is no rule for Conv1d: freeze it, or let the module compute with a "
        "leading example axis, [B, ...] for [...], and say so by `example_axis = True`",
    ),
    "called twice": (lambda: Repeated(2), "layer is called twice in one forward pass, which its rule does not cover"),
    "not called": (lambda: Repeated(0), "layer has trained parameters, but is not called: freeze it, or call it"),
    "half": (
        lambda: nn.Linear(5, 1).half(),
        "weight is torch.float16, too coarse for norms and noise: train it in float32",
    ),
    "bfloat": (
        lambda: nn.Linear(5, 1).bfloat16(),
        "weight is torch.bfloat16, too coarse for norms and noise: train it in floa",
    ),
}


@pytest.mark.parametrize(("make", "said"), REFUSED.values(), ids=REFUSED)
def test_refused_model(make: Callable[[], nn.Module], said: str) -> None:
    """A model whose examples' gradients cannot be told apart or noised is refused at its first step by its place."""
    case = regression(make())
    made = engine(case.model)
    with pytest.raises(ValueError) as caught:
        made.backward(case.losses, next(made.batches()))

    assert str(caught.value).startswith(said)
    assert not case.gradients()
    assert 0 == made.ledger()["steps"]


def test_batch_norm_in_eval() -> None:
    """A frozen batch norm in evaluation mode does not mix examples and is let through."""
    model = normalised(1, trained=False)
    model[1].eval()  # type: ignore[index]
    case = regression(model)
    made = engine(model)
    made.backward(case.losses, next(made.batches()))

    assert case.gradients().keys() == case.trained().keys()


def test_batch_norm_back_in_training() -> None:
    """A batch norm let through in evaluation mode is refused once the model is put back into training mode."""
    model = normalised(1, trained=False)
    model[1].eval()  # type: ignore[index]
    case = regression(model)
    made = engine(model)
    batches = made.batches()
    made.backward(case.losses, next(batches))
    model.train()
    held = [buffer.clone() for buffer in model.buffers()]
    with pytest.raises(ValueError, match="1 is a batch norm, which mixes examples: call its eval"):
        made.backward(case.losses, next(batches))

    assert 1 == made.ledger()["steps"]
    assert all(torch.equal(buffer, old) for buffer, old in zip(model.buffers(), held, strict=True))


@pytest.mark.parametrize(
    ("reduce", "shape"), [(torch.mean, "()"), (lambda losses: losses[:, None], "(5, 1)")], ids=["mean", "column"]
)
def test_not_one_loss_each(reduce: Callable[[Tensor], Tensor], shape: str) -> None:
    """Losses that are not one for each example are refused with their shape."""
    case = small()
    with pytest.raises(ValueError) as caught:
        noised_sum(case.model, lambda i: reduce(case.losses(i)), [list(range(5))], plan(), torch.Generator())

    assert f"losses have shape {shape}, but must be one for each of 5 examples" == str(caught.value)


@pytest.mark.parametrize("start", [1, 2, 3, 5])
def test_mixing_from_a_later_step_on(start: int) -> None:
    """Losses that begin to mix examples at some step are refused at the next step of 1, 2, 4, 8, ... at the latest."""
    case = small()
    made = engine(case.model, epochs=4)
    step = 0

    def losses(indices: Sequence[int]) -> Tensor:
        found = case.losses(indices)
        return found if step < start else found + found.mean()

    mixed = False
    for indices in made.batches():
        step += 1
        try:
            made.backward(losses, indices)
        except ValueError as error:
            mixed = "the loss of one example has a gradient at another" in str(error)
            break

    assert mixed
    assert min(power for power in (1, 2, 4, 8) if power >= start) == step


def test_checks_are_few() -> None:
    """Looking again at the losses takes a few passes of two examples, not one at each step."""
    case, passes = small(), []
    made = engine(case.model, epochs=30, physical=24)
    for indices in made.batches():
        made.backward(lambda i: passes.append(len(i)) or case.losses(i), indices)  # type: ignore[func-returns-value]

    assert made.steps == 90
    assert len(passes) <= made.steps + 3 * 7


def test_gradient_checkpointing() -> None:
    """Gradient checkpointing is refused with what to do."""
    model = bert().model
    for module in model.modules():
        if hasattr(module, "gradient_checkpointing"):
            module.gradient_checkpointing = True  # type: ignore[assignment]
    with pytest.raises(ValueError, match="gradient checkpointing runs modules twice per pass"):
        engine(model)
