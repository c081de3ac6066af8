"""The entry point: `peft-dp VERB`, or `python -m peft_dp VERB`."""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence

import shtab

from peft_dp.suite.cli.audit import AUDIT
from peft_dp.suite.cli.bless import BLESS
from peft_dp.suite.cli.compare import COMPARE
from peft_dp.suite.cli.doctor import DOCTOR
from peft_dp.suite.cli.list import LIST
from peft_dp.suite.cli.plan import PLAN
from peft_dp.suite.cli.report import REPORT
from peft_dp.suite.cli.run import RUN
from peft_dp.suite.cli.show import SHOW
from peft_dp.suite.cli.submit import SUBMIT
from peft_dp.suite.cli.verb import COMPLETION, print_error
from peft_dp.suite.papers import reader
from peft_dp.validate import Missing

VERBS = (DOCTOR, LIST, SHOW, RUN, PLAN, SUBMIT, AUDIT, BLESS, REPORT, COMPARE)
"""Every verb, in the order of the help."""

EXIT_CODES = """exit codes:
    0  done
    1  a cell differs, moved, failed, leaks or learnt nothing; of `doctor`: the main job cannot run here
    2  bad input
    3  this machine lacks something: data, weights, a GPU
  130  interrupted

shell completion: eval "$(peft-dp --print-completion bash)"
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb.

    Args:
        arguments: What was typed after `peft-dp`; None for the process's own arguments.

    Returns:
        The exit code, as `EXIT_CODES` says.
    """
    try:
        options = parser().parse_args(arguments)
        reader.check_folder()
        return int(options.run(options))
    except FloatingPointError as error:
        print_error(error)
        return 1
    except ValueError as error:
        print_error(error)
        return 2
    except Missing as error:
        print_error(error)
        return 3
    except KeyboardInterrupt:
        print_error("interrupted; records that were written stay, a run in progress left none")
        return 130
    except BrokenPipeError:  # as behind `| head`: the reader has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def parser() -> ArgumentParser:
    """Return the parser of the whole command line."""
    made = ArgumentParser(
        prog="peft-dp",
        description="Run rows of PEFT and DP papers, and check what they give. `peft-dp VERB --help` has examples.",
        epilog=EXIT_CODES,
        formatter_class=RawDescriptionHelpFormatter,
    )
    shtab.add_argument_to(made, preamble=COMPLETION, help="print the lines that make a shell complete verbs and ids")
    verbs = made.add_subparsers(required=True, metavar="VERB")
    for verb in VERBS:
        verb.add_to(verbs)
    return made
