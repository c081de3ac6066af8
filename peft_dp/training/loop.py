"""The one training loop: private or not, a plan decides.

A method's phases share one privacy plan and one learning-rate schedule; the
optimiser starts anew with each, since its state belongs to what trained before.
"""

from __future__ import annotations

import math
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any, NoReturn, TextIO

import torch
from torch import Tensor, nn
from tqdm import tqdm

from peft_dp import rng
from peft_dp.models.backbone import Backbone
from peft_dp.privacy import sampling
from peft_dp.privacy.gradients import check_independent
from peft_dp.privacy.noised_sum import noised_sum
from peft_dp.spec import Optimiser
from peft_dp.training.checkpoint import Checkpoint, State
from peft_dp.training.frozen_prefix import reused
from peft_dp.training.job import Job
from peft_dp.training.trail import Epoch
from peft_dp.validate import Missing


@dataclass(frozen=True)
class Trained:
    """The trail of a training, all phases, and the most bytes that an optimiser of it holds."""

    epochs: list[Epoch]
    optimiser_bytes: int


def fit(job: Job, progress: TextIO | None = None, checkpoint: Checkpoint | None = None) -> Trained:
    """Trains the job's model in place.

    Args:
        job: What to train.
        progress: Where a bar is drawn once training takes over two seconds; None for none.
        checkpoint: Where the run's state is kept, and taken from if there is one; None for neither. It does not
            change the result.

    Raises:
        FloatingPointError: The loss of a non-private run is not finite. (A private run
            goes on: stopping because of one example would tell of it.)
        Stopped: See `Checkpoint.keep`.
    """
    phases = getattr(job.method, "phases", lambda backbone, config, epochs: iter([epochs]))
    lengths = phases(job.backbone, job.config, job.spec.epochs)
    batches = rng.generator(job.spec.seed, "batches")
    noise = rng.generator(job.spec.seed, "noise", job.device)
    bar = progress_bar(job, _title(job), progress)
    job.backbone.model.train()
    versions = {name: value._version for name, value in _tensors(job.backbone).items()}
    epochs: list[Epoch] = []
    tally = Tally(job.device, job.plan.clip)
    held = end = 0
    settled = getattr(job.method, "settled", lambda backbone, config: 0)(job.backbone, job.config)
    start = time.perf_counter()
    with (
        bar,
        torch.random.fork_rng(devices=range(torch.cuda.device_count())),
        reused(job, job.spec.epochs, settled) as whole,
        checkpoint or nullcontext(),
    ):
        torch.manual_seed(rng.seed(job.spec.seed, "dropout"))
        streams = {"batches": batches, "noise": noise, "dropout": _default(job.device)}

        def state() -> State:
            """The run after a step; the stream of batches as the epoch found it, for it is drawn from as a whole."""
            changed = {name: v for name, v in _tensors(job.backbone).items() if v._version != versions.get(name)}
            drawn = {f"stream/{name}": stream.get_state() for name, stream in streams.items()}
            return State(
                changed | phase.state() | drawn | {"stream/batches": begin},
                {
                    "epochs": [asdict(epoch) for epoch in epochs],
                    "tally": tally.counts(),
                    "seconds": time.perf_counter() - start,
                    "optimiser_bytes": held,
                },
            )

        saved = checkpoint.load() if checkpoint else None
        if saved:
            epochs = [Epoch(**epoch) for epoch in saved.values["epochs"]]
            tally.restore(saved.values["tally"])
            held = saved.values["optimiser_bytes"]
            bar.update(len(epochs) * job.plan.steps_per_epoch + tally.steps)
        for length in lengths:
            end += length
            if end <= len(epochs):  # a phase that was over: what trains is arranged, its values come with the next
                continue
            if saved:
                _restore(job.backbone, saved.tensors)
            with reused(whole, length) as now:
                phase = Phase(now, len(epochs) * job.plan.steps_per_epoch + tally.steps)
                if saved:
                    phase.restore(saved.tensors)
                    for name, stream in streams.items():
                        stream.set_state(saved.tensors[f"stream/{name}"])
                    start = time.perf_counter() - saved.values["seconds"]
                    saved = None
                while len(epochs) < end:
                    begin = batches.get_state()
                    for indices in islice(sampling.epoch(job.plan, batches), tally.steps, None):
                        phase.step(noised_mean(now, indices, noise, tally))
                        bar.update()
                        if checkpoint:
                            checkpoint.keep(state)
                    epochs.append(tally.epoch(job, start))
                    start = time.perf_counter()
                    tally = Tally(job.device, job.plan.clip)
                    finite(job, epochs)
                held = max(held, phase.close())
    return Trained(epochs, held)


