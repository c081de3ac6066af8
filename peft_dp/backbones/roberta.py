"""RoBERTa-base (Liu et al. 2019), a backbone of SLaSh."""

from dataclasses import replace

from peft_dp.backbones import bert
from peft_dp.models.source import Source

# Positions start after that of the padding token, 1.
FAMILY = replace(bert.FAMILY, token_types=False, first_position=2)
SOURCE = Source(repository="FacebookAI/roberta-base", revision="e2da8e2f811d1448a5b465c236feacd80ffbac7b")
CONFIG = {
    "model_type": "roberta",
    "vocab_size": 50265,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
}
