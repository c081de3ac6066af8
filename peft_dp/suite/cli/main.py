"""The entry point: `peft-dp VERB`, or `python -m peft_dp VERB`."""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from contextlib import suppress
from io import TextIOWrapper, UnsupportedOperation

import shtab

from peft_dp import registry
from peft_dp.suite.cli.audit import AUDIT
from peft_dp.suite.cli.bless import BLESS
from peft_dp.suite.cli.compare import COMPARE
from peft_dp.suite.cli.doctor import DOCTOR
from peft_dp.suite.cli.list import LIST
from peft_dp.suite.cli.plan import PLAN
from peft_dp.suite.cli.predict import PREDICT
from peft_dp.suite.cli.report import REPORT
from peft_dp.suite.cli.run import RUN
from peft_dp.suite.cli.show import SHOW
from peft_dp.suite.cli.submit import SUBMIT
from peft_dp.suite.cli.verb import COMPLETION, print_error
from peft_dp.suite.papers import reader
from peft_dp.validate import Missing

VERBS = (DOCTOR, LIST, SHOW, RUN, PREDICT, PLAN, SUBMIT, AUDIT, BLESS, REPORT, COMPARE)
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
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # what a terminal or a file cannot show is escaped, not an error
            stream.reconfigure(errors="backslashreplace")
    try:
        options = parser().parse_args(arguments)
        if sys.flags.optimize > 1:
            raise ValueError("Python runs without docstrings, which transformers reads: unset PYTHONOPTIMIZE")
        reader.check_folder()
        with registry.with_own(options.tables):
            code = int(options.run(options))
        sys.stdout.flush()
        return code
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
        _drop_output()
        return 0
    except OSError as error:  # of standard output: what a verb writes or reads elsewhere it names itself
        _drop_output()
        print_error(f"{error.filename or 'standard output'}: {error.strerror}: make room, or send it elsewhere")
        return 2


def _drop_output() -> None:
    """Have Python write what it still holds for standard output nowhere."""
    with suppress(UnsupportedOperation):  # it is no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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