def _tensors(backbone: Backbone) -> dict[str, Tensor]:
    """All that a step, or a method between two phases, may change in place."""
    model = backbone.model
    named = {"parameter": model.named_parameters(), "buffer": model.named_buffers(), "mask": backbone.masks.items()}
    return {f"{kind}/{name}": value for kind, values in named.items() for name, value in values}


@torch.no_grad()
def _restore(backbone: Backbone, saved: Mapping[str, Tensor]) -> None:
    """Puts values in their places, which the same method has arranged in the same phase."""
    tensors = _tensors(backbone)
    for name, value in saved.items():
        if name.startswith(("parameter/", "buffer/", "mask/")):
            tensors[name].copy_(value)


def _default(device: str) -> torch.Generator:
    """The generator that dropout draws from."""
    cpu: torch.Generator = torch.default_generator
    return torch.cuda.default_generators[torch.cuda.current_device()] if device == "cuda" else cpu


def progress_bar(job: Job, title: str, progress: TextIO | None) -> tqdm[NoReturn]:
    """A bar of the run's steps, drawn once training takes over two seconds."""
    return tqdm(
        total=job.plan.steps, desc=title, delay=2, leave=False, disable=progress is None, file=progress, unit="step"
    )


def finite(job: Job, trail: list[Epoch]) -> None:
    """Looks at the last epoch's loss.

    Raises:
        FloatingPointError: It is not finite, and the run not private.
    """
    if not job.plan.private and trail[-1].loss is None:
        where = f"{_title(job)}: the training loss of epoch {len(trail)} is not finite"
        raise FloatingPointError(f"{where}: try a smaller optimiser.rate")


class Phase:
    """A stretch of training in which the same parameters train, with an optimiser of its own.

    The learning rate goes on from step to step of the whole run.

    Args:
        job: What to train.
        done: Steps of the run before this phase.
    """

    def __init__(self, job: Job, done: int) -> None:
        if job.plan.private:
            with _in_memory(job, [0, 1]):
                check_independent(job.backbone.model, lambda: job.losses(job.batch(job.train, [0, 1])))
        self._bound = job.spec.optimiser.max_grad_norm
        self._updated = job.backbone.updated()
        self._optimiser = _OPTIMISERS[job.spec.optimiser.name](_groups(job), job.spec.optimiser)
        factor = _factor(job.spec.optimiser, job.plan.steps)
        self._schedule = torch.optim.lr_scheduler.LambdaLR(self._optimiser, lambda step: factor(done + step))

    def step(self, gradient: dict[str, Tensor]) -> None:
        """Updates what the optimiser holds."""
        for name, parameter in self._updated.items():
            parameter.grad = gradient[name]
        if self._bound:
            torch.nn.utils.clip_grad_norm_(self._updated.values(), self._bound)
        self._optimiser.step()
        self._schedule.step()

    def state(self) -> dict[str, Tensor]:
        """What the optimiser holds; the rate follows from the number of steps."""
        held = self._optimiser.state_dict()["state"]
        return {f"optimiser/{at}/{key}": value for at, values in held.items() for key, value in values.items()}

    def restore(self, saved: Mapping[str, Tensor]) -> None:
        """Takes what `state` gave, among other tensors."""
        whole = self._optimiser.state_dict()
        parameters = [parameter for group in self._optimiser.param_groups for parameter in group["params"]]
        for name, value in saved.items():
            if name.startswith("optimiser/"):
                _, at, key = name.split("/")
                like = parameters[int(at)]
                if value.shape == like.shape:  # laid out like the parameter, as it was: sums may round by the layout
                    value = torch.empty_like(like, dtype=value.dtype, device=value.device).copy_(value)
                whole["state"].setdefault(int(at), {})[key] = value
        self._optimiser.load_state_dict(whole)

    def close(self) -> int:
        """Drops the gradients and gives the bytes that the optimiser holds."""
        self._optimiser.zero_grad()
        states = [value for state in self._optimiser.state.values() for value in state.values()]
        return sum(value.nbytes for value in states if isinstance(value, Tensor))


