"""Which examples a step sees."""

from __future__ import annotations

from collections.abc import Iterator

from peft_dp import rng
from peft_dp.privacy.plan import Plan


def epoch(plan: Plan, source: rng.Source) -> Iterator[list[int]]:
    """The logical batches of one epoch, as example indices.

    Poisson: every example is in every batch with chance `plan.sample_rate`,
    independently; a batch may be empty and is still a step. Shuffle: a
    permutation cut into batches; with privacy the smaller rest is left out.
    """
    if plan.sampling == "poisson":
        for _ in range(plan.steps_per_epoch):
            yield (rng.chances(source, plan.examples) < plan.sample_rate).nonzero().flatten().tolist()
    else:
        order = rng.permutation(source, plan.examples).tolist()
        for step in range(plan.steps_per_epoch):
            yield order[step * plan.batch : (step + 1) * plan.batch]
