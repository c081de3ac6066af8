"""What a run has to do, without data and without torch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from peft_dp import Spec, registry, tasks
from peft_dp.suite import papers
from peft_dp.suite.plan.costs import costs
from peft_dp.suite.plan.counting import Shapes
from peft_dp.suite.plan.workload import flops, linear_values

Make = Callable[..., Spec]


def test_flops_to_leading_order_need_no_torch() -> None:
    """Ordering all cells imports neither torch nor transformers."""
    code = (
        "import sys; from peft_dp import cells; from peft_dp.suite.plan.workload import flops; "
        "print(min(flops(cell.spec) for cell in cells()) > 0, "
        "sorted({'torch', 'transformers', 'opacus', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert "True []" == done.stdout.strip()


@pytest.mark.parametrize("field", ["backbone", "task"])
def test_unknown(spec: Make, field: str) -> None:
    """A name that no file has is refused, not taken for another."""
    changed: dict[str, Any] = {field: "other"}
    for amount in (flops, costs):
        with pytest.raises(ValueError, match=f"unknown {field} 'other'; known: "):
            amount(replace(spec(), **changed))


def test_order() -> None:
    """A larger backbone, longer sentences and more examples are more work."""
    small, large = (papers.find(f"slash/{table}/slash-d1024/rte") for table in ("table3", "table2"))
    cola, mnli = (papers.find(f"spafit/table2/full/{task}") for task in ("cola", "mnli"))

    assert flops(small.spec) < flops(large.spec)
    assert flops(cola.spec) < flops(mnli.spec)


@pytest.mark.parametrize("row", ["full", "head-dp", "bitfit", "gradual", "diff-pruning", "slash-dp"])
def test_order_is_near(row: str) -> None:
    """What orders cells is within a factor of 1.5 of the FLOPs that are counted."""
    cell = papers.find(f"embedded/smoke/{row}/sentiment")

    assert 1 / 1.5 < flops(cell.spec) / costs(cell.spec).flops < 1.5


@pytest.mark.parametrize("backbone", registry.names("backbones"))
def test_values(spec: Make, backbone: str) -> None:
    """The values that order cells are those of the backbone's layers."""
    shapes = Shapes(spec(backbone=backbone))
    linear = sum(p.numel() for layer in shapes.backbone.layers for p in layer.parameters() if p.dim() == 2)

    assert linear == linear_values(backbone)


def test_lengths() -> None:
    """The mean length that a generated task states is that of its sentences."""
    from peft_dp.models.weights import tokenizer

    source = registry.load("backbones", "minilm").SOURCE
    pytest.importorskip(source.package[0])
    split = tokenizer(source.locate(None)[0])
    for name in ("sentiment", "paraphrase", "inference", "acceptability", "similarity", "entities"):
        sentences = [(each.first, each.second) for each in tasks.load(name).train]
        seconds = [second for _, second in sentences] if tasks.find(name).pair else None
        counts = [len(ids) for ids in split([first for first, _ in sentences], seconds)["input_ids"]]
        assert tasks.find(name).tokens == pytest.approx(sum(counts) / len(counts), rel=0.01), name
