"""RoBERTa-large (Liu et al. 2019), the main backbone of SLaSh."""

from peft_dp.backbones.roberta import CONFIG as BASE
from peft_dp.backbones.roberta import FAMILY as FAMILY
from peft_dp.models.source import Source

SOURCE = Source(repository="FacebookAI/roberta-large", revision="722cf37b1afa9454edce342e7895e588b6ff1d59")
CONFIG = BASE | {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
}
