"""A model of one's own with a method on it: kept, read again, folded into its weights, in peft's format and back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as read_tensors
from safetensors.torch import save as write_tensors
from torch import Tensor, nn

from peft_dp import files
from peft_dp.models.backbone import Backbone
from peft_dp.validate import Missing, short

TENSORS, ABOUT = "model.safetensors", "peft-dp-attached.json"
PEFT_TENSORS, PEFT_ABOUT = "adapter_model.safetensors", "adapter_config.json"
NOTE, BACKBONE = "peft_dp_attached", "peft_dp_backbone"
"""Attributes of a model with a method on it."""


NOT_PLAIN = ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "lora_bias")
"""Settings of peft's LoRA that make it another method."""


@dataclass(frozen=True, kw_only=True)
class Attached:
    """What `attach` did to a model.

    Attributes:
        method: The method's name.
        settings: Its settings.
        seed: Seed of the new parameters.
        head: Paths of the modules that make the head, where they were named.
        added: Names of parameters and buffers that were not there before.
    """

    method: str
    settings: dict[str, Any]
    seed: int
    head: tuple[str, ...]
    added: tuple[str, ...]


def note(model: nn.Module, attached: Attached) -> None:
    """Have a model know what is on it. With new parameters it refuses `save_pretrained`, whose files lose them."""
    model.__dict__[NOTE] = attached
    if attached.added:

        def refuse(*_: object, **__: object) -> None:
            raise ValueError(
                f"save_pretrained would lose what {attached.method} added: call peft_dp.save(model, DIR), or fold it "
                "into the weights first by peft_dp.merge(model)"
            )

        model.__dict__["save_pretrained"] = refuse


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and buffers of a model, by name; what has several names has the first."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _of(model: nn.Module) -> Attached:
    attached = model.__dict__.get(NOTE)
    if not isinstance(attached, Attached):
        raise ValueError(f"{type(model).__name__} has no method on it: call peft_dp.attach(model, METHOD, ...) first")
    return attached


def save(model: nn.Module, folder: Path | str) -> None:
    """Write what trains in a model that `attach` was called on, and what the method added, into a folder.

    Raises:
        ValueError: The model has no method on it, or the folder cannot be written to.
    """
    attached = _of(model)
    kept = {name: value.detach().cpu().contiguous() for name, value in _kept(model, attached).items()}
    about = {"attached": asdict(attached), "rest": _sha256_of_rest(model, attached)}
    _write(Path(folder), {TENSORS: write_tensors(kept), ABOUT: json.dumps(about, indent=1) + "\n"})


def load(model: nn.Module, folder: Path | str) -> dict[str, nn.Parameter]:
    """Put on a model what `save` or `to_peft` wrote, and return what trains, as `attach` does.

    Args:
        model: The pretrained model that it was trained on, with no method on it.
        folder: Where it was written.

    Raises:
        ValueError: A file is damaged, or was trained on another model.
        Missing: The folder holds no such files.
    """
    from peft_dp.methods._attach import attach

    folder = Path(folder)
    if not (folder / ABOUT).is_file():
        if (folder / PEFT_ABOUT).is_file():
            return _from_peft(model, folder)
        raise Missing(f"{folder} holds neither {ABOUT} nor {PEFT_ABOUT}: give a folder that peft_dp.save wrote")
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        told, rest = about["attached"], about["rest"]
        values = read_tensors((folder / TENSORS).read_bytes())
        method, settings, seed, head = told["method"], told["settings"], told["seed"], told["head"]
    except (KeyError, TypeError, OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"{folder} holds no whole model ({type(error).__name__}: {error}): save it again") from None
    trained = attach(model, method, seed=seed, head=head, **settings)
    attached = _of(model)
    if _sha256_of_rest(model, attached) != rest:
        raise ValueError(
            f"{folder} was trained on another {type(model).__name__}: load the pretrained weights it went on"
        )
    _fill(model, _kept(model, attached), values, folder)
    return trained


def merge(model: nn.Module) -> None:
    """Fold what a method added into the weights beside it; the outputs stay, and `save_pretrained` works again.

    Raises:
        ValueError: The model has no method on it, or one that is no shift of weights, such as an adapter.
    """
    _of(model)
    backbone = model.__dict__[BACKBONE]
    assert isinstance(backbone, Backbone)
    backbone.merge()
    for name in (NOTE, BACKBONE, "save_pretrained"):
        model.__dict__.pop(name, None)


