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
    says = "canaries to plant per draw, at most (default: 10000)"
    parser.add_argument("--canaries", type=int, metavar="M", default=10_000, help=says)
    add_places(parser)


def run(options: Namespace) -> int:
    """Print whether the claim of epsilon stands, then what else the draws tell; 1 where it does not stand.

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
    verdict = "REFUTED" if found.alarms else "not refuted"
    print(
        f"{cell.id}, seed {options.seed}: the claim of epsilon {found.claimed:.2f} is {verdict}.\n"
        f"Epsilon is at least {found.limit:.2f} at delta {found.delta:g}; a right engine's limit is above its claim "
        f"in at most {found.error * 1000:g} audit of 1,000.\n"
    )
    lines = [
        (f"claimed by the {found.accountant} accountant", f"{found.claimed:.2f}"),
        (f"estimate, of mu {found.mu:.3f}", f"{found.estimate:.2f}"),
        ("f-DP bound of a draw, expected", f"{found.power:.2f}"),
        ("f-DP bound of each draw", " ".join(f"{bound:.2f}" for bound in found.bounds)),
        ("the same of any mechanism", " ".join(f"{bound:.2f}" for bound in found.any_mechanism)),
    ]
    print(tabulate(lines, headers=["", "epsilon"], disable_numparse=True))
    print(
        f"\n{found.draws} draws of {found.canaries:,} canaries; a draw's bound is above the truth in at most 1 of 20. "
        "Three draws of 10,000\nsee half the noise or no clip always, noise a tenth too small 9 times of 10, a wrong "
        "sampler never."
    )
    return int(found.alarms)


AUDIT = Verb(
    name="audit",
    help="attack one private cell, and say whether its claim of epsilon stands",
    examples=(
        "peft-dp audit embedded/smoke/bitfit-dp/sentiment",
        "peft-dp audit embedded/smoke/bitfit-dp/sentiment --canaries 1000 --json  # coarser and quicker",
    ),
    add_options=add_options,
    run=run,
)
