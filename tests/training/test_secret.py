"""Private runs on data that are not public: nobody can repeat them, and records tell nothing exact."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest

from peft_dp.machine import Places
from peft_dp.records import Records
from peft_dp.runs import run
from peft_dp.spec import Privacy, Spec
from peft_dp.validate import Unsupported

PRIVATE = Privacy(epsilon=8.0, delta=0.01)


@pytest.fixture
def own(spec: Callable[..., Spec], tmp_path: Path) -> Callable[..., Spec]:
    """Makes a spec on a file of one's own."""
    for name in ("train", "dev"):
        rows = [f"we saw a {'good' if at % 2 else 'bad'} film,{at % 2}\n" for at in range(24)]
        (tmp_path / f"{name}.csv").write_text("text,label\n" + "".join(rows))
    address = f"csv:{tmp_path}/train.csv,{tmp_path}/dev.csv"
    return lambda **fields: spec(**({"task": address} | fields))


@pytest.mark.parametrize("sampling", ["poisson", "shuffle"])
def test_nobody_can_repeat(sampling: Literal["poisson", "shuffle"], own: Callable[..., Spec], places: Places) -> None:
    """Two private runs of one seed on one's own data part; the same runs without privacy are equal in every bit."""
    private = own(privacy=Privacy(epsilon=8.0, delta=0.01, sampling=sampling))
    one, two = (run(private, places) for _ in range(2))
    plain, again = (run(own(), places) for _ in range(2))

    assert one.key == two.key
    assert one.moved != two.moved
    assert plain.result() == again.result()


def test_nothing_exact(own: Callable[..., Spec], places: Places) -> None:
    """The record has no loss, no share clipped, no number of examples or tokens, no answer and no rate of examples."""
    record = run(own(privacy=PRIVATE), places)
    assert record.ledger

    assert record.secret
    assert record.trace is None
    assert record.ledger["noise"] == "secure"
    assert "clipped" not in record.ledger
    assert {(one.loss, one.clipped, one.examples, one.tokens) for one in record.trail} == {(None, None, 24, 0)}
    assert {*record.cost} == {"epoch_seconds", "peak_bytes"}
    assert all(one.noise and one.noise > 0 for one in record.trail)


def test_secret_on_public_data(spec: Callable[..., Spec], places: Places) -> None:
    """A public task's noise is that of the seed, unless the spec asks for secret noise."""
    seeded, secret = (run(spec(privacy=PRIVATE, secret=secret), places) for secret in (False, True))

    assert (seeded.secret, secret.secret) == (False, True)
    assert seeded.trace
    assert secret.trace is None
    with pytest.raises(ValueError, match="secret is of private runs"):
        spec(secret=True)


def test_library(own: Callable[..., Spec], places: Places) -> None:
    """A library's noise is fed from a seed, so it makes no private run on one's own data."""
    with pytest.raises(Unsupported, match="use implementation 'own'"):
        run(own(privacy=PRIVATE, implementation="opacus_hooks"), places)


def test_killed(own: Callable[..., Spec], places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A secret run that stops goes on from its checkpoint, to the number of steps that were accounted for."""
    from peft_dp.training import checkpoint
    from peft_dp.training.run import Run

    made = own(privacy=PRIVATE)
    monkeypatch.setattr(checkpoint.Checkpoint.__init__, "__defaults__", (0.0,))
    step, steps = Run.step, [0]

    def stop(self: Run) -> None:
        if steps[0] == 4:
            raise KeyboardInterrupt
        steps[0] += 1
        step(self)

    monkeypatch.setattr(Run, "step", stop)
    with pytest.raises(KeyboardInterrupt):
        run(made, places, Records(tmp_path / "records"))
    monkeypatch.setattr(Run, "step", step)
    record = run(made, places, Records(tmp_path / "records"))
    assert record.ledger

    assert record.ledger["steps"] == sum(one.steps for one in record.trail) == 6
