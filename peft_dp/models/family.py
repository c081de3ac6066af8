"""Where a family of models keeps its sites. Data only: a backbone's file imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Family:
    """Where a family of encoders, or of decoders, keeps its sites.

    Attributes:
        layers: Path of the list of layers, from the encoder.
        sites: Role -> path from one layer; the roles are query, key, value, attention_output,
            attention_norm, intermediate, output and output_norm.
        embeddings: Path of the module that makes the first layer's input.
        embeddings_norm: Path of the LayerNorm that closes the embeddings; empty where there is none.
        head: Paths, from the classification model that transformers gives, of its new modules.
        pooler: Whether the encoder has a pretrained pooler after the last layer.
        token_types: Whether the encoder takes token types.
        first_position: Position of the first token.
        sizes: Fields of the configuration with the number of layers, a hidden state's size, and the feed-forward
            network's inner size.
        pretrained_head: Paths, from a language model, of its pretrained head, which stays frozen.
        causal: Whether it is a decoder: a token sees only those before it, and no method stands before the sequence.
    """

    layers: str
    sites: Mapping[str, str]
    embeddings: str
    embeddings_norm: str
    head: tuple[str, ...]
    pooler: bool
    token_types: bool
    first_position: int = 0
    sizes: tuple[str, str, str] = ("num_hidden_layers", "hidden_size", "intermediate_size")
    pretrained_head: tuple[str, ...] = ()
    causal: bool = False
