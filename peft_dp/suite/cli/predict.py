"""`peft-dp predict`: what a kept model says of the rows of a file."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path

from peft_dp.suite.cli.verb import Verb, add_places, places, write_file


def add_options(parser: ArgumentParser) -> None:
    """Add the options of `predict`."""
    parser.add_argument("model", type=Path, metavar="DIR", help="folder that `peft-dp run ... --save DIR` wrote")
    says = "rows to predict: a .csv, .tsv, .jsonl or .parquet file, with ?first=COLUMN&second=COLUMN where needed"
    parser.add_argument("file", metavar="FILE", help=says)
    says = "write JSON lines into a file: the texts, and what is predicted (default: print what is predicted)"
    parser.add_argument("--out", type=Path, metavar="FILE", help=says)
    add_places(parser)


def run(options: Namespace) -> int:
    """Print what the model says of each row, one line each."""
    from peft_dp import saved
    from peft_dp.tasks import own

    model = saved.load_run(options.model, places(options))
    texts = own.texts(options.file, pair=model.task.pair)
    found = model.predict(texts)
    if options.out:
        rows = [{"text": text, "predicted": each} for text, each in zip(texts, found, strict=True)]
        write_file(options.out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        print(f"{len(rows)} predictions: {options.out}")
    else:
        for each in found:
            print(each if isinstance(each, str) else json.dumps(each))
    return 0


PREDICT = Verb(
    name="predict",
    help="print what a kept model says of each row of a file",
    examples=(
        "peft-dp predict DIR new.csv",
        "peft-dp predict DIR 'pairs.jsonl?first=question&second=answer' --out predicted.jsonl",
    ),
    add_options=add_options,
    run=run,
)
