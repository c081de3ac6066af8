"""Every smoke cell at seed 0 under all that may rightly differ, and eight cells at all recorded seeds: no false alarm.

`python -m tests.suite.verdicts.false_alarms` prints the table of docs/verdicts.md; it takes about five minutes per
line on two cores. Names of lines as arguments select some of them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from peft_dp.machine import Places
from peft_dp.suite import papers
from peft_dp.suite.bless import SSE, Variant, trained
from peft_dp.suite.papers.cell import Cell
from peft_dp.suite.verdicts.replay import Gap, Replay, replay

AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
VARIANTS = (
    Variant(name="1 thread, two processes side by side"),
    Variant(name="2 threads", threads=2),
    Variant(name="4 threads", threads=4),
    Variant(name="AVX2", environment=AVX2),
    Variant(name="SSE", environment=SSE),
    Variant(name="half the tokens in a physical batch", tokens=1024),
    Variant(name="twice the tokens in a physical batch", tokens=4096),
)
SEEDS = Variant(name="all recorded seeds of eight cells")
HEADS = ["what differs", "runs", "alarms", "largest gap in bands", "of", "in"]


def line(variant: Variant, cells: Sequence[Cell], seeds: int) -> list[str]:
    """Make runs of cells under a variant; return how far they are from their recordings, and which parts."""
    found: list[tuple[float, Gap, str, Replay]] = []
    for cell, record in trained(cells, seeds, Places(device="cpu"), variant):
        seed = record.spec.seed
        held = replay(record, cell.runs[seed], cell.scores_by_seed[seed], cell.drift)
        gap = held.parted or held.largest
        found.append((held.over(gap), gap, f"{cell.row.id}/{cell.task} seed {seed}", held))
    over, gap, name, _ = max(found, key=lambda one: one[0])
    alarms = sum(held.parted is not None for *_, held in found)
    return [variant.name, str(len(found)), str(alarms), f"{over:.2f}", gap.place, name]


def main(names: Sequence[str]) -> None:
    """Print the table, a line as soon as it is made."""
    cells = papers.cells("embedded/smoke")
    print(*HEADS, sep=" | ")
    for variant in (*VARIANTS, SEEDS):
        if not names or variant.name in names:
            made = line(variant, cells[4:12], 5) if variant is SEEDS else line(variant, cells, 1)
            print(*made, sep=" | ", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
