"""The last layer for those places only that are read.

What a head reads at one place of the last layer's output follows from that place's query, attention and
feed-forward block alone; only keys and values are needed of all tokens. In a layer of width d with 4 d inside
that is 2 d^2 multiplications a token instead of 12 d^2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn import functional
from transformers.activations import ACT2FN

from peft_dp.models.packing import Packing

if TYPE_CHECKING:
    from peft_dp.models.backbone import Backbone


@contextmanager
def at_read_out(backbone: Backbone, packing: Packing | None) -> Iterator[None]:
    """Within the block the last layer gives what is read of each example [B, 1, d], if there is a packing to say where.

    Where each token has a tag, it gives all; where the mean is read, or dropout is on, it computes all.
    """
    if packing is None or backbone.readout == "tokens":
        yield
        return
    layer = backbone.layers[-1]
    whole: Callable[..., Tensor] = layer.forward

    def read(*args: Any, **kwargs: Any) -> Tensor:
        states = whole(*args, **kwargs)
        return (packing.mean(states) if backbone.readout == "mean" else packing.read(states))[:, None]

    def narrow(states: Tensor, mask: Tensor, *_: Any, **__: Any) -> Tensor:
        return _narrow(backbone, packing, states)

    dropout = any(module.p > 0 and module.training for module in layer.modules() if isinstance(module, nn.Dropout))
    layer.forward = read if backbone.readout == "mean" or dropout else narrow
    try:
        yield
    finally:
        del layer.forward


def _narrow(backbone: Backbone, packing: Packing, states: Tensor) -> Tensor:
    """The layer's output at each example's read-out [B, 1, d] of its input [R, W, d]."""
    config: Any = backbone.encoder.config
    layer = backbone.layers[-1]
    at = {role: layer.get_submodule(path) for role, path in backbone.family.sites.items()}
    read = packing.read(states)[:, None]

    def heads(values: Tensor) -> Tensor:
        """[R, S, d] -> [R, heads, S, d / heads]."""
        return values.view(*values.shape[:2], config.num_attention_heads, -1).transpose(1, 2)

    # Each row's queries side by side, so that no row's keys are copied.
    query = at["query"](read)[:, 0]
    queries = query.new_zeros(packing.asking.numel(), query.shape[1]).index_copy(0, packing.slots, query)
    found = functional.scaled_dot_product_attention(
        heads(queries.view(*packing.asking.shape, -1)),
        heads(at["key"](states)),
        heads(at["value"](states)),
        packing.asked[:, None],
    )
    found = found.transpose(1, 2).flatten(2).flatten(0, 1).index_select(0, packing.slots)[:, None]
    between = at["attention_norm"](at["attention_output"](found) + read)
    activation = ACT2FN[getattr(config, "hidden_act", None) or config.activation]
    output: Tensor = at["output_norm"](at["output"](activation(at["intermediate"](between))) + between)
    return output
