"""JR-WARP: counts of the paper, states of the layers run by hand, and the released code's off-by-one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from peft_dp import methods
from peft_dp.methods.jr_warp import Config
from peft_dp.models.backbone import Backbone
from peft_dp.models.batch import Batch

Make = Callable[..., Batch]


def by_hand(plain: Backbone, tuned: Backbone, batch: Batch) -> Tensor:
    """The last states [B, 1 + T, d] of the layers, with the tuned backbone's prompt put in by hand."""
    seen: list[Tensor] = []
    handle = plain.embeddings.register_forward_hook(lambda module, args, output: seen.append(output))
    plain.encoder(**plain.inputs(batch))
    handle.remove()
    first: Any = tuned.embeddings
    norms: list[Any] = tuned.sites("output_norm")
    prompts = [b.z @ b.projection.kept for b in (first.jr_warp, *(norm.jr_warp for norm in norms[:-1]))]
    mask = torch.cat([torch.ones(2, 1), batch.mask], dim=1).bool()[:, None, None]
    states = torch.cat([torch.zeros(2, 1, 16), seen[0]], dim=1)
    for layer, prompt in zip(plain.layers, prompts, strict=True):
        states = states.clone()
        states[:, 0] += prompt
        states = layer(states, mask)
    return states


def test_count_of_paper(paper: Callable[[str], Backbone], rng: torch.Generator) -> None:
    """JR-WARP_1 trains z and the head: 0.007 % of RoBERTa-base in Table 3."""
    backbone = paper("roberta")
    Config(size=5_000).install(backbone, rng)

    assert 5_000 + 2_307 == backbone.count()


def test_states(families: Backbone, batch: Make, rng: torch.Generator) -> None:
    """The last states are those of the layers run by hand, without the prompt's."""
    plain = copy.deepcopy(families)
    Config(size=8).install(families, rng)
    found = families.encoder(**families.inputs(batch())).last_hidden_state

    torch.testing.assert_close(found, by_hand(plain, families, batch())[:, 1:])


def test_as_released(families: Backbone, batch: Make, rng: torch.Generator) -> None:
    """As released, index 0 reads the prompt and index i the token before the one it should."""
    plain = copy.deepcopy(families)
    Config(size=8, readout="as_released").install(families, rng)
    found = families.encoder(**families.inputs(batch())).last_hidden_state

    torch.testing.assert_close(found, by_hand(plain, families, batch())[:, :-1])


@pytest.mark.parametrize("readout", ["correct", "as_released"])
def test_padding(families: Backbone, batch: Make, rng: torch.Generator, readout: Any) -> None:
    """Padding does not change the logits."""
    Config(size=8, readout=readout).install(families, rng)

    torch.testing.assert_close(families.logits(batch()), families.logits(batch(padding=3)), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("readout", ["correct", "as_released"])
def test_gradients(
    families: Backbone, gradient_gap: Callable[[Backbone], float], rng: torch.Generator, readout: Any
) -> None:
    """Per-example gradients of the shared z equal those of examples passed alone."""
    Config(size=8, readout=readout).install(families, rng)

    assert gradient_gap(families) < 1e-12


def test_one_vector(families: Backbone, rng: torch.Generator) -> None:
    """All layers share one z, each with a projection of its own."""
    Config(size=8).install(families, rng)
    first: Any = families.embeddings
    later: Any = families.sites("output_norm")[0]

    assert first.jr_warp.z is later.jr_warp.z
    assert not torch.equal(first.jr_warp.projection.kept, later.jr_warp.projection.kept)
    assert 1 == sum(name.endswith(".z") for name in families.trained())


@pytest.mark.parametrize("readout", ["correct", "as_released"])
def test_no_merge(families: Backbone, rng: torch.Generator, readout: Any) -> None:
    """A prompt cannot be folded into a weight."""
    Config(size=8, readout=readout).install(families, rng)
    with pytest.raises(ValueError, match="'jr_warp' is not a shift of weights"):
        families.merge()


@pytest.mark.parametrize("wrong", [{"size": 0}, {"size": 8, "init": "ones"}, {"size": 8, "readout": "late"}], ids=str)
def test_config(wrong: Any) -> None:
    """A wrong setting is refused."""
    with pytest.raises(ValueError):
        methods.make("jr_warp", wrong)
