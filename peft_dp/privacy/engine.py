"""Private gradients for a training loop of one's own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any
from weakref import finalize, ref

from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

from peft_dp import rng, validate
from peft_dp.models.backbone import trained_parameters
from peft_dp.privacy import sampling
from peft_dp.privacy.gradients import Losses, check_independent, laid_out
from peft_dp.privacy.noised_sum import noised_sum
from peft_dp.privacy.plan import ledger, private_plan
from peft_dp.spec import Privacy


class PrivacyEngine:
    """Private gradients for a training loop of one's own: DP-SGD with Poisson sampling (Abadi et al. 2016).

        engine = PrivacyEngine(model, Privacy(epsilon=8, delta=1e-5), examples=len(data), batch=64, epochs=3)
        for indices in engine.batches():
            engine.backward(losses, indices)
            optimiser.step()

    Args:
        model: Those of its parameters train that require a gradient, at each step.
        privacy: The budget of all steps together.
        examples: Number of training examples N.
        batch: Expected number of examples per step.
        epochs: Number of epochs, of floor(N / batch) steps each.
        physical: Most examples that pass through the model at once; changes memory, not results.
        seed: Makes a run repeatable and, noise and batches being known then, not private.

    Raises:
        ValueError: A count that is no whole number, a batch larger than the data, gradient checkpointing, or shuffled
            batches, whose epsilon no accountant here gives.
    """

    def __init__(
        self,
        model: nn.Module,
        privacy: Privacy,
        *,
        examples: int,
        batch: int,
        epochs: int,
        physical: int = 32,
        seed: int | None = None,
    ) -> None:
        validate.count(examples=examples, batch=batch, epochs=epochs, physical=physical)
        if any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
            raise ValueError(
                "gradient checkpointing runs modules twice per pass, so that examples cannot be told apart: switch it "
                "off in the model, and save memory by a smaller physical"
            )
        if privacy.sampling != "poisson":
            raise ValueError(f"sampling {privacy.sampling!r} has no accountant here: take 'poisson'")
        self._model = model
        self._plan = private_plan(privacy, examples, batch, epochs)
        self._physical = physical
        self._seeded = seed is not None
        device = str(next(model.parameters()).device)
        self._batches = rng.Entropy() if seed is None else rng.generator(seed, "batches")
        self._noise = rng.Entropy() if seed is None else rng.generator(seed, "noise", device)
        self._drawn = self._steps = 0
        self._batch: list[int] = []
        self._checked: tuple[set[str], set[str]] | None = None  # names of what trained, and was in training mode, then
        self._check_at = 1  # the step before which the losses are checked again
        self._given: dict[str, Tensor] = {}  # name of a parameter -> the gradient that it was given last
        _watch_optimisers(self)

    @property
    def steps(self) -> int:
        """Number of steps of the whole training."""
        return self._plan.steps

    def resume(self, steps: int) -> None:
        """Count steps that an earlier process has made and released, before the first batch of this one.

        Raises:
            ValueError: This engine has made other steps, or the training has fewer.
        """
        if not self._steps:
            self._drawn = self._steps = steps
        if steps != self._steps or not 0 <= steps <= self._plan.steps:
            made = f"{self._steps} of {self._plan.steps} steps"
            raise ValueError(f"{steps} steps cannot be counted, the engine has made {made}: resume a new one")

    def batches(self) -> Iterator[list[int]]:
        """The logical batches, as example indices; one may be empty, and is a step like any other.

        Raises:
            ValueError: The batch before was not passed to `backward`: leaving out a step by its data tells of the data.
        """
        while self._drawn < self._plan.steps:
            for indices in sampling.epoch(self._plan, self._batches):
                self._expect(self._drawn == self._steps, f"batch {self._drawn} was not passed to backward")
                if self._drawn == self._plan.steps:  # where an earlier loop broke off within an epoch
                    return
                self._drawn += 1
                self._batch = indices
                yield indices

    def backward(self, losses: Losses, indices: Sequence[int]) -> None:
        """Set the `grad` of every trained parameter to (sum of clipped gradients + noise) / expected batch.

        That the loss of one example depends on no other is checked on two examples before steps 1, 2, 4, 8, ..., and
        when other parameters train or a module's mode has changed. Losses that mix examples between these steps only
        are not seen. An optimiser that then meets another gradient in the model is stopped before it makes its step.

        Args:
            losses: Example indices -> loss of each [B], none depending on another example.
            indices: What `batches` gave.

        Raises:
            ValueError: Called other than once for each batch; or as `noised_sum`. No gradient is set then.
        """
        self._expect(self._steps == self._drawn - 1, "backward was called without a new batch")
        self._expect(list(indices) == self._batch, "backward was given other examples than were drawn")
        # The mode too: a batch norm that was in evaluation mode mixes examples once a loop calls train().
        now = set(trained_parameters(self._model)), {name for name, m in self._model.named_modules() if m.training}
        if (now != self._checked or self._drawn >= self._check_at) and len(indices) > 1:
            check_independent(self._model, lambda: losses(list(indices[:2])))
            self._checked, self._check_at = now, 2 * self._drawn
        cuts = [list(indices[at : at + self._physical]) for at in range(0, len(indices), self._physical)]
        found = noised_sum(self._model, losses, cuts, self._plan, self._noise, divisor=self._plan.batch)
        self._steps += 1
        parameters = dict(self._model.named_parameters())
        self._given = {name: laid_out(gradient, parameters[name]) for name, gradient in found.items()}
        for name, parameter in parameters.items():
            parameter.grad = self._given.get(name)

    def ledger(self) -> dict[str, Any]:
        """Epsilon spent so far, and all that it follows from."""
        found = ledger(self._plan, self._steps, seeded=self._seeded)
        return found | {"physical_batch": f"{self._physical} examples"}

    def _expect(self, right: bool, wrong: str) -> None:
        if not right:
            raise ValueError(f"{wrong}: call it once for each batch that batches() gives, empty ones too")

    def _check_step(self, optimiser: Optimizer) -> None:
        """Raise ValueError if an optimiser is about to use a gradient that `backward` did not set."""
        held = {id(parameter) for group in optimiser.param_groups for parameter in group["params"]}
        for name, parameter in self._model.named_parameters():
            if id(parameter) in held and parameter.grad is not None and parameter.grad is not self._given.get(name):
                raise ValueError(
                    f"the gradient of {name} is not the one that backward set, so it has no noise: "
                    "change gradients in place only, and delete the engine before training on without privacy"
                )


def _watch_optimisers(engine: PrivacyEngine) -> None:
    """Have every step of every optimiser checked, as long as the engine is there."""
    there = ref(engine)

    def check(optimiser: Optimizer, *_: object) -> None:
        if (engine := there()) is not None:
            engine._check_step(optimiser)

    finalize(engine, register_optimizer_step_pre_hook(check).remove)
