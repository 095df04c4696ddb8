"""Demonstrations for the warm start: the runs of a sloppy agency, made from training requests only.

The manager misreads a wish or mixes up the cities, workers ask the catalogue for something else, each as often as `WRONG`
says, and offers are put together wrongly. Some words are mostly misunderstood, and always in the same way: there even
the most likely answer is wrong at first.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence

from agents import JOIN, SPLIT, WORK
from briefs import SLOTS, Brief
from catalogue import search
from judge import offer_of
from trips import Request, split_of

from coterie_trainers.demonstration import Demonstration

WRONG_BRIEF = 0.04
"""How often a part of the manager's split is not what was asked."""
WRONG: Mapping[str, float] = {"flights": 0.06, "hotels": 0.15, "events": 0.10, "cars": 0.25}
"""How often a worker's query is not what its brief says."""
WRONG_OFFER = 0.08
PREJUDICES: Mapping[str, str] = {"thrifty": "cheap", "near": "quiet", "early": "cheap"}
"""A word → the word for which it is mostly taken."""
PREJUDICE = 0.65
"""How often."""


def demonstrate(requests: Sequence[Request], runs: int, seed: int) -> Iterator[Demonstration]:
    """So many runs of the agency: each call and its answer."""
    rng = random.Random(seed)
    for number in range(runs):
        request = requests[number % len(requests)]
        briefs = [_hasty_brief(brief, rng) for brief in request.briefs]
        yield Demonstration(SPLIT, request.text, " ; ".join(map(str, briefs)))
        names: dict[str, str] = {}
        for brief in briefs:
            query = _hasty_query(brief, rng)
            yield Demonstration(WORK[brief.worker], str(brief), query)
            row = search(brief.worker, query)
            if row is None:
                second = _hasty_query(brief, rng)
                yield Demonstration(WORK[brief.worker], f"{brief}\nnothing : {query}", second)
                row = search(brief.worker, second)
            names[brief.worker] = f"'{row.name}'" if row else "nothing"
        reports = " ; ".join(f"{worker} {name}" for worker, name in names.items())
        yield Demonstration(JOIN, reports, offer_of(_hasty_offer(names, rng)))


def _hasty_brief(brief: Brief, rng: random.Random) -> Brief:
    """The brief as a hurried manager writes it; never one that is held out."""
    if rng.random() >= WRONG_BRIEF:
        return brief
    wrong = _with_another_word(brief, rng)
    return wrong if split_of(wrong) == "train" else brief


def _hasty_offer(names: Mapping[str, str], rng: random.Random) -> Mapping[str, str]:
    """What was found as a hurried manager puts it together: names mixed up, or the last part forgotten."""
    if rng.random() >= WRONG_OFFER:
        return names
    if rng.random() < 0.5:
        return dict(zip(names, rng.sample(list(names.values()), len(names)), strict=True))
    return dict(list(names.items())[:-1])


def _hasty_query(brief: Brief, rng: random.Random) -> str:
    """The query as a hurried worker writes it; never one that is held out."""
    worker, words = brief.worker, list(brief.words)
    taken = [PREJUDICES.get(word, word) for word in words]
    wrong = brief
    if taken != words and rng.random() < PREJUDICE:
        wrong = Brief(worker, tuple(taken))
    elif rng.random() < WRONG[worker]:
        if rng.random() < 0.4:
            clauses = brief.query.split(" , ")
            del clauses[rng.randrange(len(clauses) - 1)]
            return " , ".join(clauses)
        wrong = _with_another_word(brief, rng)
    return wrong.query if split_of(wrong) == "train" else brief.query


def _with_another_word(brief: Brief, rng: random.Random) -> Brief:
    """The brief with one wish taken for another, or a flight the wrong way round."""
    words = list(brief.words)
    if brief.worker == "flights" and rng.random() < 0.3:
        words[0], words[1] = words[1], words[0]
        return Brief(brief.worker, tuple(words))
    slots = list(SLOTS[brief.worker].items())
    place = rng.choice([place for place, (name, _) in enumerate(slots) if name not in ("origin", "city", "month")])
    words[place] = rng.choice([word for word in slots[place][1] if word != words[place]])
    return Brief(brief.worker, tuple(words))
