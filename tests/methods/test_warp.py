"""WARP: counts of the paper, and states that are those of the layers run by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from peft_dp import methods
from peft_dp.methods.warp import Config
from peft_dp.models.backbone import Backbone
from peft_dp.models.batch import Batch

Make = Callable[..., Batch]


@pytest.mark.parametrize(("length", "size"), [(1, 4_099), (8, 11_267), (20, 23_555)])
def test_count_of_paper(paper: Callable[[str], Backbone], rng: torch.Generator, length: int, size: int) -> None:
    """WARP_n on RoBERTa-large trains n vectors and the head of three outputs; 20 give 23.6K, not the printed 25K."""
    backbone = paper("roberta_large")
    Config(length=length).install(backbone, rng)

    assert size == backbone.count()


def test_states(families: Backbone, batch: Make, rng: torch.Generator) -> None:
    """The last states are those of the layers run by hand on vectors and embedded tokens, without the vectors'."""
    plain = copy.deepcopy(families)
    Config(length=3).install(families, rng)
    embeddings: Any = families.embeddings
    inputs = plain.inputs(batch())
    seen: list[torch.Tensor] = []
    plain.embeddings.register_forward_hook(lambda module, args, output: seen.append(output))
    plain.encoder(**inputs)
    states = torch.cat([embeddings.warp.vectors.expand(2, 3, 16), seen[0]], dim=1)
    mask = torch.cat([torch.ones(2, 3), batch().mask], dim=1).bool()[:, None, None]
    for layer in plain.layers:
        states = layer(states, mask)
    found = families.encoder(**families.inputs(batch())).last_hidden_state

    torch.testing.assert_close(found, states[:, 3:])


def test_prompt_matters(families: Backbone, batch: Make, rng: torch.Generator) -> None:
    """The vectors change the logits from the start."""
    before = families.logits(batch())
    Config(length=3).install(families, rng)

    assert (families.logits(batch()) - before).abs().max() > 1e-4


@pytest.mark.parametrize("readout", ["cls", "mean"])
def test_padding(families: Backbone, batch: Make, rng: torch.Generator, readout: str) -> None:
    """Padding does not change the logits, whatever they are read from."""
    families.model.readout = readout  # type: ignore[assignment]
    Config(length=3).install(families, rng)

    torch.testing.assert_close(families.logits(batch()), families.logits(batch(padding=3)), rtol=1e-4, atol=1e-6)


def test_without_mask(families: Backbone, batch: Make, rng: torch.Generator) -> None:
    """An encoder called without a mask attends to all, the vectors included."""
    Config(length=3).install(families, rng)
    inputs = families.inputs(batch())
    without = families.encoder(**{name: value for name, value in inputs.items() if name != "attention_mask"})
    ones = families.encoder(**(inputs | {"attention_mask": torch.ones(2, 6, dtype=torch.int64)}))

    torch.testing.assert_close(without.last_hidden_state, ones.last_hidden_state)


def test_gradients(families: Backbone, gradient_gap: Callable[[Backbone], float], rng: torch.Generator) -> None:
    """Per-example gradients equal those of examples passed alone."""
    Config(length=3, init="uniform").install(families, rng)

    assert gradient_gap(families) < 1e-12


def test_no_merge(families: Backbone, rng: torch.Generator) -> None:
    """A prompt cannot be folded into a weight."""
    Config(length=3).install(families, rng)
    with pytest.raises(ValueError, match="'warp' is not a shift of weights"):
        families.merge()


@pytest.mark.parametrize("wrong", [{"length": 0}, {"length": 3, "init": "zero"}], ids=str)
def test_config(wrong: Any) -> None:
    """A wrong setting is refused."""
    with pytest.raises(ValueError):
        methods.make("warp", wrong)
