"""Tests of transformers' Trainer with private steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, TrainingArguments

import peft_dp
from peft_dp import Privacy, PrivateTrainer
from peft_dp.privacy.plan import private_plan, spent

PRIVACY = Privacy(epsilon=3.0, delta=0.01, clip=0.5)
COUNT, BATCH, EPOCHS = 40, 10, 3
pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory")


def examples(language: bool = False) -> Dataset:
    """Sequences of one length, the class in the first token; a column of text that no model takes."""
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 30, (COUNT, 6), generator=draw)
    labels = ids.tolist() if language else (ids[:, 0] % 2).tolist()
    return Dataset.from_dict({"input_ids": ids.tolist(), "labels": labels, "text": ["a secret"] * COUNT})


def made(language: bool = False, *, attached: bool = True) -> Any:
    """A tiny random model, with LoRA."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = AutoConfig.for_model("llama" if language else "bert", vocab_size=30, **sizes)
    model = (AutoModelForCausalLM if language else AutoModelForSequenceClassification).from_config(config)
    if attached:
        peft_dp.attach(model, "lora", rank=2, alpha=4)
    return model


def arguments(folder: Path, **others: Any) -> TrainingArguments:
    """What a user gives."""
    given: dict[str, Any] = {
        "output_dir": str(folder),
        "num_train_epochs": EPOCHS,
        "per_device_train_batch_size": BATCH,
        "learning_rate": 0.05,
        "use_cpu": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    return TrainingArguments(**(given | others))


@pytest.mark.parametrize("language", [False, True], ids=["classes", "language"])
def test_steps(language: bool, tmp_path: Path) -> None:
    """All planned steps are made, what is logged has epsilon and no loss, and only what trains has moved."""
    model = made(language)
    before = {name: value.clone() for name, value in model.named_parameters()}
    trainer = PrivateTrainer(model, arguments(tmp_path), train_dataset=examples(language), privacy=PRIVACY)
    trainer.train()
    plan = private_plan(PRIVACY, COUNT, BATCH, EPOCHS)
    logs = trainer.state.log_history

    assert trainer.state.global_step == plan.steps == trainer.engine.ledger()["steps"] == 12
    assert [log["epsilon"] for log in logs[:-1]] == [spent(plan, step) for step in range(1, 13)]
    assert logs[-1]["epsilon"] <= PRIVACY.epsilon
    assert not any({"loss", "train_loss"} & log.keys() for log in logs)
    moved = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert moved == {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_resumed(tmp_path: Path) -> None:
    """A training that goes on from a checkpoint makes the steps that are left, and counts those made before."""
    kept = arguments(tmp_path, save_strategy="steps", save_steps=5)
    trainer = PrivateTrainer(made(), kept, train_dataset=examples(), privacy=PRIVACY)
    trainer.train()
    again = PrivateTrainer(made(), kept, train_dataset=examples(), privacy=PRIVACY)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    made_now = [log["step"] for log in again.state.log_history if "learning_rate" in log]

    assert made_now[-7:] == [6, 7, 8, 9, 10, 11, 12]
    assert again.engine.ledger()["steps"] == 12
    assert again.engine.ledger()["epsilon"] == trainer.engine.ledger()["epsilon"]
    last = made(attached=False)
    peft_dp.load(last, tmp_path / "checkpoint-12")
    ids = torch.tensor(examples()["input_ids"])
    trained: Any = again.model
    assert torch.equal(last.eval()(ids).logits, trained.eval()(ids).logits)


@pytest.mark.parametrize(
    ("others", "words"),
    [
        ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps must be 1"),
        ({"max_steps": 5}, "leave max_steps out"),
        ({"num_train_epochs": 1.5}, "whole epochs"),
        ({"bf16": True}, "train in float32"),
    ],
)
def test_refused(others: dict[str, Any], words: str, tmp_path: Path) -> None:
    """Arguments under which a step would be another are refused before anything trains."""
    with pytest.raises(ValueError, match=words):
        PrivateTrainer(made(), arguments(tmp_path, **others), train_dataset=examples(), privacy=PRIVACY)
