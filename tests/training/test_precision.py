"""Half precision: in the passes only, and with every clip kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from peft_dp import Places, Spec, cells, methods, registry, run
from peft_dp.suite.verdicts.cells import judge_cell
from peft_dp.training.job import Job, build, find_sources
from peft_dp.training.loop import fit
from peft_dp.validate import Missing

from ..gradients import clipped_sum

Make = Callable[..., Spec]
METHODS = registry.names("methods")


@pytest.fixture
def job(spec: Make, places: Places) -> Callable[..., Job]:
    """Builds a job in bfloat16 without dropout; arguments replace the spec's fields."""

    def make(**fields: Any) -> Job:
        made = spec(**({"dropout": False, "precision": "bf16"} | fields))
        return build(made, find_sources(made, places))

    return make


@pytest.mark.parametrize("method", METHODS)
def test_clip_is_kept(job: Callable[..., Job], method: str) -> None:
    """What one example adds to a sum is in float32 and no longer than the clip, and as long where it was clipped."""
    made = job(method=method, config=methods.load(method).EXAMPLE.model_dump(mode="json"))
    for index in range(6):
        found = clipped_sum(made, made.train.batch([index], "cpu"), 1e-3)
        length = torch.cat([value.flatten() for value in found.sums.values()]).norm()

        assert all(value.dtype == torch.float32 for value in found.sums.values())
        assert found.norms.item() > 1e-3
        assert 1e-3 * (1 - 1e-5) <= length <= 1e-3 * (1 + 1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_near_single_precision(job: Callable[..., Job], method: str) -> None:
    """Losses agree with single precision to 2 %, and are not the same: the passes are in bfloat16."""
    config = methods.load(method).EXAMPLE.model_dump(mode="json")
    half, single = (job(method=method, config=config, precision=p) for p in ("bf16", "fp32"))
    batch = half.train.batch(list(range(8)), "cpu")
    found, expected = half.losses(batch).detach(), single.losses(batch).detach()

    torch.testing.assert_close(found, expected, rtol=0.02, atol=0)
    assert found.dtype == torch.float32
    assert not torch.equal(found, expected)


def test_parameters(job: Callable[..., Job]) -> None:
    """Parameters stay in float32 and train."""
    made = job()
    before = {name: p.detach().clone() for name, p in made.backbone.trained().items()}
    fit(made)

    assert all(p.dtype == torch.float32 for p in made.backbone.model.parameters())
    assert any(not torch.equal(p, before[name]) for name, p in made.backbone.trained().items())


@pytest.mark.slow
@pytest.mark.parametrize("row", ["bitfit", "bitfit-dp", "lora", "head"])
def test_scores_agree(row: str) -> None:
    """A cell of the embedded default trained in bfloat16 scores within what seeds in float32 let one expect."""
    cell = next(cell for cell in cells("embedded/smoke") if (cell.row.id, cell.task) == (row, "sentiment"))
    try:
        record = run(replace(cell.spec, precision="bf16"))
    except Missing as missing:
        pytest.skip(str(missing))

    assert "differs" != judge_cell(cell, [record]).status
