"""Writes what the library `adapters` computes on a tiny random BERT; `test_adapters.py` compares ours with it.

Run by `tox -e adapters`: the library needs an older transformers than we do, so it has an environment of its own.
The library's DoubleSeqBnConfig is Houlsby's, SeqBnConfig is Pfeiffer's in sequence.
For each kind of adapter NAME.safetensors holds in float64 the encoder (encoder.*), the adapter (adapter.*, names as
the library gives them), input_ids and attention_mask [B, T], last_hidden_state and target [B, T, d]; the gradients of
the adapter (gradient.*) for the loss mean(last_hidden_state * target), its values after five steps of SGD (after.*),
and the losses before each [5]. NAME.json holds the BERT's shape, the library's settings and the versions.

A folder in it, `fault`, has the same of a library whose text was changed: its adapters lack the residual.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import adapters
import torch
import transformers
from safetensors.torch import save_file

SHAPE = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 34,
}
KINDS = {
    "houlsby": adapters.DoubleSeqBnConfig(reduction_factor=4, non_linearity="swish"),
    "pfeiffer": adapters.SeqBnConfig(
        reduction_factor=4,
        non_linearity="relu",
        original_ln_before=True,
        original_ln_after=True,
        residual_before_ln=True,
    ),
    # The library's own default is the exact GELU; Compacter's authors have its tanh form, here "gelu_new".
    "compacter": adapters.CompacterConfig(
        reduction_factor=4, non_linearity="gelu_new", phm_dim=2, phm_rank=1, shared_phm_rule=True
    ),
}


RATE = 0.5
FAULT = """
import sys
from importlib.machinery import PathFinder, SourceFileLoader

NAME, OLD, NEW = "adapters.methods.modeling", "output = output + residual_input", "output = output"


class Loader(SourceFileLoader):
    def get_code(self, fullname):
        text = open(self.path, encoding="utf-8").read()
        assert OLD in text
        return compile(text.replace(OLD, NEW), self.path, "exec")


class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name != NAME:
            return None
        found = PathFinder.find_spec(name, path)
        found.loader = Loader(name, found.origin)
        return found


sys.meta_path.insert(0, Finder)
"""


def move(model: torch.nn.Module) -> None:
    """Moves every parameter off its start: LayerNorms at 1 and biases at 0 would hide mistakes."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)


def write(name: str, settings: adapters.BnConfig, folder: Path) -> None:
    """Writes one kind of adapter's two files."""
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(transformers.BertConfig(**SHAPE))
    adapters.init(model)
    model.add_adapter("kind", config=settings)  # It warns that none is active; the next line makes it so.
    model.set_active_adapters("kind")
    model.double().eval()
    move(model)
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    ids = torch.randint(1, SHAPE["vocab_size"], mask.shape) * mask
    inputs = {"input_ids": ids, "attention_mask": mask}
    tensors = dict(inputs)
    for key, parameter in model.bert.named_parameters():
        tensors[f"{'adapter' if '.kind.' in key else 'encoder'}.{key}"] = parameter.detach().clone()
        parameter.requires_grad_(".kind." in key)
    trained = {key: parameter for key, parameter in model.bert.named_parameters() if parameter.requires_grad}
    optimiser = torch.optim.SGD(trained.values(), lr=RATE)
    losses = []
    for step in range(5):
        states = model.bert(**inputs).last_hidden_state
        if not step:
            tensors |= {"last_hidden_state": states.detach(), "target": torch.randn_like(states)}
        optimiser.zero_grad()
        loss = (states * tensors["target"]).mean()
        loss.backward()
        if not step:
            tensors |= {f"gradient.{key}": parameter.grad.clone() for key, parameter in trained.items()}
        losses.append(loss.detach())
        optimiser.step()
    tensors |= {f"after.{key}": parameter.detach() for key, parameter in trained.items()}
    tensors["losses"] = torch.stack(losses)
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / f"{name}.safetensors")
    facts = {
        "shape": SHAPE,
        "settings": settings.to_dict(),
        "adapters": adapters.__version__,
        "transformers": transformers.__version__,
        "torch": torch.__version__,
    }
    (folder / f"{name}.json").write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python adapters_reference.py FOLDER")
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, settings in KINDS.items():
        write(name, settings, folder)
    print(f"{len(KINDS)} references in {folder}")
    if folder.name != "fault":
        (folder / "sitecustomize.py").write_text(FAULT)
        changed = os.environ | {"PYTHONPATH": str(folder.absolute())}
        subprocess.run([sys.executable, __file__, folder / "fault"], check=True, env=changed)