def to_peft(model: nn.Module, folder: Path | str) -> None:
    """Write the LoRA of a model in peft's format, the head with it, for `PeftModel.from_pretrained`.

    Raises:
        ValueError: The method is not LoRA, or the folder cannot be written to.
        Missing: peft is not installed.
    """
    attached = _of(model)
    if attached.method != "lora":
        raise ValueError(
            f"peft's format is written of 'lora', not of {attached.method!r}: call peft_dp.save(model, DIR)"
        )
    try:
        from peft import LoraConfig
    except ModuleNotFoundError:
        raise Missing("peft's format needs the package peft: pip install 'peft-dp[libraries]'") from None
    sites = sorted({name.partition(".lora.")[0] for name in attached.added})
    heads = sorted({name.rpartition(".")[0] for name in _kept(model, attached) if name not in attached.added})
    config = LoraConfig(
        r=attached.settings["rank"],
        lora_alpha=attached.settings["alpha"],
        lora_dropout=0.0,
        target_modules=sites,
        modules_to_save=heads,
        inference_mode=True,
    )
    named = {_in_peft(name): value.detach().cpu().contiguous() for name, value in _kept(model, attached).items()}
    folder = Path(folder)
    _write(folder, {PEFT_TENSORS: write_tensors(named)})
    config.save_pretrained(str(folder))


def _from_peft(model: nn.Module, folder: Path) -> dict[str, nn.Parameter]:
    from peft_dp.methods._attach import attach
    from peft_dp.models.view import view

    try:
        about = json.loads((folder / PEFT_ABOUT).read_text(encoding="utf-8"))
        values = read_tensors((folder / PEFT_TENSORS).read_bytes())
        kind, rank, alpha, targets = (about[name] for name in ("peft_type", "r", "lora_alpha", "target_modules"))
    except (KeyError, OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"{folder} holds no whole adapter ({type(error).__name__}: {error}): save it again") from None
    unlike = [name for name in NOT_PLAIN if about.get(name)]
    if kind != "LORA" or unlike:
        what = unlike[0] if kind == "LORA" else f"peft_type {short(kind)}"
        raise ValueError(f"{folder / PEFT_ABOUT} has {what}, which is not plain LoRA: load it by peft itself")
    backbone = view(model)
    paths = {id(module): path for path, module in model.named_modules()}
    wanted = [path for path in paths.values() if any(path == name or path.endswith(f".{name}") for name in targets)]
    roles = [role for role in backbone.family.sites if {paths[id(site)] for site in backbone.sites(role)} & set(wanted)]
    trained = attach(model, "lora", rank=rank, alpha=alpha, sites=roles)
    attached = _of(model)
    kept = _kept(model, attached)
    _fill(model, kept, {name: values[_in_peft(name)] for name in kept if _in_peft(name) in values}, folder)
    return trained


def _in_peft(name: str) -> str:
    """Return the name that peft's file has for a name of ours."""
    site, lora, part = name.partition(".lora.")
    if not lora:
        return f"base_model.model.{name}"
    return f"base_model.model.{site}.lora_{part[0].upper()}.weight"


def _kept(model: nn.Module, attached: Attached) -> dict[str, Tensor]:
    """Return what trains and what the method added, by its name in the model's state."""
    trains = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    return {name: value for name, value in tensors(model).items() if name in trains or name in attached.added}


def _sha256_of_rest(model: nn.Module, attached: Attached) -> str:
    """Return the hash of all values that are not kept: those of the pretrained model."""
    kept, digest = _kept(model, attached), hashlib.sha256()
    for name, value in tensors(model).items():
        if name not in kept:
            digest.update(name.encode() + value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@torch.no_grad()
def _fill(model: nn.Module, held: Mapping[str, Tensor], values: Mapping[str, Tensor], folder: Path) -> None:
    for name in held.keys() ^ values.keys():
        raise ValueError(f"{folder}: {short(name)} is {'unknown here' if name in values else 'missing'}: save it again")
    for name, tensor in held.items():
        if tensor.shape != values[name].shape:
            raise ValueError(f"{folder}: {name!r} is {tuple(values[name].shape)}, here {tuple(tensor.shape)}")
    for name, tensor in held.items():
        tensor.copy_(values[name])


def _write(folder: Path, contents: Mapping[str, str | bytes]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            files.write(folder / name, content, mode=0o600)
    except OSError as error:
        raise ValueError(f"{folder} cannot be written to ({error.strerror}): choose another folder") from None