def noised_mean(job: Job, indices: list[int], noise: torch.Generator, tally: Tally) -> dict[str, Tensor]:
    """The gradient of one step: (clipped sum over the logical batch + noise) / batch.

    Under Poisson sampling the divisor is the expected batch, a constant: the
    actual one would tell how many examples were drawn.

    A method's penalty does not look at the data: its gradient comes after the noise.
    What a method makes of the released gradient (`release`) spends no privacy.

    Raises:
        Missing: One example alone does not fit into memory.
    """
    if begin_step := getattr(job.method, "begin_step", None):
        begin_step(job.backbone, noise)
    with _in_memory(job, indices):
        sums = noised_sum(
            job.backbone.model,
            lambda cut: job.losses(job.batch(job.train, cut)),
            job.cut(job.train, indices),
            job.plan,
            noise,
            masks=job.backbone.masks,
            watch=lambda cut, losses, norms: tally.add(job.train.count(cut), losses, norms),
        )
    tally.steps += 1
    if job.plan.private:
        tally.release(sums)
    size = job.plan.batch if job.plan.sampling == "poisson" else len(indices)
    mean = {name: value.div_(size) for name, value in sums.items()}
    if penalty := getattr(job.method, "penalty", None):
        _add_gradient(mean, penalty(job.backbone, job.config), job.backbone.trained())
    release: Callable[[Backbone, dict[str, Tensor]], dict[str, Tensor]] | None = getattr(job.method, "release", None)
    return release(job.backbone, mean) if release else mean


@contextmanager
def _in_memory(job: Job, indices: Sequence[int]) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        traceback.clear_frames(error.__traceback__)  # they hold tensors, and pytest holds its last failure
        longest = max((job.train.count([index]) for index in indices), default=0)
        where = f"{_title(job)}: {job.device} is out of memory"
        what = f"{where} with as few examples as can pass, of up to {longest} tokens"
        raise Missing(f"{what}: end what else uses it, or take a device with more") from None


def _add_gradient(mean: dict[str, Tensor], penalty: Tensor, trained: dict[str, nn.Parameter]) -> None:
    if penalty.requires_grad:
        found = torch.autograd.grad(penalty, list(trained.values()), allow_unused=True, materialize_grads=True)
        for name, gradient in zip(trained, found, strict=True):
            mean[name] += gradient


