"""What determines one run: frozen, hashable, JSON both ways.

Why pydantic here: a misspelt or mistyped setting in a JSON file is an error
that names the field, and the JSON Schema for editors comes for free.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import field, replace
from typing import Any, Literal

from pydantic import ConfigDict, JsonValue, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from peft_dp import validate

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, ser_json_inf_nan="constants")
"""Unknown fields and values of another type are refused; NaN and infinity too, read or written."""
EPSILON = 50.0
"""The largest that noise is found for: above, where it no longer protects, Opacus's prv takes minutes to find it."""
DELTA = 1e-10
"""The least that prv is asked for: from about a hundredth of it rounding decides what it finds."""
Budget = Literal["smoke", "small", "paper"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Privacy:
    """The privacy a run must keep.

    Attributes:
        epsilon: Budget of the whole training, all phases together; at most `EPSILON`.
        delta: Allowed failure probability; below 1/N to mean anything, and for prv at least `DELTA`.
        clip: L2 bound of one example's gradient over all trained parameters.
        clipping: "abadi" cuts what is longer than `clip` to it; "automatic" (AUTO-S, what DP-BiTFiT's code does)
            brings every gradient to about that length.
        accountant: Opacus's numerical composition (prv) or Renyi (rdp).
        sampling: "poisson" is what the accountants assume; "shuffle" repeats
            papers that shuffled, and its epsilon is then not a guarantee.
    """

    epsilon: float
    delta: float
    clip: float = 1.0
    clipping: Literal["abadi", "automatic"] = "abadi"
    accountant: Literal["prv", "rdp"] = "prv"
    sampling: Literal["poisson", "shuffle"] = "poisson"

    def __post_init__(self) -> None:
        validate.positive(epsilon=self.epsilon, clip=self.clip)
        validate.fraction(delta=self.delta)
        if self.epsilon > EPSILON:
            short = validate.short(self.epsilon)
            raise ValueError(
                f"epsilon must be at most {EPSILON:g}, not {short}: more protects nobody, so leave privacy out"
            )
        if self.accountant == "prv" and self.delta < DELTA:
            short = validate.short(self.delta)
            raise ValueError(f"delta must be at least {DELTA:g} for the accountant 'prv', not {short}: take 'rdp'")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Optimiser:
    """How a gradient becomes a step.

    Attributes:
        rate: Peak learning rate.
        schedule: "linear" falls to 0 at the last step, "constant" stays, "slanted" rises from
            1/32 over a tenth of the steps and falls back (Howard and Ruder 2018).
        warmup: Share of the steps over which the rate rises from 0.
        weight_decay: Share by which values shrink, times the rate; not where a mask restricts a parameter.
        max_grad_norm: L2 bound on the mean gradient (not a privacy clip); null for none.
    """

    name: Literal["adamw", "sgd"] = "adamw"
    rate: float
    weight_decay: float = 0.0
    schedule: Literal["linear", "constant", "slanted"] = "linear"
    warmup: float = 0.0
    max_grad_norm: float | None = None

    def __post_init__(self) -> None:
        validate.positive(rate=self.rate)
        if self.schedule == "slanted" and self.warmup:
            raise ValueError(f"the slanted schedule has a rise of its own: warmup must be 0, not {self.warmup!r}")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Spec:
    """Everything that determines one run.

    Attributes:
        backbone: Name of a file in `backbones/`.
        task: Name of a task, or the address of one's own data, such as "csv:train.csv,dev.csv" (`tasks/own.py`).
        train: Number of training examples, drawn once for all seeds; null for all.
        dev: Number of scored examples, likewise.
        method: Name of a file in `methods/`.
        config: Arguments of the method's `Config`.
        privacy: Null for training without privacy.
        epochs: Passes over the training examples (under Poisson sampling: in expectation).
        batch: Logical batch: examples per step (under Poisson sampling: in expectation).
        max_length: Tokens per example, specials included; longer ones are cut at the right.
        head: "linear" is one linear layer on the read-out; "stock" is the head that
            transformers gives the backbone, with a read-out of its own.
        readout: What a linear head reads from the last layer: the state of [CLS], or
            the mean over the tokens (what MiniLM was trained for); "tokens" is each state
            by itself, with either head, where the task has a tag for each word; "mask" is
            the state of a mask token put after the first sentence, the input then being
            one text without a separator (WARP, SLaSh).
        dropout: Whether the backbone's dropout is on in training.
        reuse: Whether frozen layers below all that trains may be computed once for all epochs,
            where dropout is off; changes time and memory, not results.
        precision: "bf16" makes the forward and backward pass under autocast in bfloat16; parameters,
            norms, clipping, sums, noise and the optimiser stay in float32.
        weights: "random" draws those of the backbone's shape and fetches nothing; for time and memory only.
        seed: Feeds the streams for initialisation, batches, dropout and noise.
        implementation: Who makes the run: "own", this project's code, or the name of a file in `implementations/`.
        secret: Whether the batches and the noise of a private run come from the operating system, so that nobody can
            repeat them; on a task that is not public they always do.
    """

    budget: Budget
    backbone: str
    task: str
    train: int | None = None
    dev: int | None = None
    method: str
    config: dict[str, JsonValue] = field(default_factory=dict)
    privacy: Privacy | None = None
    optimiser: Optimiser
    epochs: int
    batch: int
    max_length: int = 128
    head: Literal["linear", "stock"] = "linear"
    readout: Literal["cls", "mean", "mask", "tokens"] = "cls"
    dropout: bool = True
    reuse: bool = True
    precision: Literal["fp32", "bf16"] = "fp32"
    weights: Literal["pretrained", "random"] = "pretrained"
    seed: int = 0
    implementation: str = "own"
    secret: bool = False

    def __post_init__(self) -> None:
        validate.plain(backbone=self.backbone, method=self.method, implementation=self.implementation)
        if ":" not in self.task:
            validate.plain(task=self.task)
        validate.count(epochs=self.epochs, batch=self.batch, max_length=self.max_length)
        if self.head == "stock" and self.readout not in ("cls", "tokens"):
            raise ValueError(f"readout {self.readout!r} needs head 'linear': a stock head reads where it reads")
        if self.secret and self.privacy is None:
            raise ValueError("secret is of private runs, and this one has no privacy: leave it out")

    def __hash__(self) -> int:
        """Equal specs have equal JSON."""
        return hash(self.digest)

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON, defaults left out: a field that is added later changes no recorded digest."""
        held = _ADAPTER.dump_python(self, mode="json", exclude_defaults=True)
        return hashlib.sha256(json.dumps(held, sort_keys=True).encode()).hexdigest()

    def seeded(self, seed: int) -> Spec:
        """The same run under another seed."""
        return replace(self, seed=seed)

    def own(self) -> Spec:
        """The same run by this project's own code."""
        return replace(self, implementation="own")


_ADAPTER = TypeAdapter(Spec)


def to_json(spec: Spec) -> dict[str, Any]:
    """The spec as plain JSON values, every field written out."""
    data: dict[str, Any] = _ADAPTER.dump_python(spec, mode="json")
    return data


def from_json(data: object, where: str) -> Spec:
    """The spec that `to_json` wrote, or one written by hand.

    Raises:
        ValueError: A field is unknown, missing, or of the wrong type; `where` names the origin.
    """
    try:
        return _ADAPTER.validate_json(json.dumps(data))
    except ValidationError as error:
        raise ValueError(f"{where}: {first(error)}") from None


def first(error: ValidationError) -> str:
    """The first thing pydantic found, in one sentence, with the field's path and value."""
    found = error.errors(include_url=False)[0]
    place = validate.short(".".join(str(part) for part in found["loc"]) or "the whole")
    if found["type"] in ("missing", "unexpected_keyword_argument"):
        return f"field {place}: {found['msg'].lower()}"
    holds = validate.short(found["input"])
    return f"field {place}: {found['msg'].removeprefix('Value error, ')} (it holds {holds})"
