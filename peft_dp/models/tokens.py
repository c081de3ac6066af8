"""From sentences to token ids, by the tokenizer of the backbone's files."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from peft_dp.models import weights
from peft_dp.models.batch import IGNORED, Encoded, Ragged
from peft_dp.models.source import Random
from peft_dp.tasks import Example, Task

if TYPE_CHECKING:
    from transformers import BatchEncoding


CHUNK = 10_000
"""Examples that are tokenised at a time: a tokenizer gives Python lists, which take 20 times as much memory."""


def encode(
    examples: Sequence[Example], task: Task, files: Path | Random, max_length: int, readout: str = "cls"
) -> Encoded:
    """Tokenises with the tokenizer of the backbone's files, cutting at `max_length` from the right.

    With readout "mask" an example is one text: the first sentence, the mask token and
    the second, with nothing between (Gupta et al. 2023, section 3.1 and released code).

    Raises:
        ValueError: The mask token of an example is behind `max_length`.
    """
    tagged = task.kind == "tokens"
    # Byte-pair tokenizers take words only if each is read as one that follows a space.
    options = {"add_prefix_space": True} if tagged else {}
    tokenizer = weights.tokenizer(files, **options)
    firsts = [example.first.split(" ") if tagged else example.first for example in examples]
    seconds = [example.second or "" for example in examples] if task.pair else None
    if readout == "mask":
        ends = seconds or [""] * len(examples)
        firsts = [example.first + tokenizer.mask_token + end for example, end in zip(examples, ends, strict=True)]
        seconds = None
    ids, types, tags = [], [], []
    for at in range(0, len(examples), CHUNK):
        some = slice(at, at + CHUNK)
        found = tokenizer(
            firsts[some],
            seconds[some] if seconds else None,
            is_split_into_words=tagged,
            truncation=True,
            max_length=max_length,
            return_token_type_ids=True,
        )
        ids.append(Ragged.of(found["input_ids"]))
        types.append(Ragged.of(found["token_type_ids"]))
        tags += _tags(found, examples[some]) if tagged else []
    whole, kind = Ragged.joined(ids), torch.float32 if task.kind == "regression" else torch.int64
    reads = _masks(whole, tokenizer.mask_token_id, examples) if readout == "mask" else None
    labels = (
        nn.utils.rnn.pad_sequence(tags, batch_first=True, padding_value=IGNORED)
        if tagged
        else torch.tensor([example.label for example in examples]).to(kind)
    )
    return Encoded(whole, Ragged.joined(types), labels, tokenizer.pad_token_id, reads=reads)


def _masks(ids: Sequence[Sequence[int]], mask: int, examples: Sequence[Example]) -> list[int]:
    """Place of the first mask token in each example."""
    for index, (tokens, example) in enumerate(zip(ids, examples, strict=True)):
        if mask not in tokens:
            start = f"example {index} ({example.first[:40]!r}...) has lost its mask token"
            raise ValueError(f"{start}: {len(tokens)} tokens are too few, use a larger max_length")
    return [list(tokens).index(mask) for tokens in ids]


def _tags(found: BatchEncoding, examples: Sequence[Example]) -> list[Tensor]:
    """Tag indices of each example [T]: a word's on its first piece, `IGNORED` on its others and on specials."""
    rows = []
    for index, example in enumerate(examples):
        assert isinstance(example.label, tuple)
        pieces = pairwise([None, *found.word_ids(index)])
        tags = [IGNORED if word in (None, before) else example.label[word] for before, word in pieces]
        rows.append(torch.tensor(tags))
    return rows
