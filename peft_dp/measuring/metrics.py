"""The scores of GLUE (Wang et al. 2018, table 1) and of entities, from 0 to 1; papers print them times 100.

Correlations reach down to -1. A prediction that never varies has none: it scores 0.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import fmean

from peft_dp import validate

Numbers = Sequence[float]


def accuracy(predictions: Numbers, labels: Numbers) -> float:
    """Share of predictions equal to their label."""
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(labels, predictions))


def f1(predictions: Numbers, labels: Numbers) -> float:
    """Harmonic mean of precision and recall of class 1."""
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predictions, zero_division=0.0))


def mcc(predictions: Numbers, labels: Numbers) -> float:
    """Matthews correlation of classes."""
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(labels, predictions)) if _vary(predictions, labels) else 0.0


def pearson(predictions: Numbers, labels: Numbers) -> float:
    """Linear correlation of scores."""
    from scipy.stats import pearsonr

    return float(pearsonr(predictions, labels).statistic) if _vary(predictions, labels) else 0.0


def spearman(predictions: Numbers, labels: Numbers) -> float:
    """Correlation of the ranks of scores."""
    from scipy.stats import spearmanr

    return float(spearmanr(predictions, labels).statistic) if _vary(predictions, labels) else 0.0


def entity_f1(predictions: Numbers, labels: Numbers) -> float:
    """F1 of whole entities of all types together, as in CoNLL-2003 and in seqeval's default mode.

    An entity counts where first word, last word and type all agree. Of tags, 0 is
    O, 2k - 1 and 2k are B- and I- of type k. An I- that continues nothing begins
    an entity. Sentences stand in one row with an O between them.
    """
    found, known = _entities(predictions), _entities(labels)
    return 2 * len(found & known) / max(len(found) + len(known), 1)


def _entities(tags: Numbers) -> set[tuple[int, int, float]]:
    """First place, place after the last, and type of each entity."""
    types = [(tag + 1) // 2 for tag in tags]
    starts = [place for place, tag in enumerate(tags) if tag % 2 or types[place] != types[max(place - 1, 0)]]
    return {
        (start, end, types[start]) for start, end in pairwise([0, *starts, len(tags)]) if start < end and types[start]
    }


METRICS: dict[str, Callable[[Numbers, Numbers], float]] = {
    metric.__name__: metric for metric in (accuracy, f1, entity_f1, mcc, pearson, spearman)
}


def score(metric: str, predictions: Numbers, labels: Numbers) -> float:
    """The metric of that name.

    Raises:
        ValueError: No such metric, nothing to score, lists of different length, or a value that is not finite.
    """
    validate.known("metric", metric, METRICS)
    if not len(predictions) == len(labels) > 0:
        raise ValueError(f"{metric} needs one prediction per label, not {len(predictions)} for {len(labels)}")
    if not all(math.isfinite(value) for value in (*predictions, *labels)):
        raise ValueError(f"{metric} needs finite predictions and labels; training may have diverged")
    return METRICS[metric](predictions, labels)


def majority(metric: str, labels: Numbers) -> float:
    """Score of always predicting the most frequent class, the lowest of several; the mean for a correlation."""
    if metric in ("pearson", "spearman"):
        guess = fmean(labels)
    else:
        counts = Counter(labels)
        guess = max(sorted(counts), key=counts.__getitem__)
    return score(metric, [guess] * len(labels), labels)


def _vary(*series: Numbers) -> bool:
    return all(len(set(values)) > 1 for values in series)
