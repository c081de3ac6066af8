"""Five small tasks in English, made from a seed, for suites that must run offline.

Each copies the form of a GLUE task and asks for composition, not for words:
who holds an opinion, who did what to whom, what a quantifier allows, what
agrees with what. Why: a task that single words solve gives every method the
same score. Train and dev each miss a quarter of every word list, and of the
ways to deny an opinion, so what the backbone already knows counts too.

All draws go through `Random.random`, the one method whose sequence Python
guarantees across versions.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from peft_dp.tasks import Data, Example, Kind, Task
from peft_dp.tasks import _words as words

Item = TypeVar("Item")
Pair = tuple[str, str | None]

TRAIN, DEV = 2000, 500


class Draw:
    """Draws from the words of one split; train lacks the last quarter of a list, dev the first."""

    def __init__(self, seed: str, dev: bool) -> None:
        self._random = random.Random(seed)
        self._dev = dev

    def index(self, count: int) -> int:
        """Return one of 0 .. count - 1."""
        return int(self._random.random() * count)

    def any(self, items: Sequence[Item]) -> Item:
        """Return one of all items."""
        return items[self.index(len(items))]

    def some(self, items: Sequence[Item], count: int) -> list[Item]:
        """Return that many different items."""
        left = list(items)
        return [left.pop(self.index(len(left))) for _ in range(count)]

    def words(self, table: Sequence[Item], count: int) -> list[Item]:
        """Return that many different entries among those of this split."""
        quarter = len(table) // 4
        return self.some(table[quarter:] if self._dev else table[: len(table) - quarter], count)

    def word(self, table: Sequence[Item]) -> Item:
        """Return one entry among those of this split."""
        return self.words(table, 1)[0]


def _sentence(text: str) -> str:
    text = re.sub(r"\b([Aa])(?= [aeiou])", r"\1n", text)
    return text[0].upper() + text[1:] + ("" if text.endswith("?") else ".")


# `word` is the judgement of a statement; `same` and `other` go with and against the verdict of the whole.
_STATEMENTS = (
    "the {aspect} was {word}",
    "it was a {word} and {word2} {thing}",
    "the {thing} was {word} and {word2}",
    "the {aspect} of the {thing} was {word}",
    "the {aspect} and the {aspect2} were {word}",
)
_DENIALS = (
    "the {aspect} was not {word} at all",
    "the {thing} was anything but {word}",
    "the {aspect} was far from {word}",
    "there was nothing {word} about the {aspect}",
)
_PLAIN = (
    "we soon saw that {0}",
    "{0}, just as the {judges} had told us",
    "the {judges} are right that {0}",
    "{0}, and the {aspect3} was {same}",
    "nobody who was there can deny that {0}",
    "I thought that {0}, and I would call the whole {thing} {same}",
    "I do not doubt for a moment that {0}",
    "not one of the {judges} failed to see that {0}",
)
_TURNS = (
    "although the {aspect3} was {other}, {0}, and that decides it",
    "the {judges} thought it {other}, but to me {0}",
    "in the end {0}, even if the {aspect3} was {other}",
    "we had expected something {other}, but {0}",
    "what counts is that {0}, not that the {aspect3} was {other}",
    "the {aspect3} may be {other}, yet for most of us {0}",
    "{0}, no matter how {other} the {judges} say it is",
    "instead of the {other} evening we had feared or hoped for, {0}",
)
_REVERSALS = (
    "it is simply not true that {0}",
    "the {judges} were wrong to say that {0}",
    "I had been told that {0}, but I found it {same}",
    "nobody can tell me that {0}",
    "I doubt very much that {0}",
    "only a fool could say that {0}",
    "the {judges} never made me believe that {0}",
    "if only one could say that {0}",
)


def _sentiment(draw: Draw, label: int) -> Pair:
    """Return a statement or its denial in a frame that keeps, contrasts or reverses it."""
    # Plain statements prevail: a probe, and a private run of a few noisy steps, must find something to learn.
    denied, reversed_ = draw.index(10) == 0, draw.index(10) == 0
    statement = draw.word(_DENIALS if denied else _STATEMENTS)
    frame = draw.word(_REVERSALS) if reversed_ else draw.any(draw.any((_PLAIN, _PLAIN, _PLAIN, _PLAIN, _TURNS)))
    same, other = (words.GOOD, words.BAD) if label else (words.BAD, words.GOOD)
    thing, *aspects = draw.word(words.THINGS)
    (word,), (word2,) = draw.words(other if denied != reversed_ else same, 2)
    aspect, aspect2, aspect3 = draw.some(aspects, 3)
    slots = {
        "thing": thing,
        "aspect": aspect,
        "aspect2": aspect2,
        "aspect3": aspect3,
        "word": word,
        "word2": word2,
        "same": draw.word(same)[0],
        "other": draw.word(other)[0],
        "judges": draw.word(words.JUDGES)[0],
    }
    return _sentence(frame.format(statement.format(**slots), **slots)), None


_ACTIVE = (
    "the {0} {1} the {2} near the {3} {4}",
    "{4} the {0} {1} the {2} near the {3}",
    "it was the {0} who {1} the {2} near the {3} {4}",
)
_PASSIVE = (
    "the {2} was {1} by the {0} near the {3} {4}",
    "{4} the {2} was {1} by the {0} near the {3}",
    "near the {3}, the {2} was {1} by the {0} {4}",
)


def _paraphrase(draw: Draw, label: int) -> Pair:
    """Return an event told twice, or two events that share some or all of their words."""
    who, whom, *others = draw.words(words.PEOPLE, 4)
    deeds, places, times = (draw.words(table, 2) for table in (words.DEEDS, words.PLACES, words.TIMES))
    event = [who, deeds[0], whom, places[0], times[0]]
    other = [others[0], deeds[1], others[1], places[1], times[1]]
    retold = list(event)
    if not label and draw.index(6) == 0:
        retold[0], retold[2] = whom, who
    elif not label:
        for slot in draw.some(range(5), 2 + draw.index(3)):
            retold[slot] = other[slot]
    first, second = (_tell(draw, told, draw.any((_ACTIVE, _PASSIVE))) for told in (event, retold))
    return _sentence(first), _sentence(second)


def _tell(draw: Draw, event: Sequence[tuple[str, ...]], forms: Sequence[str]) -> str:
    return draw.any(forms).format(*(draw.any(meaning) for meaning in event))


# A premise with hypotheses that follow, may hold and cannot hold; the first of each three differ by a word only.
_INFERENCES = (
    (
        "{n} {look} {many} are {act} near the {place}",
        (
            ("the {many} near the {place} are {look}", "some {kinds} are {also}", "there are {kinds} near the {place}"),
            (
                "the {many} near the {place} are {look2}",
                "some {kinds} are {act} near the {place2}",
                "the {many} are {act} because they were afraid",
            ),
            (
                "the {many} near the {place} are {not_look}",
                "all the {many} near the {place} are {never}",
                "no {kinds} are {act} near the {place}",
            ),
        ),
    ),
    (
        "all of the {kinds} near the {place} are {look}",
        (
            (
                "the {many} near the {place} are {look}",
                "some of the {kinds} near the {place} are {look}",
                "if there is a {one} near the {place}, it is {look}",
            ),
            (
                "the {many} near the {place} are {look2}",
                "some of the {kinds} near the {place2} are {look}",
                "the {kinds} near the {place} are also {look2}",
            ),
            (
                "the {many} near the {place} are {not_look}",
                "some of the {kinds} near the {place} are {not_look}",
                "some of the {kinds} near the {place} are not {look}",
            ),
        ),
    ),
    (
        "a {look} {one} was {act} near the {place}",
        (
            ("the {one} near the {place} was {look}", "a {kind} was {also}", "there was a {kind} near the {place}"),
            (
                "the {one} near the {place} was {look2}",
                "a {kind} was {act} near the {place2}",
                "the {one} was {act} with some friends",
            ),
            (
                "the {one} near the {place} was {not_look}",
                "the {one} near the {place} was {never}",
                "there was no {kind} near the {place}",
            ),
        ),
    ),
)


def _inference(draw: Draw, label: int) -> Pair:
    """Return a premise and a hypothesis about one kind of creature."""
    one, many, kind, kinds = draw.word(words.KINDS)
    act, also, never = draw.word(words.ACTS)
    (look, not_look), (look2, _) = draw.words(words.LOOKS, 2)
    (place, _), (place2, _) = draw.words(words.PLACES, 2)
    premise, hypotheses = draw.any(_INFERENCES)
    slots = {
        "one": one,
        "many": many,
        "kind": kind,
        "kinds": kinds,
        "act": act,
        "also": also,
        "never": never,
        "look": look,
        "not_look": not_look,
        "look2": look2,
        "place": place,
        "place2": place2,
        "n": draw.word(words.NUMBERS)[0],
    }
    return _sentence(premise.format(**slots)), _sentence(draw.any(hypotheses[label]).format(**slots))


# Bad and good: the same words as far as the violation lets them.
_CONTRASTS = (
    ("the {a1} near the {b2} {v} as we speak", "the {a1} near the {b2} {v_s} as we speak"),
    ("the {a2} with the {c} {b1} {v_s} as we speak", "the {a2} with the {c} {b1} {v} as we speak"),
    ("this {a2} {v_ed} while the {b1} {t_ed} the {gift}", "these {a2} {v_ed} while the {b1} {t_ed} the {gift}"),
    ("the {a1} has already {v_ing}", "the {a1} has already {v_en}"),
    ("the {a1} did not {t_ed} the {gift} {time}", "the {a1} did not {t} the {gift} {time}"),
    ("the {b2} will {v_ing} in the {place}", "the {b2} will {v} in the {place}"),
    ("the {gift} was {t_ing} by the {a1} {time}", "the {gift} was {t_en} by the {a1} {time}"),
    ("the {a1} {c} {t_ed} the {gift} of the {b1}", "the {c} {a1} {t_ed} the {gift} of the {b1}"),
    ("where did {t} the {a1} the {gift}?", "where did the {a1} {t} the {gift}?"),
    ("the {a1} gave a the {b1} {gift} {time}", "the {a1} gave the {b1} a {gift} {time}"),
    ("the {a1} in the {v_ed} old {place} {time}", "the {a1} {v_ed} in the old {place} {time}"),
    ("it was that the {gift} the {t_ed} {a1}", "it was the {gift} that the {a1} {t_ed}"),
    ("there was in a {place} the {gift} the of {a1}", "there was a {gift} in the {place} of the {a1}"),
    ("the {a1} put in the the {place} {gift} {time}", "the {a1} put the {gift} in the {place} {time}"),
    ("the {a1} left the {gift} in the", "the {a1} left the {gift} in the {place}"),
    ("{t_ed} the of the {gift} {b1} the {a1}", "the {a1} {t_ed} the {gift} of the {b1}"),
    ("the {a1} {v_ed} the {gift} in the {place}", "the {a1} {t_ed} the {gift} in the {place}"),
    ("the {c} {a1} {t_ed} {not_self} in the picture", "the {c} {a1} {t_ed} {self} in the picture"),
    ("somebody in the {place} has ever {t_en} the {b1}", "nobody in the {place} has ever {t_en} the {b1}"),
    ("the {a1} {t_ed} any of the {b2}", "the {a1} did not {t} any of the {b2}"),
    ("the {a1} is {c} than the {b2} in the {place}", "the {a1} is {er} than the {b2} in the {place}"),
    ("who do you think the {a1} {t_ed} the {b1}?", "who do you think the {a1} {t_ed}?"),
)


def _acceptability(draw: Draw, label: int) -> Pair:
    """Return one sentence of a minimal pair: agreement, tense, order, arguments, licensing, comparison."""
    (a1, a2, myself, not_self), (b1, b2, _, _) = draw.words(words.SOMEONE, 2)
    v, v_s, v_ed, v_en, v_ing = draw.word(words.INTRANSITIVE)
    t, t_s, t_ed, t_en, t_ing = draw.word(words.TRANSITIVE)
    c, er = draw.word(words.DEGREES)
    text = draw.any(_CONTRASTS)[label].format(
        a1=a1,
        a2=a2,
        b1=b1,
        b2=b2,
        self=myself,
        not_self=not_self,
        v=v,
        v_s=v_s,
        v_ed=v_ed,
        v_en=v_en,
        v_ing=v_ing,
        t=t,
        t_s=t_s,
        t_ed=t_ed,
        t_en=t_en,
        t_ing=t_ing,
        c=c,
        er=er,
        gift=draw.word(words.GIFTS)[0],
        place=draw.word(words.PLACES)[0],
        time=draw.word(words.TIMES)[0],
    )
    return _sentence(text), None


_REPORTS = (
    "the {0} {1} the {2} near the {3} {4}",
    "{4} the {0} {1} the {2} near the {3}",
    "the {2} was {1} by the {0} near the {3} {4}",
    "{4} the {2} was {1} by the {0} near the {3}",
)
_SCENE = (words.PEOPLE, words.HANDLINGS, words.OBJECTS, words.PLACES, words.TIMES)


def _similarity(draw: Draw, label: int) -> Pair:
    """Return two scenes with as many common meanings, out of five, as the score says."""
    drawn = [draw.words(table, 2) for table in _SCENE]
    kept = draw.some(range(5), label)
    scene = [meaning for meaning, _ in drawn]
    other = [meanings[slot not in kept] for slot, meanings in enumerate(drawn)]
    return _sentence(_tell(draw, scene, _REPORTS)), _sentence(_tell(draw, other, _REPORTS))


def _task(name: str, title: str, labels: str, metric: str, tokens: tuple[float, float], *, pair: bool) -> Task:
    """Return a task from the mean and log deviation of its numbers of tokens."""
    kind: Kind = "classification" if labels else "regression"
    return Task(
        public=True,
        name=name,
        title=title,
        kind=kind,
        labels=tuple(labels.split()),
        metric=metric,
        pair=pair,
        train=TRAIN,
        dev=DEV,
        tokens=tokens[0],
        log_deviation=tokens[1],
        positive=0.5 if metric == "mcc" else None,  # labels take turns
    )


_MAKERS: dict[str, Callable[[Draw, int], Pair]] = {
    "sentiment": _sentiment,
    "paraphrase": _paraphrase,
    "inference": _inference,
    "acceptability": _acceptability,
    "similarity": _similarity,
}

TASKS = {
    task.name: task
    for task in (
        _task("sentiment", "Sentiment", "negative positive", "accuracy", (16.8, 0.16), pair=False),
        _task("paraphrase", "Paraphrase", "different same", "accuracy", (29.1, 0.07), pair=True),
        _task("inference", "Inference", "entailment neutral contradiction", "accuracy", (21.3, 0.08), pair=True),
        _task("acceptability", "Acceptability", "unacceptable acceptable", "mcc", (11.6, 0.12), pair=False),
        _task("similarity", "Similarity", "", "pearson", (27.7, 0.06), pair=True),
    )
}


def load(task: Task, folder: Path | None) -> Data:
    """Return the fixed examples of a task; no file of `folder` is read."""
    seen: set[Pair] = set()
    train, dev = (_examples(task, split, count, seen) for split, count in (("train", TRAIN), ("dev", DEV)))
    return Data(train=train, dev=dev)


def _examples(task: Task, split: str, count: int, seen: set[Pair]) -> list[Example]:
    """Return that many new, different examples whose labels take turns; a score is one of 0 .. 5."""
    draw = Draw(f"{task.name} {split}", dev=split == "dev")
    examples: list[Example] = []
    while len(examples) < count:
        label = len(examples) % (len(task.labels) or 6)
        pair = _MAKERS[task.name](draw, label)
        if pair not in seen:
            seen.add(pair)
            examples.append(Example(*pair, label))
    return examples
