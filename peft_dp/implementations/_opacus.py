"""Opacus as its users run it: `make_private`, its data loader, its physical batches, its optimiser, its accountant.

Its draws are ours: its sampler has our generator of batches, and each tensor of noise that it asks for is the next
part of our own flat draw, times the standard deviation that it asks for.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.data import DataLoader, TensorDataset

from peft_dp import rng
from peft_dp.implementations._base import Library, Watch
from peft_dp.methods import Method
from peft_dp.spec import Spec
from peft_dp.training.job import Job
from peft_dp.training.phase import OPTIMISERS, rate_factor
from peft_dp.validate import Missing, Unsupported

PHYSICAL = 32
"""Most examples of a physical batch."""


class Opacus(Library):
    """A private run by Opacus."""

    libraries = ("opacus",)
    mode: ClassVar[str]
    """How it finds per-example gradients: "hooks" or "ghost"."""

    def norms(self, module: Any, trained: Sequence[nn.Parameter]) -> Tensor:
        """Return the norms [B] of the gradients of the physical batch that went through last."""
        raise NotImplementedError

    def check(self, spec: Spec, method: Method) -> None:
        """Refuse what Opacus has no argument for, or reads in another way."""
        if spec.privacy is None:
            raise Unsupported("Opacus makes private runs, and this one has no privacy")
        if (spec.privacy.clipping, spec.privacy.sampling) != ("abadi", "poisson"):
            raise Unsupported("Opacus clips by Abadi's rule and draws by Poisson sampling, and this run does not")
        if not method.plain:
            raise Unsupported(f"Opacus makes plain steps, and {spec.method} has phases, gates or a penalty")
        if spec.train is None or spec.train % spec.batch:
            where = f"{spec.train or 'all'} examples in batches of {spec.batch}"
            raise Unsupported(f"Opacus's sample rate is 1 / len(loader), which {where} do not give")
        if spec.optimiser.max_grad_norm is not None:
            raise Unsupported("Opacus has no bound on the mean gradient, and this run has optimiser.max_grad_norm")
        if spec.dropout:
            raise Unsupported("a row for each example draws other dropout than rows that examples share: turn it off")

    def fit(self, job: Job, watch: Watch) -> None:
        """Train a job in place."""
        from opacus import PrivacyEngine
        from opacus.utils.batch_memory_manager import BatchMemoryManager

        trained: list[Any] = [*job.backbone.trained().values()]
        noise, criterion = _Noise(job, trained), _Criterion(job)
        optimiser = OPTIMISERS[job.spec.optimiser.name](trained, job.spec.optimiser)
        with _quiet(), _told(job):
            engine = PrivacyEngine(accountant=job.plan.accountant)
            module, private, loss_of, loader = _private(engine, self.mode, job, optimiser, criterion, noise.generator)
            schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, rate_factor(job.spec.optimiser, job.plan.steps))
            account = private.step_hook

            def made(step: Any) -> None:
                account(step)
                summed = [parameter.summed_grad for parameter in trained]
                drawn = noise.taken()[-len(trained) :]
                released = [total + part for total, part in zip(summed, drawn, strict=True)] if drawn else summed
                given = zip(job.backbone.trained(), trained, strict=True)
                watch.given({name: parameter.grad for name, parameter in given}, summed, released)

            def updated(*_: Any) -> None:
                watch.stepped()
                schedule.step()

            private.attach_step_hook(made)
            optimiser.register_step_post_hook(updated)
            shared = BatchMemoryManager(data_loader=loader, max_physical_batch_size=PHYSICAL, optimizer=private)
            with shared as batches:
                for _ in range(job.spec.epochs):
                    for inputs, labels, indices in batches:
                        with torch.autocast(job.device, torch.bfloat16, enabled=job.spec.precision == "bf16"):
                            output = module(**inputs)
                        loss_of(output, labels).backward()
                        watch.passed(indices.tolist(), criterion.losses, partial(self.norms, module, trained))
                        with noise:
                            private.step()
                        private.zero_grad()
                    watch.epoch()
        module.remove_hooks()
        _check_account(engine.accountant.history, job)


def _private(
    engine: Any, mode: str, job: Job, optimiser: torch.optim.Optimizer, criterion: nn.Module, noise: torch.Generator
) -> tuple[Any, Any, Callable[..., Any], Any]:
    """Return what `make_private` makes of the model, the optimiser, the loss and the loader."""
    if job.backbone.masks or job.backbone.updates:
        raise Unsupported(f"Opacus trains whole parameters, and {job.spec.method} trains parts of them")
    examples = TensorDataset(torch.arange(len(job.train)))
    module, private, *wrapped, loader = engine.make_private(
        module=job.backbone.model,
        optimizer=optimiser,
        criterion=criterion,
        data_loader=DataLoader(examples, batch_size=job.plan.batch, collate_fn=_collated(job)),
        noise_multiplier=job.plan.noise_multiplier,
        max_grad_norm=job.plan.clip,
        noise_generator=noise,
        grad_sample_mode=mode,
    )
    # Not the loader's generator, from which it draws a number of its own in each epoch.
    loader.batch_sampler.generator = rng.generator(job.spec.seed, "batches")
    return module, private, (wrapped or [criterion])[0], loader


def _check_account(history: list[tuple[float, float, int]], job: Job) -> None:
    """Check that Opacus's accountant counts the steps that were planned.

    Raises:
        Unsupported: It counts others.
    """
    plan = job.plan
    planned = plan.noise_multiplier, plan.sample_rate, plan.steps
    if len(history) != 1 or any(abs(one - other) > 1e-9 for one, other in zip(history[0], planned, strict=True)):
        raise Unsupported(f"opacus {version('opacus')} accounts for {history} (noise, rate, steps), planned: {planned}")


class _Criterion(nn.Module):
    """The loss of a job, in the shape in which Opacus takes one.

    Attributes:
        reduction: "mean", or "none" while Opacus asks for each.
        losses: Those [B] of the physical batch that went through last.
    """

    def __init__(self, job: Job) -> None:
        super().__init__()
        self.reduction = "mean"
        self._job = job

    def forward(self, output: Any, labels: Tensor) -> Tensor:
        """Return the mean loss, or the loss of each example [B]."""
        logits = output if isinstance(output, Tensor) else output.logits
        self.losses = self._job.loss(logits.float(), labels)
        return self.losses if self.reduction == "none" else self.losses.mean()


class _Noise(TorchFunctionMode):
    """Answers a draw of normal values from a run's stream of noise with the next part of the run's own flat draw.

    Attributes:
        generator: Whoever draws from it gets that.
    """

    def __init__(self, job: Job, like: Sequence[Tensor]) -> None:
        super().__init__()
        self.generator = rng.of_steps(job.spec.seed, job.device)["noise"]
        self._like = like
        self._left: list[Tensor] = []
        self._drawn: list[Tensor] = []

    def taken(self) -> list[Tensor]:
        """Return the noise that was drawn since this was asked last."""
        drawn, self._drawn = self._drawn, []
        return drawn

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func is not torch.normal or kwargs.get("generator") is not self.generator:
            return func(*args, **kwargs)
        if not self._left:
            self._left = list(rng.normal(self.generator, self._like, 1.0))
        part = self._left.pop(0) * kwargs["std"] + kwargs["mean"]
        self._drawn.append(part)
        return part.view(kwargs["size"])


def _collated(job: Job) -> Callable[[list[tuple[Tensor]]], tuple[dict[str, Tensor], Tensor, Tensor]]:
    """Return what makes a padded batch of examples: the model's arguments, the labels, and their indices."""

    def collate(examples: list[tuple[Tensor]]) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        indices = torch.cat([index[None] for (index,) in examples])
        batch = job.train.batch(indices.tolist(), job.device)
        return job.backbone.inputs(batch), batch.labels, indices

    return collate


@contextmanager
def _told(job: Job) -> Iterator[None]:
    """Turn what Opacus raises, of many kinds, into one.

    Raises:
        Unsupported: Opacus does not take the model.
    """
    try:
        yield
    except (Missing, Unsupported, torch.OutOfMemoryError):
        raise
    except Exception as error:
        words = (
            f"opacus {version('opacus')} cannot run {job.title}: {type(error).__name__}: {' '.join(str(error).split())}"
        )
        raise Unsupported(words[:400]) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Opacus on seeded noise, and torch on backward hooks at modules whose input has no gradient."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Secure RNG turned off")
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        yield
