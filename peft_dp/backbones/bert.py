"""BERT-base, cased (Devlin et al. 2019), the backbone of BitFit+."""

from peft_dp.models.family import Family
from peft_dp.models.source import Source

FAMILY = Family(
    layers="encoder.layer",
    sites={
        "query": "attention.self.query",
        "key": "attention.self.key",
        "value": "attention.self.value",
        "attention_output": "attention.output.dense",
        "attention_norm": "attention.output.LayerNorm",
        "intermediate": "intermediate.dense",
        "output": "output.dense",
        "output_norm": "output.LayerNorm",
    },
    embeddings="embeddings",
    embeddings_norm="embeddings.LayerNorm",
    head=("classifier",),
    pooler=True,
    token_types=True,
)
SOURCE = Source(repository="google-bert/bert-base-cased", revision="cd5ef92a9fb2f889e972770a36d4ed042daf221e")
CONFIG = {
    "model_type": "bert",
    "vocab_size": 28996,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
}
