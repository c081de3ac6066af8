"""transformers' Trainer with private steps: Poisson batches, `PrivacyEngine`'s gradients, the ledger in the logs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader
from transformers import Trainer

from peft_dp.methods import _attached
from peft_dp.privacy.engine import PrivacyEngine
from peft_dp.spec import Privacy

OwnLosses = Callable[[Any, Tensor], Tensor]
"""The model's output and the labels of a batch -> the loss of each example [B], none depending on another example."""


def shifted_losses(output: Any, labels: Tensor) -> Tensor:
    """Return the loss of each sequence [B] of a language model: the mean over its own tokens, given those before."""
    losses = functional.cross_entropy(output.logits[:, :-1].mT, labels[:, 1:], reduction="none")
    return losses.sum(1) / (labels[:, 1:] != -100).sum(1).clamp(min=1)


def own_losses(output: Any, labels: Tensor) -> Tensor:
    """Return the loss of each example [B]: of its class, of its score, or the mean over its own labelled tokens."""
    logits: Tensor = output.logits
    if logits.dim() == 2 and logits.shape[1] == 1:
        return (logits.squeeze(1) - labels).square()
    if logits.dim() == 2:
        return functional.cross_entropy(logits, labels, reduction="none")
    losses = functional.cross_entropy(logits.mT, labels, reduction="none")  # 0 where a label is -100
    return losses.sum(1) / (labels != -100).sum(1).clamp(min=1)


class PrivateTrainer(Trainer):
    """Trainer whose steps are private. Its logs have epsilon in place of the loss, which is exact and so not private.

    `per_device_train_batch_size` is the expected batch, `num_train_epochs` a whole number of epochs of floor(N / batch)
    steps. `resume_from_checkpoint` goes on with the steps that are left. `save_model` writes what `peft_dp.load` reads,
    where the model has a method on it.

    Args:
        *args: As Trainer.
        privacy: The budget of all steps together.
        losses: Gives the losses of a batch; None for those of `shifted_losses` of a language model, else `own_losses`.
        physical: Most examples that pass through the model at once.
        **kwargs: As Trainer.

    Raises:
        ValueError: Arguments under which a step would not be that of `PrivacyEngine`.
    """

    def __init__(
        self, *args: Any, privacy: Privacy, losses: OwnLosses | None = None, physical: int = 32, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        told = self.args
        if told.gradient_accumulation_steps != 1:
            raise ValueError("gradient_accumulation_steps must be 1: the engine cuts a batch itself, see physical")
        if told.world_size > 1 or told.n_gpu > 1:
            raise ValueError("private steps are made on one device: start one process, and let it see one GPU")
        if told.max_steps > 0 or told.num_train_epochs != int(told.num_train_epochs):
            raise ValueError("steps are num_train_epochs whole epochs of floor(N / batch): leave max_steps out")
        if told.fp16 or told.bf16:
            raise ValueError("train in float32: leave fp16 and bf16 out")
        rows: Any = self.train_dataset
        if not hasattr(rows, "__len__"):
            raise ValueError("give a train_dataset with a length, since its number of examples is accounted for")
        own: Any = self.model
        told.ignore_data_skip = True  # a batch is drawn for the step that uses it, never skipped
        self._rows, self._own, self._examples = rows, own, len(rows)
        self._losses = losses or (shifted_losses if own.can_generate() else own_losses)
        self.engine = PrivacyEngine(
            own,
            privacy,
            examples=self._examples,
            batch=told.per_device_train_batch_size,
            epochs=int(told.num_train_epochs),
            physical=physical,
        )

    def get_train_dataloader(self) -> Any:
        """Return the batches of an epoch, as example indices."""
        indices: Any = range(self._examples)
        return DataLoader(indices, batch_sampler=_Batches(self), collate_fn=lambda drawn: {"indices": drawn})

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Set the private gradient of a batch; return 0 in place of the exact loss."""
        model.train()
        self.engine.backward(lambda indices: self._of(model, indices), inputs["indices"])
        return torch.zeros((), device=self.args.device)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log what Trainer logs, with epsilon and delta in place of the loss."""
        told = {name: value for name, value in logs.items() if name not in ("loss", "train_loss")}
        ledger = self.engine.ledger()
        super().log(told | {name: ledger[name] for name in ("epsilon", "delta")}, start_time)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the model; with a method on it, what `peft_dp.load` reads."""
        if _attached.NOTE in self._own.__dict__:
            _attached.save(self._own, output_dir or str(self.args.output_dir))
        else:
            super().save_model(output_dir, _internal_call)

    def _of(self, model: nn.Module, indices: list[int]) -> Tensor:
        known = {*inspect.signature(model.forward).parameters, "label", "label_ids"}
        rows = [self._rows[at] for at in indices]
        batch = self.data_collator([{name: value for name, value in row.items() if name in known} for row in rows])
        batch = {name: value.to(self.args.device) for name, value in batch.items()}
        labels = batch.pop("labels")
        return self._losses(model(**batch), labels)


class _Batches:
    """The batches of one epoch after the other, drawn for the steps that use them."""

    def __init__(self, trainer: PrivateTrainer) -> None:
        self._trainer = trainer
        self._batches = trainer.engine.batches()

    def __len__(self) -> int:
        return self._trainer.engine.steps // int(self._trainer.args.num_train_epochs)

    def __iter__(self) -> Iterator[list[int]]:
        self._trainer.engine.resume(self._trainer.state.global_step)
        yield from islice(self._batches, len(self))
