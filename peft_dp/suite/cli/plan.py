"""`peft-dp plan`: what cells will cost, before anything runs."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path

from tqdm import tqdm

from peft_dp.suite import papers
from peft_dp.suite.cli.verb import Verb, add_json, add_seeds, check_positive, progress, write_file


def add_options(parser: ArgumentParser) -> None:
    """Add the options of `plan`."""
    parser.add_argument("prefix", nargs="*", metavar="PREFIX", help="cells whose ids start so (default: all)")
    says = "A100, H100, H200, RTX8000 or cpu (default: cpu)"
    parser.add_argument("--device", metavar="NAME", default="cpu", help=says)
    says = "folder of records made on this device; its times calibrate the estimate"
    parser.add_argument("--records", type=Path, metavar="DIR", help=says)
    says = "choose as many cells as fit in this time, e.g. 8h, 30m or 90s"
    parser.add_argument("--within", metavar="TIME", help=says)
    says = "only the cells that decide this claim, e.g. slash/claims/c1"
    parser.add_argument("--claim", metavar="ID", help=says)
    add_seeds(parser)
    parser.add_argument("--workers", type=int, metavar="N", help="also say how long N devices take at once")
    says = "write the seconds of each test there, for pytest-split"
    parser.add_argument("--durations", type=Path, metavar="FILE", help=says)
    add_json(parser)
    parser.add_argument("-v", "--verbose", action="store_true", help="one line per cell")


def run(options: Namespace) -> int:
    """Print the estimate.

    Raises:
        ValueError: An unknown prefix, claim or device, or a time or a number of seeds that is none.
    """
    from peft_dp.suite.plan import summary
    from peft_dp.suite.plan.clock import calibrated
    from peft_dp.suite.plan.estimate import estimate
    from peft_dp.suite.verdicts.folder import read_folder

    check_positive(options, "seeds", "workers")
    if options.claim and options.prefix:
        raise ValueError("--claim names its cells itself: leave out PREFIX")
    time = summary.seconds(options.within) if options.within else None
    cells = summary.deciding(options.claim) if options.claim else papers.select(options.prefix or [""])
    verdicts = read_folder(options.records).verdicts if options.records else ()
    clocks = calibrated(options.device, [record for verdict in verdicts for record in verdict.records])
    bar = tqdm(cells, desc="counting", delay=2, leave=False, disable=progress() is None)
    found = [estimate(cell, clocks, options.seeds) for cell in bar]
    fits, others = summary.within(found, time) if time else (found, [])
    if options.durations:
        write_file(options.durations, json.dumps(summary.durations(fits), indent=1) + "\n")
    if options.json:
        print(json.dumps(summary.data(fits, options.device, clocks), indent=1))
        return 0
    print(summary.render_plan(found, options.device, clocks, verbose=options.verbose or bool(options.claim)))
    if options.workers and fits:
        print(summary.render_workers(fits, options.workers))
    if time:
        print(f"\n{summary.render_selection(fits, others, options.within, options.seeds)}")
    return 0


PLAN = Verb(
    name="plan",
    help="estimate what cells will cost before anything runs: steps, tokens, FLOPs, memory, time",
    examples=(
        "peft-dp plan slash/ --device H200",
        "peft-dp plan embedded/smoke --records DIR -v  # calibrated by records of this machine",
        "peft-dp plan slash/table2 --device A100 --within 8h  # what fits in a night",
    ),
    add_options=add_options,
    run=run,
)