class Tally:
    """Sums over an epoch, kept on the device so that counting does not stop it."""

    def __init__(self, device: str, clip: float = math.inf) -> None:
        self.loss = torch.zeros((), device=device, dtype=torch.float64)
        self.clipped = torch.zeros((), device=device, dtype=torch.int64)
        self.square = torch.zeros((), device=device, dtype=torch.float64)
        self.tokens = self.examples = self.steps = 0
        self._clip = clip

    def add(self, tokens: int, losses: Tensor, norms: Tensor) -> None:
        """Counts a physical batch: its tokens, losses [B] and norms of gradients [B]."""
        self.loss += losses.sum()
        self.clipped += (norms > self._clip).sum()
        self.tokens += tokens
        self.examples += len(losses)

    def release(self, sums: Mapping[str, Tensor]) -> None:
        """Adds up the squares of a step's noised sums, in which the noise can be seen again."""
        self.square += torch.nn.utils.get_total_norm(sums.values()).double().square()

    def counts(self) -> dict[str, float]:
        """The sums, exactly; waits for the device."""
        return {
            "loss": self.loss.item(),
            "clipped": self.clipped.item(),
            "square": self.square.item(),
            "tokens": self.tokens,
            "examples": self.examples,
            "steps": self.steps,
        }

    def restore(self, counts: Mapping[str, Any]) -> None:
        """Takes what `counts` gave."""
        self.loss.fill_(counts["loss"])
        self.clipped.fill_(counts["clipped"])
        self.square.fill_(counts["square"])
        self.tokens, self.examples, self.steps = counts["tokens"], counts["examples"], counts["steps"]

    def epoch(self, job: Job, start: float, jobs: int = 1) -> Epoch:
        """The counts as an entry of the trail; waits for the device.

        Args:
            job: What trains.
            start: When the epoch began, by `time.perf_counter`.
            jobs: How many share the seconds since.
        """
        seen = max(self.examples, 1)
        loss, clipped, square = self.loss.item() / seen, self.clipped.item() / seen, self.square.item()
        seconds = (time.perf_counter() - start) / jobs  # only now has a GPU done what it was asked for
        released = job.backbone.count() * self.steps if job.plan.private else 0
        return Epoch(
            loss=loss if math.isfinite(loss) else None,
            clipped=clipped if job.plan.private else None,
            examples=self.examples,
            tokens=self.tokens,
            steps=self.steps,
            seconds=seconds,
            noise=math.sqrt(square / released) / job.plan.clip if released else None,
            released=released,
        )


_OPTIMISERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": lambda parameters, o: torch.optim.AdamW(parameters, lr=o.rate, weight_decay=o.weight_decay),
    "sgd": lambda parameters, o: torch.optim.SGD(parameters, lr=o.rate, weight_decay=o.weight_decay),
}


def _groups(job: Job) -> list[dict[str, Any]]:
    """What is updated, by learning rate and weight decay: a decay would move values that a mask holds."""
    own: Callable[..., dict[str, float]] = getattr(job.method, "rates", lambda backbone, config: {})
    rates, optimiser = own(job.backbone, job.config), job.spec.optimiser
    groups = defaultdict[tuple[float, float], list[nn.Parameter]](list)
    for name, parameter in job.backbone.updated().items():
        decay = 0.0 if name in job.backbone.masks else optimiser.weight_decay
        groups[rates.get(name, optimiser.rate), decay].append(parameter)
    return [{"params": group, "lr": rate, "weight_decay": decay} for (rate, decay), group in groups.items()]


def _factor(optimiser: Optimiser, steps: int) -> Callable[[int], float]:
    """Step -> factor of the rate: up over the warm-up's share of the steps, then down to 0, or level; or slanted."""
    if optimiser.schedule == "slanted":
        return lambda step: _slanted(step, steps)
    rising = optimiser.warmup * steps

    def factor(step: int) -> float:
        if step < rising:
            return step / rising
        return (steps - step) / (steps - rising) if optimiser.schedule == "linear" else 1.0

    return factor


def _slanted(step: int, steps: int) -> float:
    """Slanted triangle of Howard and Ruder 2018, equation 3: up from 1/32 over a tenth of the steps, then down to it.

    Their formula falls below 0 where a tenth of the steps is no whole number; here it stays at 1/32.
    """
    cut = max(1, steps // 10)
    height = step / cut if step < cut else max(0.0, 1 - (step - cut) / (9 * cut))
    return (1 + 31 * height) / 32


def _title(job: Job) -> str:
    private = ", private" if job.plan.private else ""
    return f"{job.spec.method} on {job.spec.task}{private}, seed {job.spec.seed}"
