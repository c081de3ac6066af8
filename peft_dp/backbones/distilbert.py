"""DistilBERT, uncased (Sanh et al. 2019), the backbone of Khan and Scheder-Bieschin."""

from peft_dp.models.family import Family
from peft_dp.models.source import Source

FAMILY = Family(
    layers="transformer.layer",
    sites={
        "query": "attention.q_lin",
        "key": "attention.k_lin",
        "value": "attention.v_lin",
        "attention_output": "attention.out_lin",
        "attention_norm": "sa_layer_norm",
        "intermediate": "ffn.lin1",
        "output": "ffn.lin2",
        "output_norm": "output_layer_norm",
    },
    embeddings="embeddings",
    embeddings_norm="embeddings.LayerNorm",
    head=("pre_classifier", "classifier"),
    pooler=False,
    token_types=False,
    sizes=("n_layers", "dim", "hidden_dim"),
)
SOURCE = Source(repository="distilbert/distilbert-base-uncased", revision="12040accade4e8a0f71eabdb258fecc2e7e948be")
CONFIG = {"model_type": "distilbert", "vocab_size": 30522, "dim": 768, "n_layers": 6, "n_heads": 12, "hidden_dim": 3072}
