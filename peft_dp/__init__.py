"""A reproducibility benchmark for parameter-efficient fine-tuning with and without differential privacy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "Places",
    "Privacy",
    "PrivacyEngine",
    "PrivateTrainer",
    "Record",
    "Spec",
    "attach",
    "cells",
    "claims",
    "facts",
    "load",
    "load_run",
    "merge",
    "run",
    "save",
    "task",
    "to_peft",
]

if TYPE_CHECKING:
    from peft_dp.machine import Places
    from peft_dp.methods._attach import attach
    from peft_dp.methods._attached import load, merge, save, to_peft
    from peft_dp.privacy.engine import PrivacyEngine
    from peft_dp.privacy.trainer import PrivateTrainer
    from peft_dp.records import Record
    from peft_dp.runs import run
    from peft_dp.saved import load_run
    from peft_dp.spec import Privacy, Spec
    from peft_dp.suite.papers import cells, claims, facts
    from peft_dp.tasks.own import task

_HOMES = {
    "Places": "machine",
    "Privacy": "spec",
    "PrivacyEngine": "privacy.engine",
    "PrivateTrainer": "privacy.trainer",
    "Record": "records",
    "Spec": "spec",
    "attach": "methods._attach",
    "cells": "suite.papers",
    "claims": "suite.papers",
    "facts": "suite.papers",
    "load": "methods._attached",
    "load_run": "saved",
    "merge": "methods._attached",
    "run": "runs",
    "save": "methods._attached",
    "task": "tasks.own",
    "to_peft": "methods._attached",
}


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first asked for, so that listing cells does not wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'peft_dp' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"peft_dp.{_HOMES[name]}"), name)
