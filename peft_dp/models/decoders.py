"""Families of decoders: models of one's own that `attach` and `PrivacyEngine` take; no row of a paper has one.

A layer of theirs has its LayerNorms (or RMSNorms) before the attention and the feed-forward block, not behind them.
GPT-2's query, key and value are one map, so the three roles are one site.
"""

from __future__ import annotations

from functools import partial

from peft_dp.models.family import Family

_decoder = partial(
    Family,
    embeddings_norm="",
    head=("score",),
    pretrained_head=("lm_head",),
    pooler=False,
    token_types=False,
    causal=True,
)
_GPT2 = _decoder(
    layers="h",
    sites={
        "query": "attn.c_attn",
        "key": "attn.c_attn",
        "value": "attn.c_attn",
        "attention_output": "attn.c_proj",
        "attention_norm": "ln_1",
        "intermediate": "mlp.c_fc",
        "output": "mlp.c_proj",
        "output_norm": "ln_2",
    },
    embeddings="wte",
)
_LLAMA = _decoder(
    layers="layers",
    sites={
        "query": "self_attn.q_proj",
        "key": "self_attn.k_proj",
        "value": "self_attn.v_proj",
        "attention_output": "self_attn.o_proj",
        "attention_norm": "input_layernorm",
        "intermediate": "mlp.up_proj",
        "output": "mlp.down_proj",
        "output_norm": "post_attention_layernorm",
    },
    embeddings="embed_tokens",
)
FAMILIES = {"gpt2": _GPT2, "llama": _LLAMA, "mistral": _LLAMA, "qwen2": _LLAMA}
"""Type of a model, as its configuration has it -> where its sites are."""
