"""What an epoch counts while it runs, for its entry in the trail."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

import torch
from torch import Tensor

from peft_dp.training.job import Job
from peft_dp.training.trail import Epoch

Clocks = tuple[float, float]
"""Seconds of a monotonic clock, and processor seconds of this process."""


def clocks() -> Clocks:
    """Return what the clocks say now."""
    return time.perf_counter(), time.process_time()


class Tally:
    """Sums over an epoch, kept on the device so that counting does not stop it.

    Args:
        device: Where the sums are kept.
        clip: Bound on the norm of an example's gradient; longer ones are counted as clipped.
    """

    def __init__(self, device: str, clip: float = math.inf) -> None:
        self.loss = torch.zeros((), device=device, dtype=torch.float64)
        self.clipped = torch.zeros((), device=device, dtype=torch.int64)
        self.square = torch.zeros((), device=device, dtype=torch.float64)
        self.norms = torch.zeros((), device=device, dtype=torch.float64)
        self.tokens = self.examples = self.steps = 0
        self._clip = clip

    def add(self, tokens: int, losses: Tensor, norms: Tensor) -> None:
        """Count a physical batch: its tokens, its losses [B] and its gradients' norms [B], or [0] without privacy."""
        self.loss += losses.sum()
        self.clipped += (norms > self._clip).sum()
        self.norms += norms.sum()
        self.tokens += tokens
        self.examples += len(losses)

    def release(self, released: Mapping[str, Tensor], times: float = 1.0) -> None:
        """Add up the squares of a step's noised sums, in which the noise can be seen again.

        Args:
            released: The sums.
            times: What they are still to be multiplied with.
        """
        # Part by part: over tens of millions of values a norm in float32 is off by a thousandth.
        self.square += (torch.nn.utils.get_total_norm(released.values()).double() * times).square()

    def counts(self) -> dict[str, float]:
        """Return the sums, exactly; waits for the device."""
        return {
            "loss": self.loss.item(),
            "clipped": self.clipped.item(),
            "square": self.square.item(),
            "norms": self.norms.item(),
            "tokens": self.tokens,
            "examples": self.examples,
            "steps": self.steps,
        }

    def restore(self, counts: Mapping[str, int]) -> None:
        """Take the sums that `counts` returned."""
        self.loss.fill_(counts["loss"])
        self.clipped.fill_(counts["clipped"])
        self.square.fill_(counts["square"])
        self.norms.fill_(counts["norms"])
        self.tokens, self.examples, self.steps = counts["tokens"], counts["examples"], counts["steps"]

    def epoch(self, job: Job, start: Clocks, share: float = 1.0) -> Epoch:
        """Return the entry of the trail; waits for the device.

        Args:
            job: What trains.
            start: When the epoch began, by `clocks`.
            share: Share of the seconds since then that are the job's own.
        """
        seen = max(self.examples, 1)
        loss, clipped, square = self.loss.item() / seen, self.clipped.item() / seen, self.square.item()
        wall, processor = clocks()  # only now has a GPU done what it was asked for
        released = job.backbone.count() * self.steps if job.plan.private else 0
        return Epoch(
            loss=loss if math.isfinite(loss) and not job.secret else None,
            clipped=clipped if job.plan.private and not job.secret else None,
            examples=self.examples if not job.secret else job.plan.examples,
            tokens=self.tokens if not job.secret else 0,
            steps=self.steps,
            seconds=(wall - start[0]) * share,
            processor_seconds=(processor - start[1]) * share,
            noise=math.sqrt(square / released) / job.plan.clip if released else None,
            released=released,
        )
