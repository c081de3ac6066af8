"""What papers print and what this project recorded, as data: `expected/<paper>/<table>.json` to cells, claims, facts.

`<table>.json` is written by people: definitions and printed numbers. `<table>.recorded.json` beside it is written by
`peft-dp bless`: the raw score of every seed, and on what it was made. The allowed band is in neither: `verdicts`
computes it, so that the three cannot be taken for each other. `facts.json` holds a paper's figures that need no
training, `claims.json` what it states of its rows. The types here are the format: `schema` writes them out for editors.
"""

from peft_dp.suite.papers.cell import cells, find, select
from peft_dp.suite.papers.claim import claims
from peft_dp.suite.papers.fact import facts

__all__ = ["cells", "claims", "facts", "find", "select"]
