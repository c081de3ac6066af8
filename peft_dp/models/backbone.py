"""A pretrained encoder with a head, seen as sites by role, not by class.

A file here is one backbone: `FAMILY` says where its sites are, `SOURCE` where
its pinned weights come from, `CONFIG` its shape. Methods ask a `Backbone` for
sites ("query", "output_norm", ...) and never name a model class.

Why branches are hooks: a method adds a small module beside a site
(`Backbone.add`), and the model keeps its class, its names and its weights, so
that a user's own model stays the user's own. A branch computes with parameters
that may carry a leading example axis ([B, ...] where they had [...]); that is
all the privacy engine asks of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized, remove_parametrizations
from torch.utils.hooks import RemovableHandle

from peft_dp.models import packing, weights
from peft_dp.models.family import Family
from peft_dp.models.last_layer import at_read_out
from peft_dp.models.source import Random
from peft_dp.validate import short

if TYPE_CHECKING:
    from peft_dp.models.batch import Batch


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Name -> parameter of all that requires a gradient, in the model's order."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


class Classifier(nn.Module):
    """An encoder with one linear layer on what is read from its last layer.

    Weights of the head are N(0, 0.02), its bias 0, as transformers does it.

    Attributes:
        mask: Id of the mask token, for the readout "mask".
    """

    def __init__(
        self,
        encoder: nn.Module,
        width: int,
        outputs: int,
        readout: str,
        rng: torch.Generator,
        *,
        mask: int | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.readout = readout
        self.mask = mask
        self.head = nn.Linear(width, outputs)
        nn.init.normal_(self.head.weight, std=0.02, generator=rng)
        nn.init.zeros_(self.head.bias)

    def forward(self, attention_mask: Tensor, **inputs: Tensor) -> Tensor:
        """Logits [B, C], or [B, T, C] with readout "tokens", of token ids [B, T]; of packed ones see `at_read_out`."""
        states = self.encoder(attention_mask=attention_mask, **inputs).last_hidden_state  # [B, T, d]
        if self.readout == "tokens":
            read = states
        elif packing.current():
            read = states[:, 0]
        elif self.readout == "mean":
            weights = attention_mask / attention_mask.sum(1, keepdim=True)
            read = (states * weights[..., None]).sum(1)
        elif self.readout == "mask":
            assert self.mask is not None
            first = inputs["input_ids"].eq(self.mask).int().argmax(1)
            read = states[torch.arange(len(states), device=states.device), first]
        else:
            read = states[:, 0]
        logits: Tensor = self.head(read)
        return logits


class Backbone:
    """A model with its sites by role.

    Attributes:
        model: Called with a batch's tensors; gives logits, or an output that has them.
        encoder: The pretrained part of it.
        family: Where the sites are.
        layers: The encoder's layers, lowest first.
        head: Parameters after the encoder, which every method trains.
        masks: Name of a trained parameter -> where it trains (same shape, bool); without an entry, everywhere.
        updates: Names of what the optimiser updates, where a method makes gradients of it from those of what
            trains; empty where it is what trains.
        given: States of the batch that is passed, where layers are left out.
        packs: Whether several examples may share a row, see `packing`.
        readout: As in `Spec`.
    """

    def __init__(
        self, model: nn.Module, encoder: nn.Module, family: Family, head: list[nn.Module], readout: str = "cls"
    ) -> None:
        self.model = model
        self.family = family
        self.encoder = encoder
        self.layers = list(encoder.get_submodule(family.layers))  # type: ignore[call-overload]
        self.head = [parameter for module in head for parameter in module.parameters()]
        self.masks: dict[str, Tensor] = {}
        self.updates: set[str] = set()
        self.given: Tensor | None = None
        self.packs = True  # its attention is torch's own (`weights.model`), whose mask may tell of every two places
        self.readout = readout
        self._branches: list[tuple[nn.Module, str, RemovableHandle]] = []

    @property
    def width(self) -> int:
        """Size of a hidden state."""
        return int(self.encoder.config.hidden_size)  # type: ignore[union-attr, arg-type]

    @property
    def positions(self) -> int:
        """Most tokens that an example may have."""
        return int(self.encoder.config.max_position_embeddings) - self.family.first_position  # type: ignore[union-attr, arg-type]

    def sites(self, role: str) -> list[nn.Module]:
        """The module of that role in each layer, lowest layer first."""
        return [layer.get_submodule(self.family.sites[role]) for layer in self.layers]

    @property
    def embeddings(self) -> nn.Module:
        """The module that makes the first layer's input."""
        return self.encoder.get_submodule(self.family.embeddings)

    @property
    def embeddings_norm(self) -> nn.Module:
        """The LayerNorm that closes the embeddings."""
        return self.encoder.get_submodule(self.family.embeddings_norm)

    def add(self, site: nn.Module, name: str, branch: nn.Module) -> None:
        """Puts a branch beside a site: its output y for input x becomes branch(x, y).

        The branch becomes the site's child of that name, and its parameters train.
        A branch that can be folded into the site's own weights has `fold(site)`,
        which does that in place.
        """
        site.add_module(name, branch)
        # The hook finds the branch on the site that is called: that of a deep copy has a branch of its own.
        handle = site.register_forward_hook(lambda site, inputs, y: site.get_submodule(name)(inputs[0], y))
        self._branches.append((site, name, handle))

    @property
    def branches(self) -> list[nn.Module]:
        """What was put beside sites."""
        return [site.get_submodule(name) for site, name, _ in self._branches]

    def merge(self) -> None:
        """Folds every branch into the weights beside it, and every weight computed from others; the logits stay.

        Raises:
            ValueError: A branch cannot be folded; nothing was changed.
        """
        for site, name, _ in self._branches:
            if not hasattr(site.get_submodule(name), "fold"):
                raise ValueError(
                    f"{name!r} is not a shift of weights, so it cannot be merged into {type(site).__name__}"
                )
        for site, name, handle in self._branches:
            with torch.no_grad():
                site.get_submodule(name).fold(site)  # type: ignore[operator]
            handle.remove()
            delattr(site, name)
        self._branches = []
        for module in self.encoder.modules():
            if is_parametrized(module, "weight"):
                remove_parametrizations(module, "weight", leave_parametrized=True)

    def save(self, path: Path) -> None:
        """Writes what the optimiser updates, and nothing else, as safetensors."""
        save_file({name: p.detach().contiguous() for name, p in self.updated().items()}, path)

    def restore(self, path: Path) -> None:
        """Reads what `save` wrote into a backbone with the same method installed from the same seed.

        Raises:
            ValueError: The file is damaged, or holds other parameters, or of other shapes.
        """
        try:
            held, updated = load_file(path), self.updated()
        except SafetensorError as error:
            raise ValueError(f"{path} is not a safetensors file or is damaged: {error}") from None
        for name in held.keys() ^ updated.keys():
            raise ValueError(f"{path}: parameter {short(name)} is {'unknown here' if name in held else 'missing'}")
        for name, parameter in updated.items():
            if held[name].shape != parameter.shape:
                raise ValueError(f"{path}: {name!r} is {tuple(held[name].shape)}, here {tuple(parameter.shape)}")
        with torch.no_grad():
            for name, parameter in updated.items():
                parameter.copy_(held[name])

    def tensors(self) -> dict[str, Tensor]:
        """Return all that a step, or a method between two phases, may change in place: "parameter/NAME" and so on."""
        model = self.model
        named = {"parameter": model.named_parameters(), "buffer": model.named_buffers(), "mask": self.masks.items()}
        return {f"{kind}/{name}": value for kind, values in named.items() for name, value in values}

    @torch.no_grad()
    def fill(self, values: Mapping[str, Tensor]) -> None:
        """Put values into `tensors` of the same names, which the same method has arranged in the same phase."""
        held = self.tensors()
        for name, value in values.items():
            held[name].copy_(value)

    def to(self, device: str) -> None:
        """Moves the model and the masks."""
        self.model.to(device)
        self.masks = {name: mask.to(device) for name, mask in self.masks.items()}

    def freeze(self) -> None:
        """Freezes all but the head, where every method starts."""
        self.model.requires_grad_(False)
        for parameter in self.head:
            parameter.requires_grad_(True)

    def trained(self) -> dict[str, nn.Parameter]:
        """Name -> parameter of all that trains, head included, in the model's order."""
        return trained_parameters(self.model)

    def updated(self) -> dict[str, nn.Parameter]:
        """Name -> parameter of all that the optimiser updates: what trains, if a method names nothing else."""
        if not self.updates:
            return self.trained()
        return {name: p for name, p in self.model.named_parameters() if name in self.updates}

    def count(self) -> int:
        """Number of trained values, head included, masks respected."""
        return sum(int(self.masks[n].sum()) if n in self.masks else p.numel() for n, p in self.trained().items())

    def logits(self, batch: Batch) -> Tensor:
        """Logits [B, C], or [B, T, C] where tokens have tags."""
        self.given = batch.states
        with packing.use(batch.packing), at_read_out(self, batch.packing):
            output = self.model(**self.inputs(batch))
        logits = output if isinstance(output, Tensor) else output.logits
        return batch.packing.apart(logits) if batch.packing and self.readout == "tokens" else logits

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        """The model's arguments.

        Positions and token types are written out, one row per example: left to
        the model they are one row broadcast over the batch, and per-example
        gradients of their embeddings would be gradients of the whole batch.
        """
        positions = batch.positions + self.family.first_position
        inputs = {"input_ids": batch.ids, "attention_mask": batch.mask, "position_ids": positions}
        return inputs | ({"token_type_ids": batch.types} if self.family.token_types else {})


