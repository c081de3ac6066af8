"""What the recorded bands of real data catch: methods made wrong on purpose, held against records of right ones."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from tabulate import tabulate

from peft_dp import Places, rng
from peft_dp.methods import bitfit
from peft_dp.runs import runs
from peft_dp.suite import papers
from peft_dp.suite.verdicts.cells import judge_cell
from peft_dp.tasks import load
from peft_dp.training import job
from peft_dp.validate import Missing

SEEDS = (1, 3)


def nothing(monkeypatch, spec):
    """The right method."""
    return spec


def untrained(*roles):
    """A BitFit that forgets the biases of these roles."""

    def forget(monkeypatch, spec):
        install = bitfit.Config.install

        def broken(method, backbone, rng):
            install(method, backbone, rng)
            for role in roles:
                for site in backbone.sites(role):
                    site.bias.requires_grad_(False)

        monkeypatch.setattr(bitfit.Config, "install", broken)
        return spec

    return forget


def shuffled(share):
    """Labels of a share of the training examples change places."""

    def shuffle(monkeypatch, spec):
        def broken(name, folder):
            data = load(name, folder).subset(spec.train, spec.dev)
            train, draw = list(data.train), random.Random(1)
            chosen = draw.sample(range(len(train)), round(share * len(train)))
            labels = [train[index].label for index in chosen]
            draw.shuffle(labels)
            for index, label in zip(chosen, labels, strict=True):
                train[index] = replace(train[index], label=label)
            return replace(data, train=train)

        monkeypatch.setattr(job, "_data", broken)
        return spec

    return shuffle


def noise(factor):
    """Noise of another size than the ledger says."""

    def scale(monkeypatch, spec):
        normal = rng.normal
        monkeypatch.setattr(rng, "normal", lambda source, like, std: normal(source, like, factor * std))
        return spec

    return scale


def setting(**fields):
    """A spec with other fields; a dict changes those of an inner object."""

    def change(monkeypatch, spec):
        inner = {name: _merged(getattr(spec, name), value) for name, value in fields.items()}
        return replace(spec, **inner)

    return change


def _merged(old, value):
    if not isinstance(value, dict):
        return value
    return old | value if isinstance(old, dict) else replace(old, **value)


def _gap(finding, digits):
    """How far ours lies off, and how far it may."""
    if finding is None:
        return ["", ""]
    return [f"{finding.ours - finding.expected:+.{digits}f}", f"{finding.allowed:.{digits}f}"]


CASES = [
    ("bitfit", "nothing", nothing, False),
    ("lora", "nothing", nothing, False),
    ("bitfit-dp", "nothing", nothing, False),
    ("bitfit", "b_m2 does not train", untrained("intermediate"), True),
    ("bitfit", "b_k does not train (it has no effect)", untrained("key"), True),
    ("lora", "scale 8 times too large", setting(config={"alpha": 64.0}), True),
    ("lora", "scale 8 times too small", setting(config={"alpha": 1.0}), True),
    ("bitfit", "5 % of the labels shuffled", shuffled(0.05), False),
    ("bitfit", "10 % of the labels shuffled", shuffled(0.1), False),
    ("bitfit", "20 % of the labels shuffled", shuffled(0.2), True),
    ("lora", "5 % of the labels shuffled", shuffled(0.05), True),
    ("bitfit", "[CLS] read instead of the mean", setting(readout="cls"), True),
    ("bitfit", "learning rate a tenth", setting(optimiser={"rate": 0.0005}), True),
    ("bitfit", "one epoch instead of two", setting(epochs=1), True),
    ("bitfit-dp", "clipped at a tenth", setting(privacy={"clip": 0.1}), False),
    ("bitfit-dp", "noise of half the size", noise(0.5), True),
    ("bitfit-dp", "noise of twice the size", noise(2.0), False),
    ("bitfit-dp", "10 % of the labels shuffled", shuffled(0.1), False),
]


@pytest.fixture(scope="module")
def lines(at_end):
    """The table, printed at the end."""
    lines: list[list[object]] = []
    yield lines
    if lines:
        headers = ["row", "wrong", "runs", "trained", "score", "band", "loss", "band", "verdict", "by"]
        at_end(tabulate(lines, headers, disable_numparse=True))


@pytest.mark.slow
@pytest.mark.parametrize(("row", "says", "wrong", "must"), CASES, ids=[f"{case[0]}, {case[1]}" for case in CASES])
def test_caught(row, says, wrong, must, monkeypatch, pytestconfig, lines):
    """A method that is wrong enough differs from what was recorded in three runs of SST-2, and a right one does not."""
    options = pytestconfig.option
    cell = papers.find(f"embedded/small/{row}/sst2")
    places = Places(data=options.peft_data, backbones=options.peft_backbones, device=options.peft_device)
    spec = wrong(monkeypatch, cell.spec)
    try:
        records = runs([spec.seeded(seed) for seed in range(max(SEEDS))], places)
    except Missing as missing:
        pytest.skip(str(missing))
    verdicts = [judge_cell(cell, records[:number]) for number in SEEDS]
    for number, verdict in zip(SEEDS, verdicts, strict=True):
        numbers = [text for name, digits in (("score", 1), ("loss", 3)) for text in _gap(verdict.finding(name), digits)]
        by = [finding.quantity for finding in verdict.findings if finding.status == "differs"]
        counted = verdict.finding("trainable")
        trained = f"{counted.ours:,.0f}" if counted and "trainable" in by else ""
        lines.append([row, says, number, trained, *numbers, verdict.status, ", ".join(by)])
    if wrong is nothing:
        assert "differs" not in [verdict.status for verdict in verdicts]
    if must:
        assert verdicts[-1].status == "differs"
