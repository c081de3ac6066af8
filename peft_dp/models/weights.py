"""A model and its tokenizer from a backbone's files, or drawn in its shape."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from peft_dp import rng
from peft_dp.models.source import Random

OWN = {"local_files_only": True, "trust_remote_code": False}
"""transformers' own code alone reads the files; left to itself it would ask whether to run what they name."""


def model(files: Path | Random, kind: Any, outputs: int = 2, **options: Any) -> Any:
    """A model of a kind, as transformers' `Auto` classes are, with the weights of the files.

    Random ones are those that transformers starts a training with, the same for every seed
    of a run, as pretrained ones are. It draws them from the global generator, which stays as it was.
    """
    if isinstance(files, Path):
        return kind.from_pretrained(files, num_labels=outputs, use_safetensors=True, **OWN, **options)
    from transformers import AutoConfig

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(rng.seed(0, "initialisation"))  # torch.manual_seed seeds GPUs too
        return kind.from_config(AutoConfig.for_model(**files.config, num_labels=outputs), **options)


def tokenizer(files: Path | Random, **options: Any) -> Any:
    """The tokenizer of the files; of random weights one whose words are the numbers from 0, one token each."""
    from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerFast

    if isinstance(files, Path):
        return AutoTokenizer.from_pretrained(files, **OWN, **options)
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from tokenizers.processors import TemplateProcessing

    config = AutoConfig.for_model(**files.config)
    words = ["[CLS]", "[SEP]", "[MASK]", "[UNK]"]
    words.insert(config.pad_token_id, "[PAD]")
    words += map(str, range(config.vocab_size - len(words)))
    ids = {word: index for index, word in enumerate(words)}
    made = Tokenizer(WordLevel(ids, unk_token="[UNK]"))
    made.pre_tokenizer = WhitespaceSplit()
    made.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(word, ids[word]) for word in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]", mask_token="[MASK]", unk_token="[UNK]")