def load(
    files: Path | Random, family: Family, *, outputs: int, head: str, readout: str, dropout: bool, rng: torch.Generator
) -> Backbone:
    """The encoder of those files with a new head of `outputs` outputs.

    Args:
        files: The folder that `Source.locate` gives, or a draw in a backbone's shape.
        family: Where the sites are.
        outputs: Width of the head.
        head: "linear" or "stock", see `Spec`.
        readout: "cls", "mean", "mask" or "tokens", see `Spec`.
        dropout: False sets every dropout probability to 0.
        rng: Stream of the head's initialisation.
    """
    from transformers import AutoModel, AutoModelForSequenceClassification, AutoModelForTokenClassification

    with _quiet():
        if head == "stock":
            stock = AutoModelForTokenClassification if readout == "tokens" else AutoModelForSequenceClassification
            model = weights.model(files, stock, outputs, family.head)
            modules = [model.get_submodule(path) for path in family.head if hasattr(model, path)]
            for module in modules:
                _initialise(module, rng)
            backbone = Backbone(model, model.base_model, family, modules, readout)
        else:
            options: dict[str, Any] = {"add_pooling_layer": False} if family.pooler else {}
            encoder = weights.model(files, AutoModel, **options)
            mask = weights.tokenizer(files).mask_token_id if readout == "mask" else None
            model = Classifier(encoder, encoder.config.hidden_size, outputs, readout, rng, mask=mask)
            backbone = Backbone(model, encoder, family, [model.head], readout)
    if not dropout:
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    return backbone


def _initialise(module: nn.Module, rng: torch.Generator) -> None:
    """Draws a new head from our own stream: transformers draws it from the global one."""
    for name, parameter in module.named_parameters():
        with torch.no_grad():
            parameter.zero_() if name.endswith("bias") else parameter.normal_(std=0.02, generator=rng)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences transformers' report of the pooler it did not need, and its bar."""
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()
