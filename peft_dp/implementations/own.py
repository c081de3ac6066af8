"""This project's own code."""

from __future__ import annotations

from peft_dp.implementations._base import Implementation

IMPLEMENTATION = Implementation()
