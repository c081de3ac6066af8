"""Persons, organisations, places and other names in English, made from a seed, tagged as CoNLL-2003 is.

Many names are of several types: Washington is a person, a place or a team, and
part of a bank, a street or a cup. Why: where a word decides its tag, every
method has the same score. Train and dev each miss a quarter of every list of
names, as in `generated`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from peft_dp.tasks import Data, Example, Task
from peft_dp.tasks import _words as words
from peft_dp.tasks.conll import TAGS
from peft_dp.tasks.generated import DEV, TRAIN, Draw


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


FIRST = _names("""John Mary James Anna Peter Susan David Laura Thomas Julia Robert Emma Daniel Alice Michael Helen
    George Sarah Martin Kate Simon Rachel Paul Lucy""")
LAST = _names("""Smith Miller Cooper Baker Turner Walker Carter Parker Wood Page Stone Hill Brooks Rivers Banks Fisher
    Hunter Mason Young King""")
BOTH = _names("""Washington Jackson Lincoln Houston Austin Florence Victoria Jordan Chester Lancaster Hamilton
    Wellington Sydney Dallas Denver Hudson Madison Cleveland Charlotte Chelsea Kent York Bristol Raleigh""")
PLACES = _names("""London Paris Rome Madrid Berlin Vienna Moscow Dublin Oslo Cairo Tokyo Boston Chicago Toronto Athens
    Prague France Spain Italy Egypt Japan Brazil Canada India Norway Poland Greece Ireland""")
NATIONS = _names("""French Spanish Italian German Russian Irish Japanese Brazilian Canadian Indian Polish Greek Dutch
    Swedish Turkish Swiss""")
FIRMS = _names("Bank University Airlines Press Motors Steel Museum Hospital Institute College Oil Insurance")
SITES = _names("Street Bridge Airport Park Square Road Castle Island")
EVENTS = _names("Cup Festival Prize Marathon Open Trophy Fair Treaty")

_TEMPLATES = (
    "PERSON flew from PLACE to PLACE TIME .",
    "PERSON , the JOB from PLACE , now works for FIRM .",
    "FIRM hired PERSON as its new JOB TIME .",
    "shares of FIRM fell after PERSON left for FIRM .",
    "TEAM beat TEAM 3 - 1 TIME .",
    "PERSON scored twice for TEAM against TEAM in the EVENT .",
    "the NATION JOB met PERSON near PLACE TIME .",
    "the EVENT was held in PLACE TIME .",
    "PERSON won the EVENT ahead of PERSON and PERSON .",
    "TEAM sold PERSON to TEAM TIME .",
    "PERSON of FIRM told the NATION JOB that PLACE was quiet .",
    "nobody in PLACE had heard of PERSON or of FIRM .",
    "the JOB thanked PERSON and the people of PLACE .",
    "the roads between PLACE and PLACE were closed TIME , FIRM said .",
    "in the EVENT , TEAM lost to the NATION side TIME .",
    "PERSON told PERSON that the JOB was ill .",
    "the JOB waited for the JOB TIME .",
    "FIRM and FIRM will pay for the EVENT in PLACE .",
)


def _name(draw: Draw) -> str:
    return draw.word(draw.any((PLACES, BOTH)))


def _person(draw: Draw) -> str:
    first, last = draw.word(FIRST), draw.word(draw.any((LAST, BOTH)))
    return draw.any((first, last, last, f"{first} {last}"))


def _firm(draw: Draw) -> str:
    name, place, kind = draw.word(draw.any((LAST, BOTH))), _name(draw), draw.word(FIRMS)
    return draw.any((f"{name} {kind}", f"{place} {kind}", f"{kind} of {place}", place))


def _place(draw: Draw) -> str:
    name = _name(draw)
    return draw.any((name, name, f"{draw.word(draw.any((LAST, BOTH)))} {draw.word(SITES)}"))


def _event(draw: Draw) -> str:
    return f"{draw.word(draw.any((PLACES, BOTH, NATIONS)))} {draw.word(EVENTS)}"


# Slot -> type of what fills it, none for plain words, and what draws it.
_SLOTS: dict[str, tuple[str, Callable[[Draw], str]]] = {
    "PERSON": ("PER", _person),
    "FIRM": ("ORG", _firm),
    "TEAM": ("ORG", _name),
    "PLACE": ("LOC", _place),
    "EVENT": ("MISC", _event),
    "NATION": ("MISC", lambda draw: draw.word(NATIONS)),
    "JOB": ("", lambda draw: draw.any(draw.word(words.PEOPLE))),
    "TIME": ("", lambda draw: draw.any(draw.word(words.TIMES))),
}

TASKS = {
    "entities": Task(
        public=True,
        name="entities",
        title="Entities",
        kind="tokens",
        labels=TAGS,
        metric="entity_f1",
        pair=False,
        train=TRAIN,
        dev=DEV,
        tokens=13.7,
        log_deviation=0.15,
        positive=0.5,  # assumed
    )
}


def load(task: Task, folder: Path | None) -> Data:
    """Return the fixed sentences; no file of `folder` is read."""
    seen: set[str] = set()
    train, dev = (_examples(f"{task.name} {split}", count, seen) for split, count in (("train", TRAIN), ("dev", DEV)))
    return Data(train=train, dev=dev)


def _examples(seed: str, count: int, seen: set[str]) -> list[Example]:
    """Return that many new, different sentences, the templates in turn."""
    draw = Draw(seed, dev=seed.endswith("dev"))
    examples: list[Example] = []
    while len(examples) < count:
        example = _sentence(draw, _TEMPLATES[len(examples) % len(_TEMPLATES)])
        if example.first not in seen:
            seen.add(example.first)
            examples.append(example)
    return examples


def _sentence(draw: Draw, template: str) -> Example:
    text: list[str] = []
    tags: list[int] = []
    for word in template.split():
        kind, fill = _SLOTS.get(word, ("", lambda draw, word=word: word))
        name = fill(draw).split()
        begin = TAGS.index(f"B-{kind}") if kind else 0
        tags += [begin + (place > 0 and begin > 0) for place in range(len(name))]
        text += name
    return Example(" ".join([text[0].capitalize(), *text[1:]]), None, tuple(tags))
