"""A model and its tokenizer from a backbone's files, or drawn in its shape."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from peft_dp import rng
from peft_dp.models.source import Random, read_config
from peft_dp.validate import short

OWN = {"local_files_only": True, "trust_remote_code": False}
"""transformers' own code alone reads the files; left to itself it would ask whether to run what they name."""


BESIDE = re.compile(r"(.*\.)?(cls|lm_head|pooler|classifier|pre_classifier|qa_outputs|vocab_\w+)\..*|.*position_ids")
"""Weights that a file may hold and a model leaves out: heads of the tasks that it was pretrained or fine-tuned for."""


def model(files: Path | Random, kind: Any, outputs: int = 2, new: Sequence[str] = (), **options: Any) -> Any:
    """Return a model of a kind, as transformers' `Auto` classes are, with the weights of the files in float32.

    Random weights are those that transformers starts a training with, the same for every seed of a run, as pretrained
    ones are. It draws them from the global generator, which stays as it was.

    Args:
        files: The folder of a backbone's files, or a random draw in its shape.
        kind: The class that makes the model.
        outputs: Width of a new head.
        new: Paths of the kind's modules that no file holds, since they are to be trained.
        options: Further arguments of the kind.

    Raises:
        ValueError: The file lacks a weight, holds another model's, or one that is not finite; names the file and it.
    """
    if isinstance(files, Path):
        return _pretrained(files, kind, outputs, new, options)
    from transformers import AutoConfig

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(rng.seed(0, "initialisation"))  # torch.manual_seed seeds GPUs too
        return kind.from_config(AutoConfig.for_model(**files.config, num_labels=outputs), **options)


def _pretrained(folder: Path, kind: Any, outputs: int, new: Sequence[str], options: dict[str, Any]) -> Any:
    from transformers import AutoConfig

    file = folder / "model.safetensors"
    # A configuration may name the attention that it was saved with, which this machine need not have.
    held = {name: value for name, value in read_config(folder).items() if "attn_implementation" not in name}
    try:
        config = AutoConfig.for_model(**held | {"num_labels": outputs})
        made, report = kind.from_pretrained(
            folder,
            config=config,
            use_safetensors=True,
            dtype=torch.float32,  # whatever the file holds: what trains is trained in float32
            attn_implementation="sdpa",
            ignore_mismatched_sizes=True,  # so that the report names them
            output_loading_info=True,
            **OWN,
            **options,
        )
    # transformers and safetensors raise several unrelated types for what is damaged; all mean the same here.
    except Exception as error:
        raise ValueError(f"{file} cannot be loaded ({_line(error)}): fetch the backbone's files again") from None
    missing = sorted(name for name in report["missing_keys"] if not name.startswith(tuple(f"{path}." for path in new)))
    others = sorted(name for name in report["unexpected_keys"] if not BESIDE.fullmatch(name))
    if missing or others:
        faults = [f"lacks {_first(missing)} of the model"] if missing else []
        faults += [f"holds {_first(others)} that are none of its own"] if others else []
        remedy = "give the weights under the names that transformers saves them, without a prefix or an adapter"
        raise ValueError(f"{file} {' and '.join(faults)}: {remedy}")
    for name, held, needed in sorted(report["mismatched_keys"]):
        raise ValueError(
            f"{file} holds {name} of shape {tuple(held)}, but config.json asks for {tuple(needed)}: "
            "give files that belong together"
        )
    for name, parameter in made.named_parameters():
        if not parameter.isfinite().all():
            raise ValueError(f"{file} holds values in {name} that are not finite: fetch the file again")
    return made


def _first(names: Sequence[str]) -> str:
    """Return the first of some weights' names and the number of the rest."""
    return f"{names[0]} and {len(names) - 1} more weights"


def _line(error: Exception) -> str:
    """Return the first line of an error's text, with its type."""
    return f"{type(error).__name__}: {short(str(error).strip().partition(chr(10))[0])[1:-1]}"


def tokenizer(files: Path | Random, **options: Any) -> Any:
    """Return the tokenizer of the files; of random weights one whose words are the numbers from 0, one token each.

    Raises:
        ValueError: The files hold no tokenizer, or one that is not the model's; names the folder.
    """
    from transformers import AutoConfig, PreTrainedTokenizerFast

    if isinstance(files, Path):
        return _tokenizer(files, options)
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


def _tokenizer(folder: Path, options: dict[str, Any]) -> Any:
    from transformers import AutoTokenizer

    try:
        found = AutoTokenizer.from_pretrained(folder, **OWN, **options)
    # Its readers raise several unrelated types for what is damaged; all mean the same here.
    except Exception as error:
        raise ValueError(
            f"the tokenizer in {folder} cannot be loaded ({_line(error)}): fetch its files again"
        ) from None
    config = read_config(folder)
    if len(found) > config.get("vocab_size", len(found)):
        raise ValueError(
            f"the tokenizer in {folder} has {len(found)} words, but the model has {config['vocab_size']}: "
            "give files that belong together"
        )
    padding = config.get("pad_token_id", found.pad_token_id)
    if found.pad_token_id is None or found.pad_token_id != padding:
        raise ValueError(
            f"the tokenizer in {folder} pads with {found.pad_token_id}, but the model with {padding}: "
            "give files that belong together"
        )
    return found
