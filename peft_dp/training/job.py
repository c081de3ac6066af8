"""From a spec to a job: everything found, checked and put together; nothing trained yet."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from peft_dp import methods, registry, rng, tasks
from peft_dp.machine import Places
from peft_dp.methods import Method
from peft_dp.models import kept
from peft_dp.models.backbone import Backbone, load
from peft_dp.models.batch import BUDGETS, IGNORED, Batch, Encoded
from peft_dp.models.family import Family
from peft_dp.models.source import Random, Source, check_shape
from peft_dp.models.source import files_sha256 as hash_of_files
from peft_dp.models.tokens import encode
from peft_dp.privacy.plan import Plan, calibrate
from peft_dp.spec import Spec
from peft_dp.tasks import Data, Kind, Task
from peft_dp.validate import Missing


@dataclass(frozen=True)
class Examples:
    """The examples of a run, which nobody needs as text once their tokens are kept.

    Attributes:
        sha256: Their hash, see `tasks.Data`.
        train: Number of those that train.
        encoded: Gives their tokens, of the training examples and of the scored ones.
    """

    sha256: str
    train: int
    encoded: Callable[[], tuple[Encoded, Encoded]]


@dataclass(frozen=True, kw_only=True)
class Sources:
    """What a spec names, found and checked, before any long work.

    Attributes:
        task: The task.
        examples: Its examples, cut to the spec's numbers.
        files: The folder of the backbone's files, their hash checked; or a random draw in its shape.
        weights_sha256: Hash of the weights, or "random".
        files_sha256: Hash of the configuration's and the tokenizer's files, or "random".
        family: Where the backbone's sites are.
        method: What trains, with its settings.
        plan: Noise, clip, rate and steps.
        device: "cpu" or "cuda".
    """

    task: Task
    examples: Examples
    files: Path | Random
    weights_sha256: str
    files_sha256: str
    family: Family
    method: Method
    plan: Plan
    device: str


@dataclass(frozen=True, kw_only=True)
class Job:
    """The only thing that holds tensors: a model with its method installed, and what it learns from.

    Attributes:
        method: What trains, with its settings and hooks.
        packed: Whether examples share rows.
        loss: Logits [B, C] and labels [B], or [B, T, C] and [B, T], to losses [B].
    """

    spec: Spec
    task: Task
    plan: Plan
    method: Method
    backbone: Backbone
    train: Encoded
    dev: Encoded
    device: str
    packed: bool
    loss: Callable[[Tensor, Tensor], Tensor]

    @property
    def secret(self) -> bool:
        """Whether nobody may repeat the run or see its exact course: private, with secret noise or data."""
        return self.plan.private and (self.spec.secret or not self.task.public)

    @property
    def title(self) -> str:
        """What the run is called in messages."""
        private = ", private" if self.plan.private else ""
        return f"{self.spec.method} on {self.spec.task}{private}, seed {self.spec.seed}"

    def cut(self, data: Encoded, indices: Sequence[int]) -> Iterator[list[int]]:
        """Cuts a logical batch of training or dev examples into physical ones."""
        return (data.split if self.packed else data.cut)(indices, BUDGETS[self.device])

    def batch(self, data: Encoded, indices: Sequence[int]) -> Batch:
        """A physical batch."""
        return (data.packed if self.packed else data.batch)(indices, self.device)

    def losses(self, batch: Batch) -> Tensor:
        """Loss of each example [B]."""
        return self.loss(self.logits(batch), batch.labels)

    def logits(self, batch: Batch) -> Tensor:
        """As `Backbone.logits`, in the run's precision."""
        if self.spec.precision == "fp32":
            return self.backbone.logits(batch)
        with torch.autocast(self.device, torch.bfloat16), _attention(self.device):
            return self.backbone.logits(batch).float()


@contextmanager
def _attention(device: str) -> Iterator[None]:
    """How attention in bfloat16 is computed.

    On a GPU not by cuDNN, which prepares a kernel for each shape, and every batch has another number of rows; on a
    CPU by plain matrix products: torch's fused kernel there is 10 times slower.
    """
    if device != "cpu":
        with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):
            yield
        return
    flags = torch.backends.cuda  # which holds this one for a CPU too
    before = flags.fp16_bf16_reduction_math_sdp_allowed()  # type: ignore[no-untyped-call]
    flags.allow_fp16_bf16_reduction_math_sdp(True)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        flags.allow_fp16_bf16_reduction_math_sdp(before)


def find_sources(spec: Spec, places: Places) -> Sources:
    """Finds and checks all that a spec names, cheapest first.

    Raises:
        ValueError: An unknown name, a setting the method does not have, a damaged file, a batch larger than the data.
        Missing: Data, weights or a device that this machine lacks.
    """
    method = methods.make(spec.method, spec.config)
    backbone = registry.load("backbones", spec.backbone)
    task = tasks.find(spec.task)
    if (task.kind == "tokens") != (spec.readout == "tokens"):
        need = "the readout 'tokens'" if task.kind == "tokens" else "a readout other than 'tokens'"
        raise ValueError(f"task {spec.task!r} needs {need}, not {spec.readout!r}: take a row for such tasks")
    device = find_device(spec, places.device)
    held = tasks.files(spec.task, places.data)
    data = None if held else _read(spec, places)
    if data:
        calibrate(spec, len(data.train))  # a batch that is larger than the data is said before weights are looked for
    files, weights_sha256, files_sha256 = find_files(spec, backbone, places.backbones)
    encoded = partial(_encoded, files_sha256, task, files, spec.max_length, spec.readout)
    if data:
        examples = Examples(data.sha256, len(data.train), partial(encoded, data))
    else:
        examples = _kept(spec, places, held, files_sha256, encoded)
    plan = calibrate(spec, examples.train)
    return Sources(
        task=task,
        examples=examples,
        files=files,
        weights_sha256=weights_sha256,
        files_sha256=files_sha256,
        family=backbone.FAMILY,
        method=method,
        plan=plan,
        device=device,
    )


