"""What a verb of the command line is, and the options that several verbs share."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from peft_dp.files import write
from peft_dp.machine import Places
from peft_dp.validate import positive

LISTED_IDS = "$(peft-dp list | awk 'NR > 2 { print $1 }')"
COMPLETION = {
    "bash": f'_peft_dp_ids() {{ compgen -W "{LISTED_IDS}" -- "$1"; }}',
    "zsh": f"_peft_dp_ids() {{ compadd -- {LISTED_IDS} }}",
}
"""Shell -> the function that completes ids."""


@dataclass(frozen=True, kw_only=True)
class Verb:
    """One verb: `peft-dp NAME`.

    Attributes:
        name: The word that is typed.
        help: What it does, in one line.
        examples: Two or three commands, shown at the end of its help.
        add_options: Adds its options to a parser.
        run: Does it and returns the exit code.
    """

    name: str
    help: str
    examples: tuple[str, ...]
    add_options: Callable[[ArgumentParser], None]
    run: Callable[[Namespace], int]

    def add_to(self, verbs: Any) -> None:
        """Add its parser to what `ArgumentParser.add_subparsers` returned."""
        parser = verbs.add_parser(
            self.name,
            help=self.help,
            description=f"{self.help[0].upper()}{self.help[1:]}.",
            epilog="\n  ".join(["examples:", *self.examples]),
            formatter_class=RawDescriptionHelpFormatter,
        )
        self.add_options(parser)
        says = "a folder of your own tables, as PAPER/TABLE.json, with your own methods/ and tasks/"
        parser.add_argument("--tables", "--peft-tables", type=Path, metavar="DIR", help=says)
        parser.set_defaults(run=self.run)


def add_id(parser: ArgumentParser, says: str) -> None:
    """Add the id that the verb is about; a shell completes it."""
    action: Any = parser.add_argument("id", metavar="ID", help=says)
    action.complete = dict.fromkeys(COMPLETION, "_peft_dp_ids")  # where shtab looks for it


def add_json(parser: ArgumentParser, kind: str = "object") -> None:
    """Add --json."""
    parser.add_argument("--json", action="store_true", help=f"print one JSON {kind}, for programs")


def add_seed(parser: ArgumentParser) -> None:
    """Add --seed, of the one run."""
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the run (default: 0)")


def add_seeds(parser: ArgumentParser) -> None:
    """Add --seeds, the number of runs per cell."""
    parser.add_argument("--seeds", type=int, metavar="N", help="runs per cell (default: as its table says)")


def add_folders(parser: ArgumentParser) -> None:
    """Add --data and --backbones, also by the names that pytest's options have."""
    data, backbones = "folder of real data, e.g. GLUE's official folders", "folder with one folder per pretrained model"
    parser.add_argument("--data", "--peft-data", type=Path, metavar="DIR", help=data)
    parser.add_argument("--backbones", "--peft-backbones", type=Path, metavar="DIR", help=backbones)


def add_places(parser: ArgumentParser) -> None:
    """Add --data, --backbones and --device."""
    add_folders(parser)
    says = "where to compute (default: auto, CUDA if there is any)"
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help=says)


def add_records(parser: ArgumentParser) -> None:
    """Add --records, the folder that runs read from and write to."""
    says = "folder of records (default: records/)"
    parser.add_argument("--records", type=Path, metavar="DIR", default=Path("records"), help=says)


def places(options: Namespace) -> Places:
    """Return the places that `add_places` asked for."""
    return Places(data=options.data, backbones=options.backbones, device=options.device)


def check_positive(options: Namespace, *names: str) -> None:
    """Check options that may be left out.

    Raises:
        ValueError: One is given and is not above 0.
    """
    for name in names:
        if getattr(options, name) is not None:
            positive(**{f"--{name}": getattr(options, name)})


def write_file(file: Path, text: str) -> None:
    """Write a file that an option names.

    Raises:
        ValueError: It cannot be written.
    """
    try:
        write(file, text)
    except OSError as error:
        raise ValueError(f"{file} cannot be written ({error.strerror}): choose another FILE") from None


def progress() -> TextIO | None:
    """Return where a progress bar is drawn; None where standard error is no terminal."""
    return sys.stderr if sys.stderr.isatty() else None


def print_error(error: Exception | str) -> None:
    """Print what is wrong to standard error, on one line and with nothing in it that steers a terminal."""
    line = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in str(error))
    print(f"peft-dp: {line}", file=sys.stderr)
