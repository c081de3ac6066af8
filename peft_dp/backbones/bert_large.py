"""BERT-large, cased (Devlin et al. 2019), the backbone of SPAFIT."""

from peft_dp.backbones.bert import FAMILY as FAMILY
from peft_dp.models.source import Source

SOURCE = Source(repository="google-bert/bert-large-cased", revision="d9238236d8326ce4bc117132bb3b7e62e95f3a9a")
CONFIG = {
    "model_type": "bert",
    "vocab_size": 28996,
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
}
