"""Specs: JSON both ways, equality, and one sentence for each thing that can be wrong."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from peft_dp import Spec
from peft_dp.spec import Optimiser, Privacy, from_json, to_json

Make = Callable[..., Spec]

WHOLE: dict[str, Any] = {
    "budget": "smoke",
    "backbone": "bert",
    "task": "sentiment",
    "method": "bitfit",
    "privacy": {"epsilon": 8.0, "delta": 0.001},
    "optimiser": {"rate": 0.01},
    "epochs": 2,
    "batch": 8,
}


def changed(path: str, value: object) -> dict[str, Any]:
    """A valid spec's JSON with the field of that path set to `value`."""
    data: dict[str, Any] = json.loads(json.dumps(WHOLE))
    *outer, name = path.split(".")
    place = data
    for part in outer:
        place = place[part]
    place[name] = value
    return data


def refusal(data: object) -> str:
    """Words of the error that reading `data` ends in."""
    with pytest.raises(ValueError) as caught:
        from_json(data, where="paper/table/row/task")
    return str(caught.value)


@pytest.mark.parametrize("privacy", [None, Privacy(epsilon=1.5, delta=1e-5, clip=0.1, accountant="rdp")])
def test_round_trip(spec: Make, privacy: Privacy | None) -> None:
    """A spec written as JSON text and read again is the same spec."""
    first = spec(privacy=privacy, config={"rank": 4, "sites": ["query", None], "scale": 0.5}, seed=3)

    assert first == from_json(json.loads(json.dumps(to_json(first))), where="here")


def test_defaults_are_written(spec: Make) -> None:
    """JSON holds every field, so that a later change of a default cannot change an old record."""
    data = to_json(spec(privacy=Privacy(epsilon=1.0, delta=0.1)))

    assert (128, "cls", "prv", None) == (
        to_json(from_json(WHOLE, where="here"))["max_length"],
        data["readout"],
        data["privacy"]["accountant"],
        data["optimiser"]["max_grad_norm"],
    )


def test_equal_specs_hash_equal(spec: Make) -> None:
    """Two specs made apart from the same fields are one key of a set, and have one digest."""
    one, other = spec(config={"a": 1, "b": 2}), spec(config={"b": 2, "a": 1})

    assert len({one, other}) == 1
    assert one.digest == other.digest


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"epochs": 3},
        {"config": {"rank": 1}},
        {"privacy": Privacy(epsilon=1.0, delta=0.1)},
        {"optimiser": Optimiser(rate=0.02)},
        {"dropout": False},
    ],
    ids=lambda change: next(iter(change)),
)
def test_any_field_changes_the_digest(spec: Make, change: dict[str, Any]) -> None:
    """A spec that differs in one field is another spec."""
    assert spec().digest != spec(**change).digest


def test_seeded(spec: Make) -> None:
    """`seeded` changes the seed and nothing else."""
    assert spec(seed=7) == spec(seed=0).seeded(7)


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("epoch", 3, "field 'epoch': unexpected keyword argument"),
        ("optimiser.lr", 0.1, "field 'optimiser.lr': unexpected keyword argument"),
        ("batch", "8", "field 'batch': Input should be a valid integer (it holds '8')"),
        ("batch", 8.5, "field 'batch': Input should be a valid integer"),
        ("epochs", True, "field 'epochs': Input should be a valid integer (it holds True)"),
        ("dropout", 1, "field 'dropout': Input should be a valid boolean (it holds 1)"),
        ("budget", "huge", "field 'budget': Input should be 'smoke', 'small' or 'paper' (it holds 'huge')"),
        ("privacy", 8.0, "field 'privacy': "),
        ("privacy.accountant", "moments", "field 'privacy.accountant': Input should be 'prv' or 'rdp' (it holds"),
        ("privacy.epsilon", 0.0, "field 'privacy': epsilon must be a finite number above 0, not 0.0"),
        (
            "privacy.delta",
            1e-11,
            "field 'privacy': delta must be at least 1e-10 for the accountant 'prv', not 1e-11: take",
        ),
        ("privacy.epsilon", 1000.0, "field 'privacy': epsilon must be at most 50, not 1000.0: more protects nobody"),
        ("privacy.epsilon", -1.0, "field 'privacy': epsilon must be a finite number above 0, not -1.0"),
        ("privacy.clip", 0.0, "field 'privacy': clip must be a finite number above 0, not 0.0"),
        ("privacy.delta", 0.0, "field 'privacy': delta must lie between 0 and 1, not 0.0"),
        ("privacy.delta", 1.0, "field 'privacy': delta must lie between 0 and 1, not 1.0"),
        ("optimiser.rate", 0.0, "field 'optimiser': rate must be a finite number above 0, not 0.0"),
        ("optimiser.rate", -0.1, "field 'optimiser': rate must be a finite number above 0, not -0.1"),
        ("epochs", 0, "epochs must be a whole number of at least 1, not 0"),
        ("batch", -8, "batch must be a whole number of at least 1, not -8"),
    ],
)
def test_wrong_field(path: str, value: object, expected: str) -> None:
    """A wrong field gives one sentence with the origin, the field and its value."""
    message = refusal(changed(path, value))

    assert message.startswith("paper/table/row/task: ")
    assert "\n" not in message
    assert expected in message


@pytest.mark.parametrize("name", ["method", "optimiser", "epochs"])
def test_missing_field(name: str) -> None:
    """A missing field is named."""
    data = {key: value for key, value in WHOLE.items() if key != name}

    assert refusal(data) == f"paper/table/row/task: field '{name}': field required"


@pytest.mark.parametrize("data", [[], "spec", None])
def test_not_an_object(data: object) -> None:
    """What is no object at all is refused with its origin too."""
    assert refusal(data).startswith("paper/table/row/task: field 'the whole': ")


@pytest.mark.parametrize("rate", [math.nan, math.inf])
def test_not_finite(rate: float) -> None:
    """A rate that is no finite number is refused in code as in JSON."""
    with pytest.raises(ValueError, match=r"rate\n  Input should be a finite number"):
        replace(Optimiser(rate=1.0), rate=rate)
