"""transformers' Trainer: its loop, its loss, its optimiser and its schedule, on our batches."""

from __future__ import annotations

from collections.abc import Iterator
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from peft_dp import rng
from peft_dp.implementations._base import Library, Watch
from peft_dp.methods import Method
from peft_dp.privacy import sampling
from peft_dp.spec import Spec
from peft_dp.training.job import Job
from peft_dp.validate import Unsupported

if TYPE_CHECKING:
    from transformers import TrainerCallback

SCHEDULES = {"linear": "linear", "constant": "constant_with_warmup"}


class Trainer(Library):
    """An ordinary run by transformers' Trainer."""

    libraries = ("transformers", "accelerate")
    parts: ClassVar[int] = 1
    """Physical batches of a logical one, over which gradients accumulate."""

    def check(self, spec: Spec, method: Method) -> None:
        """Refuse what Trainer has no argument for, or reads in another way."""
        o = spec.optimiser
        if spec.privacy is not None:
            raise Unsupported("Trainer has no private training")
        if not method.plain:
            raise Unsupported(f"Trainer makes plain steps, and {spec.method} has phases, gates or a penalty")
        if spec.head != "stock":
            raise Unsupported("Trainer takes the loss of a model of transformers: take head 'stock'")
        if spec.readout == "tokens":
            raise Unsupported("the loss of transformers is a mean over the tags of a batch, ours over each example's")
        if spec.train is None or spec.train % (spec.batch * self.parts):
            whole = f"{spec.train or 'all'} examples in batches of {spec.batch}"
            raise Unsupported(f"Trainer accumulates over whole batches, which {whole} are not")
        if o.schedule not in SCHEDULES or o.name != "adamw":
            raise Unsupported(f"Trainer has AdamW and a linear or constant schedule, not {o.name} and {o.schedule}")
        if o.weight_decay:
            raise Unsupported("Trainer leaves biases and LayerNorms out of the weight decay, and the row does not")
        if o.max_grad_norm is not None:
            raise Unsupported("Trainer bounds a gradient before it shows it, so that it could not be told apart")
        if (o.warmup * spec.epochs * spec.train / spec.batch) % 1:
            raise Unsupported(f"Trainer warms up over whole steps, which {o.warmup:g} of the row's steps are not")
        if spec.dropout:
            raise Unsupported("a row for each example draws other dropout than rows that examples share: turn it off")

    def fit(self, job: Job, watch: Watch) -> None:
        """Train a job in place."""
        from transformers import PrinterCallback, Trainer, TrainingArguments

        class Batched(Trainer):
            """Trainer on batches of ours."""

            def get_train_dataloader(self) -> DataLoader[Any]:
                return DataLoader(examples, batch_sampler=_Batches(job, parts), collate_fn=_collated(job))

            def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
                indices, labels = inputs.pop("indices").tolist(), inputs["labels"]
                loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
                watch.passed(indices, job.loss(outputs.logits, labels))
                return loss

        def share(outputs: Any, labels: Tensor, num_items_in_batch: Tensor) -> Tensor:
            """Return a physical batch's part of the mean loss of the logical one."""
            return job.loss(outputs.logits, labels).sum() / num_items_in_batch

        examples: Any = range(len(job.train))
        o, parts = job.spec.optimiser, self.parts
        with TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                output_dir=folder,
                num_train_epochs=job.spec.epochs,
                per_device_train_batch_size=job.plan.batch // parts,
                gradient_accumulation_steps=parts,
                learning_rate=o.rate,
                lr_scheduler_type=SCHEDULES[o.schedule],
                warmup_steps=round(o.warmup * job.plan.steps),
                max_grad_norm=0.0,
                weight_decay=0.0,
                optim="adamw_torch",
                bf16=job.spec.precision == "bf16",
                use_cpu=job.device == "cpu",
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                disable_tqdm=True,
                remove_unused_columns=False,
            )
            model: Any = job.backbone.model
            loss = share if parts > 1 else None
            trainer = Batched(model, arguments, train_dataset=examples, compute_loss_func=loss)
            trainer.add_callback(_watcher(job, watch))
            trainer.remove_callback(PrinterCallback)
            trainer.train()


class _Batches:
    """Our order of batches, each cut into parts.

    Args:
        job: Whose batches.
        parts: Number of parts.
    """

    def __init__(self, job: Job, parts: int) -> None:
        self._job = job
        self._parts = parts
        self._source = rng.generator(job.spec.seed, "batches")
        self.batch_size = job.plan.batch // parts

    def __len__(self) -> int:
        return self._job.plan.steps_per_epoch * self._parts

    def __iter__(self) -> Iterator[list[int]]:
        for indices in sampling.epoch(self._job.plan, self._source):
            for at in range(0, len(indices), self.batch_size):
                yield indices[at : at + self.batch_size]


def _collated(job: Job) -> Any:
    def collate(indices: list[int]) -> dict[str, Tensor]:
        batch = job.train.batch(indices, job.device)
        return job.backbone.inputs(batch) | {"labels": batch.labels, "indices": torch.tensor(indices)}

    return collate


def _watcher(job: Job, watch: Watch) -> TrainerCallback:
    """Return what takes down the gradient of each step and what its update has changed."""
    from transformers import TrainerCallback

    class Watcher(TrainerCallback):
        def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
            gradient = {name: p.grad for name, p in job.backbone.trained().items() if p.grad is not None}
            watch.given(gradient, [value * job.plan.batch for value in gradient.values()])

        def on_optimizer_step(self, *_: Any, **__: Any) -> None:
            watch.stepped()

        def on_epoch_end(self, *_: Any, **__: Any) -> None:
            watch.epoch()

    return Watcher()


IMPLEMENTATION = Trainer()