def find_files(spec: Spec, backbone: ModuleType, folder: Path | None) -> tuple[Path | Random, str, str]:
    """Return what a backbone is loaded from, the hash of its weights and that of its other files."""
    if spec.weights == "random":
        return Random(spec.backbone), "random", "random"
    source: Source = backbone.SOURCE
    files, sha256 = source.locate(folder)
    # A smaller model of the same family may stand for it but in a row of a paper.
    names = backbone.CONFIG if spec.budget == "paper" else ["model_type"]
    check_shape(files, {name: backbone.CONFIG[name] for name in names})
    return files, sha256, hash_of_files(files)


@cache
def _pinned(name: str, folder: Path | None) -> Data:
    """Return the examples of a task of the registry, read once: what they are is pinned."""
    return tasks.load(name, folder)


def find_device(spec: Spec, asked: str) -> str:
    """Return the device that a run takes.

    Raises:
        Missing: This machine lacks it.
    """
    if asked == "auto" and spec.budget != "paper":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if asked == "cpu":
        return "cpu"
    if not torch.cuda.is_available():
        why = "the paper budget needs a GPU" if asked == "auto" else "device 'cuda' was asked for"
        raise Missing(f"{why}, but torch {torch.__version__} sees no CUDA device: run it where nvidia-smi lists one")
    return "cuda"


def build(spec: Spec, sources: Sources) -> Job:
    """Loads the backbone, gives it a head and installs the method."""
    backbone = installed(spec, sources.files, sources.family, sources.task, sources.method)
    backbone.to(sources.device)
    train, dev = sources.examples.encoded()
    longest = max(*train.lengths, *dev.lengths)
    if longest > backbone.positions:
        raise ValueError(
            f"backbone {spec.backbone!r} in {sources.files} has {backbone.positions} positions, but the data has "
            f"sentences of {longest} tokens: give files with more, or cut them with a smaller max_length"
        )
    return Job(
        spec=spec,
        task=sources.task,
        plan=sources.plan,
        method=sources.method,
        backbone=backbone,
        train=train,
        dev=dev,
        device=sources.device,
        packed=backbone.packs,
        loss=LOSSES[sources.task.kind],
    )


def installed(spec: Spec, files: Path | Random, family: Family, task: Task, method: Method) -> Backbone:
    """Return the backbone of those files with a head for the task and the method in place, before the first step."""
    draw = rng.generator(spec.seed, "initialisation")
    backbone = load(
        files,
        family,
        outputs=task.outputs,
        head=spec.head,
        readout=spec.readout,
        dropout=spec.dropout,
        rng=draw,
    )
    backbone.freeze()
    method.install(backbone, draw)
    return backbone


def _read(spec: Spec, places: Places) -> Data:
    read = tasks.load if tasks.is_own(spec.task) else _pinned
    return read(spec.task, places.data).subset(spec.train, spec.dev)


def _kept(
    spec: Spec,
    places: Places,
    held: Sequence[Path],
    files_sha256: str,
    encoded: Callable[[Data], tuple[Encoded, Encoded]],
) -> Examples:
    """Return the examples whose tokens are kept, or read them and have their tokens kept once they are made."""
    cut = spec.task, spec.train, spec.dev, spec.max_length, spec.readout, files_sha256, version("tokenizers")
    key = kept.key(tasks.source(spec.task).__name__, held, *cut)
    if found := kept.find(key):
        return Examples(found.data_sha256, len(found.train), lambda: (found.train, found.dev))
    data = _read(spec, places)

    def kept_too() -> tuple[Encoded, Encoded]:
        train, dev = encoded(data)
        kept.keep(key, kept.Kept(data.sha256, train, dev))
        return train, dev

    return Examples(data.sha256, len(data.train), kept_too)


@lru_cache(maxsize=2)
def _encoded(
    files_sha256: str, task: Task, files: Path | Random, max_length: int, readout: str, data: Data
) -> tuple[Encoded, Encoded]:
    """Return the training and the dev examples, tokenised once for all seeds and methods that follow one another.

    The hash of the tokenizer's files makes the cache see a change of theirs.
    """
    train, dev = (encode(split, task, files, max_length, readout) for split in (data.train, data.dev))
    return train, dev


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Losses [B] of logits [B, C] and class indices [B]."""
    return functional.cross_entropy(logits, labels, reduction="none")


def square_error(logits: Tensor, labels: Tensor) -> Tensor:
    """Losses [B] of outputs [B, 1] and scores [B]."""
    return (logits.squeeze(-1) - labels).square()


def mean_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Losses [B] of logits [B, T, C] and tags [B, T]: the mean over an example's own tagged tokens.

    Why not the mean over all tagged tokens of a batch, as transformers has it: an
    example's loss, and so its clipped gradient, would depend on the other examples.
    """
    losses = functional.cross_entropy(logits.mT, labels, ignore_index=IGNORED, reduction="none")
    return losses.sum(1) / (labels != IGNORED).sum(1).clamp(min=1)


LOSSES: dict[Kind, Callable[[Tensor, Tensor], Tensor]] = {
    "classification": cross_entropy,
    "regression": square_error,
    "tokens": mean_cross_entropy,
}
