"""`peft-dp audit`: attack one private cell, and hold its claim of epsilon against what leaks."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from dataclasses import asdict

from tabulate import tabulate

from peft_dp.suite import papers
from peft_dp.suite.cli.verb import Verb, add_id, add_json, add_places, add_seed, places


def add_options(parser: ArgumentParser) -> None:
    """Add the options of `audit`."""
    add_id(parser, "a private cell, e.g. embedded/smoke/bitfit-dp/sentiment")
    add_json(parser)
    add_seed(parser)
    says = "canaries to plant, at most (default: 10000)"
    parser.add_argument("--canaries", type=int, metavar="M", default=10_000, help=says)
    add_places(parser)


def run(options: Namespace) -> int:
    """Print the lower bounds on epsilon beside the claim; 1 where the claim does not stand.

    Raises:
        ValueError: The cell is not private.
    """
    from peft_dp.suite.audit.attack import audit
    from peft_dp.training.job import build, find_sources

    cell = papers.find(options.id)
    if cell.spec.privacy is None:
        start = f"{cell.id} trains without privacy, so it claims no epsilon to audit"
        raise ValueError(f"{start}: take a cell for which `peft-dp list` shows one")
    spec = cell.spec.seeded(options.seed)
    found = audit(build(spec, find_sources(spec, places(options))), options.canaries)
    if options.json:
        print(json.dumps({"id": cell.id, "seed": options.seed, "alarms": found.alarms} | asdict(found), indent=1))
        return int(found.alarms)
    lines = [
        (f"claimed by the {found.accountant} accountant", found.claimed),
        ("lower bound, f-DP, one run", found.bound),
        ("the same, expected of a right engine", found.power),
        ("lower bound, any mechanism, one run", found.one_run),
        (f"estimate by a Gaussian's mu, {found.mu:.3f}", found.gaussian),
        ("lower limit of it (1 run in 20 is above the truth)", found.gaussian_limit),
    ]
    print(f"{cell.id}, seed {options.seed}: {found.canaries:,} canaries, bounds at 95 % confidence\n")
    print(tabulate(lines, headers=["", f"epsilon at delta {found.delta:g}"], floatfmt=".2f"))
    verdict = "is above the claim: the engine is broken" if found.alarms else "is not above the claim"
    print(
        f"\nThe f-DP bound {verdict}. It is a coarse alarm: with 10,000 canaries half the noise\n"
        "or no clip sets it off, noise a tenth too small hardly ever, a wrong sampler never. The calibration is\n"
        "tested elsewhere, on the noise itself."
    )
    return int(found.alarms)


AUDIT = Verb(
    name="audit",
    help="attack one private cell, and print a lower bound on its epsilon",
    examples=(
        "peft-dp audit embedded/smoke/bitfit-dp/sentiment",
        "peft-dp audit embedded/smoke/bitfit-dp/sentiment --canaries 1000 --json  # coarser and quicker",
    ),
    add_options=add_options,
    run=run,
)
